//! A server that encrypts and wants certificates.

use mainstay_clock::Runtime;
use mainstay_redis::RedisLeases;
use mainstay_sim::servers::{Authority, Launch, Server, find};
use mainstay_store::lease::Renewed;
use mainstay_store::{Error, ErrorKind, LeaseStore as _};
use tempfile::TempDir;

use crate::Test;
use crate::world::{ANSWER, ms, run, try_take};

pub(crate) const TESTS: &[Test] = &[(
    "tls_by_url_is_trusted_by_its_authority_alone_and_shows_who_it_is",
    tls_by_url_is_trusted_by_its_authority_alone_and_shows_who_it_is,
)];

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn secured(authority: &Authority) -> Server {
    let program = find("redis-server").unwrap();
    Server::start(&program, |setup| {
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        let (cert, key) = authority.sign(&ip).unwrap();
        let plain = ["--bind", &ip, "--port", "0", "--tls-port", &port, "--save", "", "--daemonize", "no"];
        let files =
            ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "ca.pem"];
        let launch = Launch::new().args(plain).args(files);
        launch.file("cert.pem", cert).file("key.pem", key).file("ca.pem", authority.pem())
    })
    .unwrap()
}

async fn open(url: &str) -> Result<RedisLeases, Error> {
    let store = RedisLeases::builder(url).request_timeout(ANSWER).build(&Runtime::system()).unwrap();
    store.ready().await.map(|_| store)
}

fn tls_by_url_is_trusted_by_its_authority_alone_and_shows_who_it_is() {
    run(async {
        let (ours, others) = (Authority::new().unwrap(), Authority::new().unwrap());
        let server = secured(&ours);
        let dir = tempfile::tempdir().unwrap();
        let (ca, wrong) = (file(&dir, "ca.pem", ours.pem()), file(&dir, "wrong.pem", others.pem()));
        let (cert, key) = ours.sign("client").unwrap();
        let (cert, key) = (file(&dir, "cert.pem", &cert), file(&dir, "key.pem", &key));
        let url = |rest: &str| format!("rediss://{}/{rest}", server.address());
        let store = open(&url(&format!("?ca={ca}&cert={cert}&key={key}"))).await.unwrap();
        assert!(try_take(&store, "n", "op", ms(60_000)).await.is_some());
        assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(_)));
        // Another authority, and none that the system knows.
        for bad in [format!("?ca={wrong}&cert={cert}&key={key}"), format!("?cert={cert}&key={key}")] {
            let error = open(&url(&bad)).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.is_retryable()),
                (ErrorKind::Unsupported, false),
                "{bad}: {error:?}"
            );
        }
        assert!(open(&url(&format!("?ca={ca}"))).await.is_err(), "no certificate of its own");
        assert!(open(&format!("redis://{}/", server.address())).await.is_err(), "no encryption");
    });
}
