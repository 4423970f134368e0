//! Certificates of clients: who has none of the authority is turned away, who has one has a name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

use crate::harness::{Node, run, stderr, stdout, token};
use crate::tls::{Secure, ask, connect, pair, patient, trusting};

/// An authority of clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A client: its certificate and its key, in one file as the command line takes them.
struct Client {
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: KeyPair,
    file: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn client(&self, dir: &Path, name: Option<&str>) -> Client {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "someone");
        params.subject_alt_names =
            name.map(|n| SanType::DnsName(n.try_into().unwrap())).into_iter().collect();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        let file = dir.join(format!("{}.pem", name.unwrap_or("nameless")));
        std::fs::write(&file, format!("{}{}", cert.pem(), key.serialize_pem())).unwrap();
        Client { chain: vec![cert.der().clone()], key, file }
    }
}

/// A connection as this client. In TLS 1.3 the client is done before the server has looked at its certificate, so a
/// refusal shows at the first request only.
fn served(address: &str, trusted: &Path, client: &Client) -> Option<Secure> {
    let key = rustls::pki_types::PrivateKeyDer::try_from(client.key.serialize_der()).unwrap();
    let config = trusting(trusted).with_client_auth_cert(client.chain.clone(), key).unwrap();
    let mut stream = connect(address, Arc::new(config)).ok()?;
    ask(&mut stream, "GET /livez", "").ok()?;
    Some(stream)
}

fn node(dir: &Path, ca: &Path, clients: &str) -> (Node, PathBuf) {
    let (cert, key) = pair(dir, "node");
    let config = patient(dir, &format!("tls_clients = [{clients}]\n"));
    let files = ["--config", config.to_str().unwrap(), "--tls-cert", cert.to_str().unwrap()];
    let more = ["--tls-key", key.to_str().unwrap(), "--tls-client-ca", ca.to_str().unwrap()];
    (Node::start(&dir.join("data"), &[files, [more[0], more[1], more[2], more[3]]].concat()), cert)
}

#[test]
fn sec_05_only_clients_of_the_authority_are_served_and_another_one_takes_over_by_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, ours.0.pem()).unwrap();
    let (node, cert) = node(dir.path(), &ca, "");
    let (a, b) = (ours.client(dir.path(), Some("a.example")), theirs.client(dir.path(), Some("b.example")));
    let mut old = served(&node.address, &cert, &a).unwrap();
    assert!(served(&node.address, &cert, &b).is_none(), "of another authority");
    let nothing = connect(&node.address, Arc::new(trusting(&cert).with_no_client_auth()));
    assert!(
        nothing.is_err() || ask(&mut nothing.unwrap(), "GET /livez", "").is_err(),
        "without a certificate"
    );
    // Half written, after what is whole: the old authority stays in force.
    let whole = theirs.0.pem();
    std::fs::write(&ca, &whole[..whole.len() / 2]).unwrap();
    assert!(served(&node.address, &cert, &a).is_some());
    assert!(served(&node.address, &cert, &b).is_none());
    node.says("the old certificate stays in force");
    std::fs::write(ca.with_extension("new"), whole).unwrap();
    std::fs::rename(ca.with_extension("new"), &ca).unwrap();
    assert!(served(&node.address, &cert, &b).is_some());
    assert!(served(&node.address, &cert, &a).is_none(), "nor by a session of before");
    assert_eq!(ask(&mut old, "GET /readyz", "").unwrap().0, "200", "the connection of before goes on");
}

#[test]
fn sec_05_a_certificate_is_an_actor_with_the_scope_it_is_bound_to() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new("ours");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, ours.0.pem()).unwrap();
    let bound = "\"dns:ops.example=admin\", \"dns:team.example=operate@team-a\"";
    let (node, cert) = node(dir.path(), &ca, bound);
    let secret = token(&dir.path().join("data"), "robot", "admin");
    let as_client =
        |name: Option<&str>| served(&node.address, &cert, &ours.client(dir.path(), name)).unwrap();
    let bearer = format!("authorization: Bearer {secret}\r\n");
    let status = |stream: &mut Secure, path: &str, headers: &str| {
        ask(stream, &format!("GET {path}"), headers).unwrap().0
    };
    let mut ops = as_client(Some("ops.example"));
    assert_eq!(status(&mut ops, "/v1/audit", ""), "200");
    assert_eq!(status(&mut ops, "/console/now", ""), "200", "a browser with a certificate is logged in");
    assert_eq!(
        status(&mut ops, "/v1/audit", "authorization: Bearer ms_wrong\r\n"),
        "401",
        "no way around it"
    );
    let mut team = as_client(Some("team.example"));
    assert_eq!(status(&mut team, "/v1/locks/team-a.x", ""), "200");
    assert_eq!(status(&mut team, "/v1/locks/team-b.x", ""), "403");
    assert_eq!(status(&mut team, "/v1/audit", ""), "403");
    assert_eq!(status(&mut team, "/v1/audit", &bearer), "200", "the token says what its bearer may do");
    for name in [Some("other.example"), None] {
        let mut other = as_client(name);
        assert_eq!(status(&mut other, "/version", ""), "401", "{name:?} is let in, and nobody");
        assert_eq!(status(&mut other, "/version", &bearer), "200");
    }
    // Who did it, in the audit; read by the command line, which presents a certificate too.
    let taken = "DELETE /v1/locks/x?force=true&reason=tried";
    assert_eq!(ask(&mut ops, taken, "").unwrap().0, "200");
    assert_eq!(ask(&mut as_client(Some("other.example")), taken, &bearer).unwrap().0, "200");
    let server = format!("https://localhost:{}", node.address.rsplit(':').next().unwrap());
    let pem = ours.client(dir.path(), Some("ops.example")).file;
    let args = ["audit", "export", "--server", &server, "--ca", cert.to_str().unwrap(), "--identity"];
    let output = run(&[&args[..], &[pem.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = stdout(&output);
    for who in ["dns:ops.example", "robot/dns:other.example"] {
        assert!(lines.contains(&format!("\"who\":\"{who}\"")), "{lines}");
    }
    let without = run(&args[..args.len() - 1]);
    assert_eq!(without.status.code(), Some(1), "the node talks to nobody without a certificate");
}

#[test]
fn sec_05_settings_of_clients_that_cannot_work_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = pair(dir.path(), "node");
    let (data, config) = (dir.path().join("data"), dir.path().join("m.toml"));
    let refused = |text: &str| {
        std::fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let output =
            run(&["serve", "--config", config, "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    let pair = format!("tls_cert = {cert:?}\ntls_key = {key:?}\n");
    assert!(refused("[server]\ntls_client_ca = \"x\"\n").contains("MS0015"));
    assert!(refused(&format!("[server]\n{pair}tls_client_ca = {key:?}\n")).contains("MS0015"));
    assert!(refused(&format!("[server]\n{pair}tls_clients = [\"dns:a=read\"]\n")).contains("MS0002"));
    let wrong = refused(&format!("[server]\n{pair}tls_client_ca = {cert:?}\ntls_clients = [\"a=read\"]\n"));
    assert!(wrong.contains("MS0002") && wrong.contains("dns: or uri:"), "{wrong}");
}
