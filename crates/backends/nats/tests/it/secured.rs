//! Servers that encrypt and want to know who comes, with certificates made here.

use mainstay_clock::Runtime;
use mainstay_nats::{Builder, NatsConfig, NatsLeases};
use mainstay_sim::servers::{Authority, Nats, NatsKit};
use mainstay_store::{Error, ErrorKind};
use tempfile::TempDir;

use crate::Test;
use crate::world::{ANSWER, ms, run, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("tls_is_trusted_by_its_authority_alone_and_clients_show_who_they_are", certificates),
    ("a_user_or_a_token_is_let_in_and_a_wrong_one_is_refused_without_a_word_of_it", logins),
];

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

async fn open(config: Builder) -> Result<NatsLeases, Error> {
    NatsLeases::open(config.request_timeout(ANSWER).build().unwrap(), &Runtime::system()).await
}

/// It listens before it can be used.
async fn opened(config: Builder) -> NatsLeases {
    let store = std::cell::RefCell::new(None);
    until("it lets us in", async || {
        let tried = open(config.clone()).await;
        *store.borrow_mut() = tried.ok();
        store.borrow().is_some()
    })
    .await;
    store.into_inner().unwrap()
}

/// Refused for good, and nothing secret is told.
async fn refused(config: Builder) {
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

fn url(scheme: &str, login: &str, server: &Nats, rest: &str) -> Builder {
    NatsConfig::builder(&format!("{scheme}://{login}{}{rest}", server.address()))
}

fn certificates() {
    let (ours, others) = (Authority::new().unwrap(), Authority::new().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let settings = "tls { cert_file: cert.pem, key_file: key.pem, ca_file: ca.pem, verify: true }";
    let server = NatsKit::new().unwrap().guarded(|address| {
        let (cert, key) = ours.sign(&address.ip().to_string()).unwrap();
        let files = vec![("cert.pem", cert), ("key.pem", key), ("ca.pem", ours.pem().to_owned())];
        (settings.to_owned(), files)
    });
    let server = server.unwrap();
    let ca = file(&dir, "ca.pem", ours.pem());
    let wrong = file(&dir, "wrong.pem", others.pem());
    let (cert, key) = ours.sign("client").unwrap();
    let (cert, key) = (file(&dir, "cert.pem", &cert), file(&dir, "key.pem", &key));
    run(async {
        let good = format!("?ca={ca}&cert={cert}&key={key}");
        let store = opened(url("tls", "", &server, &good)).await;
        take(&store, "n", "op", ms(60_000)).await;
        let built = url("tls", "", &server, "").ca(&ca).client_certificate(&cert, &key);
        opened(built).await;
        refused(url("tls", "", &server, &format!("?ca={wrong}&cert={cert}&key={key}"))).await;
        // The authorities of the system do not know it.
        refused(url("tls", "", &server, "")).await;
        let unknown = open(url("tls", "", &server, &format!("?ca={ca}"))).await;
        assert!(unknown.is_err(), "without a certificate nobody is let in");
    });
}

fn logins() {
    let kit = NatsKit::new().unwrap();
    let server = |settings: &str| kit.guarded(|_| (settings.to_owned(), Vec::new())).unwrap();
    let named = server("authorization { user: app, password: \"s3cret@:\" }");
    let token = server("authorization { token: s3cret }");
    run(async {
        let store = opened(url("nats", "app:s3cret%40%3A@", &named, "")).await;
        take(&store, "n", "op", ms(60_000)).await;
        refused(url("nats", "app:s3cret@", &named, "")).await;
        refused(url("nats", "", &named, "")).await;
        opened(url("nats", "s3cret@", &token, "")).await;
        refused(url("nats", "s3cretive@", &token, "")).await;
    });
}
