//! TLS of the node itself: reloaded without dropping anybody, and no way around it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::harness::{Node, PATIENCE, Request, eventually, mainstay, run, stderr, stdout, token};

pub(crate) type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A file of settings under which a connection may be silent for as long as a test takes: by default those of a slow
/// machine would be cut.
pub(crate) fn patient(dir: &Path, more: &str) -> PathBuf {
    let file = dir.join("patient.toml");
    std::fs::write(&file, format!("[server]\nheader_timeout = \"30m\"\n{more}")).unwrap();
    file
}

/// A certificate for localhost and its key, under a name.
pub(crate) fn pair(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    std::fs::write(&files.0, made.cert.pem()).unwrap();
    std::fs::write(&files.1, made.signing_key.serialize_pem()).unwrap();
    files
}

/// A client that trusts one certificate.
pub(crate) fn trusting(
    trusted: &Path,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_root_certificates(roots)
}

fn client(trusted: &Path, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = trusting(trusted).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

pub(crate) fn connect(address: &str, config: Arc<ClientConfig>) -> std::io::Result<Secure> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).unwrap(), socket);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

/// One request on a connection that stays open, with more headers; the status and the body.
pub(crate) fn ask(stream: &mut Secure, line: &str, headers: &str) -> std::io::Result<(String, String)> {
    stream.write_all(format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes())?;
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0_usize) {
                return Ok((head.split(' ').nth(1).unwrap().to_owned(), body.to_owned()));
            }
        }
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
}

fn status(stream: &mut Secure, path: &str) -> String {
    ask(stream, &format!("GET {path}"), "").unwrap().0
}

fn node(dir: &Path, files: &(PathBuf, PathBuf), more: &[&str]) -> Node {
    let (cert, key) = (files.0.to_str().unwrap(), files.1.to_str().unwrap());
    let data = dir.join("data");
    let mut args = vec!["--tls-cert", cert, "--tls-key", key];
    args.extend(more);
    Node::start(&data, &args)
}

#[test]
fn sec_05_a_certificate_is_exchanged_without_dropping_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (pair(dir.path(), "a"), pair(dir.path(), "b"));
    let live = (dir.path().join("live.crt"), dir.path().join("live.key"));
    let put = |from: &(PathBuf, PathBuf)| {
        for (from, to) in [(&from.0, &live.0), (&from.1, &live.1)] {
            std::fs::copy(from, to.with_extension("new")).unwrap();
            std::fs::rename(to.with_extension("new"), to).unwrap();
        }
    };
    put(&a);
    let node = node(dir.path(), &live, &["--config", patient(dir.path(), "").to_str().unwrap()]);
    let mut old = connect(&node.address, client(&a.0, &[])).unwrap();
    assert_eq!(status(&mut old, "/livez"), "200");
    assert!(connect(&node.address, client(&b.0, &[])).is_err(), "b is not there yet");
    // Half written: the old pair stays in force.
    std::fs::write(&live.0, "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    assert!(connect(&node.address, client(&a.0, &[])).is_ok());
    put(&b);
    eventually("the new certificate is in force", || connect(&node.address, client(&b.0, &[])).ok());
    assert!(connect(&node.address, client(&a.0, &[])).is_err());
    assert_eq!(status(&mut old, "/readyz"), "200", "the connection of before goes on");
    node.says("the old certificate stays in force");
}

#[test]
fn sec_01_with_tls_of_its_own_a_node_listens_beyond_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let files = pair(dir.path(), "a");
    let data = dir.path().join("data");
    let secret = token(&data, "op", "operate");
    let (cert, key) = (files.0.to_str().unwrap(), files.1.to_str().unwrap());
    let args = [
        "serve",
        "--data",
        data.to_str().unwrap(),
        "--listen",
        "0.0.0.0:0",
        "--tls-cert",
        cert,
        "--tls-key",
        key,
    ];
    let node = Node::spawn(mainstay(&args));
    let port = node.address.rsplit(':').next().unwrap();
    // The command line reaches it by the name in its certificate.
    let server = format!("https://localhost:{port}");
    let file = dir.path().join("token");
    std::fs::write(&file, &secret).unwrap();
    let base = ["saga", "ls", "--server", &server, "--token-file", file.to_str().unwrap(), "-o", "json"];
    let trusted = run(&[&base[..], &["--ca", cert]].concat());
    assert!(trusted.status.success(), "{}", stderr(&trusted));
    assert!(stdout(&trusted).contains("items"));
    let distrusted = run(&base);
    assert_eq!(distrusted.status.code(), Some(1), "an unknown certificate is no node of ours");
    assert!(stderr(&distrusted).contains("MS0012"), "{}", stderr(&distrusted));
}

#[test]
fn sec_05_certificate_and_key_need_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (pair(dir.path(), "a"), pair(dir.path(), "b"));
    let data = dir.path().join("data");
    let refused = |cert: &Path, key: &Path| {
        let args = ["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--tls-cert"];
        let output =
            run(&[&args[..], &[cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(refused(&a.0, &b.1).contains("MS0015"));
    let swapped = refused(&a.1, &a.0);
    assert!(swapped.contains("MS0015") && !swapped.contains("PRIVATE KEY"), "{swapped}");
    assert!(!data.join("mainstay.db").exists(), "nothing was made");
}

#[test]
fn sec_07_silent_and_plain_clients_of_a_tls_listener_are_cut_while_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let files = pair(dir.path(), "a");
    let config = dir.path().join("m.toml");
    std::fs::write(&config, "[server]\nheader_timeout = \"1s\"\n").unwrap();
    let node = node(dir.path(), &files, &["--config", config.to_str().unwrap()]);
    let mut silent = TcpStream::connect(&node.address).unwrap();
    let mut half = TcpStream::connect(&node.address).unwrap();
    // The beginning of a client hello, and no more.
    half.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).unwrap();
    // Their limit holds for others too: who is slow in a handshake tries again.
    let served = eventually("others are served", || {
        let mut other = connect(&node.address, client(&files.0, &[])).ok()?;
        ask(&mut other, "GET /livez", "").ok()
    });
    assert_eq!(served.0, "200");
    for stream in [&mut silent, &mut half] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        assert_eq!(
            stream.read_to_end(&mut rest).map_err(|e| e.kind()),
            Ok(0),
            "it is closed, not left waiting"
        );
    }
    assert!(Request::new("GET", "/livez").try_to(&node.address).is_none(), "no answer in clear text");
}

/// There is no HTTP/2 here, so there are no streams to open or to reset rapidly.
#[test]
fn sec_10_only_http_1_is_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let files = pair(dir.path(), "a");
    let node = node(dir.path(), &files, &[]);
    assert!(connect(&node.address, client(&files.0, &[b"h2"])).is_err(), "h2 alone finds no agreement");
    let both = connect(&node.address, client(&files.0, &[b"h2", b"http/1.1"])).unwrap();
    assert_eq!(both.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let plain = Node::start(&dir.path().join("plain"), &[]);
    let mut stream = TcpStream::connect(&plain.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 5"), "{text}");
}

/// reqwest without a provider of its own fails at its first use unless the binary installed one, and a second provider in
/// the tree makes rustls give up at run time.
#[test]
fn if_x01_one_tls_provider_is_in_the_tree_and_in_place_at_the_first_use() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../Cargo.lock");
    let lock: toml::Table = std::fs::read_to_string(lock).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let count = |name: &str| packages.iter().filter(|p| p["name"].as_str() == Some(name)).count();
    for other in
        ["aws-lc-fips-sys", "aws-lc-rs", "aws-lc-sys", "boring", "native-tls", "openssl", "openssl-sys"]
    {
        assert_eq!(count(other), 0, "{other}");
    }
    assert_eq!((count("rustls"), count("ring"), count("reqwest")), (1, 1, 1));

    // The first thing that this node does with TLS is to call a participant whose certificate it does not trust.
    let dir = tempfile::tempdir().unwrap();
    let service = node(dir.path(), &pair(dir.path(), "service"), &[]);
    let saga = paid_by(dir.path(), "caller", &service, None);
    let why = saga["cause"].to_string();
    assert!(saga["status"] == "compensated" && why.contains("certificate"), "{saga}");
}

/// A saga whose only participant is this service with TLS, called by a node that trusts `authority`.
fn paid_by(dir: &Path, name: &str, service: &Node, authority: Option<&Path>) -> Value {
    let (_, port) = service.address.rsplit_once(':').unwrap();
    let origin = format!("https://localhost:{port}");
    let definitions = dir.join(format!("{name}-definitions"));
    std::fs::create_dir(&definitions).unwrap();
    let definition = format!(
        "name = \"pay\"\nversion = 1\ndeadline = \"1h\"\n[retry]\nattempts = 1\n[[steps]]\nname = \"a\"\n\
         action = \"{origin}/a\"\nundo = \"{origin}/u\"\n"
    );
    std::fs::write(definitions.join("pay.toml"), definition).unwrap();
    let data = dir.join(name);
    let mut serve = mainstay(&["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    serve.args(["--allow-participant", &*origin, "--definitions", definitions.to_str().unwrap()]);
    serve.envs(authority.map(|file| ("SSL_CERT_FILE", file)));
    let caller = Node::spawn(serve);
    let start = Request::new("POST", "/v1/sagas").header("content-type", "application/json");
    let start = start.header("idempotency-key", "k").body("{\"definition\":\"pay\",\"input\":{}}");
    let started = caller.send(&start);
    assert_eq!(started.status, 202, "{}", started.text());
    caller.settled(started.json()["uid"].as_str().unwrap())
}

/// A certificate of an authority that the caller trusts: while it is good the service is called, and no longer.
#[test]
fn m_g10_a_participant_whose_certificate_has_expired_is_not_called() {
    let dir = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let trusted = dir.path().join("authority.crt");
    std::fs::write(&trusted, authority.pem()).unwrap();
    let called = |name: &str, last_year: i32| -> Value {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let files = (dir.path().join(format!("{name}.crt")), dir.path().join(format!("{name}.key")));
        std::fs::write(&files.0, params.signed_by(&key, &authority).unwrap().pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        let own = dir.path().join(format!("{name}-service"));
        std::fs::create_dir(&own).unwrap();
        paid_by(dir.path(), name, &node(&own, &files, &[]), Some(&trusted))
    };
    // It has no such address: what it answers is on the row.
    let good = called("good", 4000);
    assert!(good["status"] == "needs_attention" && good["error"].to_string().contains("404"), "{good}");
    let expired = called("expired", 2002);
    let why = expired["cause"].to_string();
    assert!(expired["status"] == "compensated" && why.to_lowercase().contains("expired"), "{expired}");
}
