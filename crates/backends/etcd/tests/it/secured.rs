//! A server that encrypts and wants certificates, and one that wants users.

use mainstay_clock::Runtime;
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_sim::servers::Authority;
use mainstay_store::lease::Renewed;
use mainstay_store::{Error, ErrorKind, LeaseStore as _};
use tempfile::TempDir;

use crate::world::{ANSWER, Test, World, ask, in_line, take, until, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("tls_is_trusted_by_its_authority_alone_and_clients_show_who_they_are", |w| Box::pin(certificates(w))),
    ("a_user_is_let_in_and_goes_on_after_its_token_is_forgotten", |w| Box::pin(users(w))),
];

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

async fn open(url: &str) -> Result<EtcdLeases, Error> {
    let config = EtcdConfig::builder(url).request_timeout(ANSWER).build().unwrap();
    EtcdLeases::open(config, &Runtime::system()).await
}

/// It listens before it can be used.
async fn opened(url: &str) -> EtcdLeases {
    let store = std::sync::Mutex::new(None);
    until("it lets us in", || async {
        let tried = open(url).await.ok();
        *store.lock().unwrap() = tried;
        store.lock().unwrap().is_some()
    })
    .await;
    store.into_inner().unwrap().unwrap()
}

/// Refused for good, and nothing secret is told.
async fn refused(url: &str) {
    let error = open(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

async fn certificates(world: World) {
    let (ours, others) = (Authority::new().unwrap(), Authority::new().unwrap());
    let server = world.kit.secured(|address| {
        let (cert, key) = ours.sign(&address.ip().to_string()).unwrap();
        [cert, key, ours.pem().to_owned()]
    });
    let server = server.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ca, wrong) = (file(&dir, "ca.pem", ours.pem()), file(&dir, "wrong.pem", others.pem()));
    let (cert, key) = ours.sign("client").unwrap();
    let (cert, key) = (file(&dir, "cert.pem", &cert), file(&dir, "key.pem", &key));
    let url = |rest: &str| format!("etcds://{}{rest}", server.address());
    let store = opened(&url(&format!("?ca={ca}&cert={cert}&key={key}"))).await;
    assert!(take(&store, "n", "op").await.is_some());
    assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(_)));
    refused(&url(&format!("?ca={wrong}&cert={cert}&key={key}"))).await;
    // The authorities of the system do not know it, if there are any.
    assert!(!open(&url("")).await.unwrap_err().is_retryable());
    assert!(open(&url(&format!("?ca={ca}"))).await.is_err(), "without a certificate nobody is let in");
    assert!(open(&server.url()).await.is_err(), "without encryption neither");
    let files = EtcdConfig::builder(&url(&format!("?ca={cert}.not"))).build().unwrap_err();
    assert_eq!(files.field(), "tls");
}

async fn users(world: World) {
    let mut server = world.kit.single().unwrap();
    for words in
        [&["user", "add", "root:s3cret@:"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
    {
        server.ctl(words).unwrap();
    }
    let url = |login: &str| format!("etcd://{login}{}", server.address());
    let good = url("root:s3cret%40%3A@");
    let (store, second) = (opened(&good).await, opened(&good).await);
    refused(&url("root:s3cret@")).await;
    refused(&url("")).await;
    let token = take(&store, "n", "op").await.unwrap();
    store.acquire(in_line("n", "op-2")).await.unwrap();
    assert!(second.acquire(ask("n", "op-3")).await.is_ok());
    // Tokens of logins are in its memory.
    server.restart().unwrap();
    until("it is renewed", || async {
        matches!(store.renew("op").await, Ok(Renewed::Renewed(g)) if g[0].token == token)
    })
    .await;
    let next = async {
        until("it is given back", || async { store.release("op").await.is_ok() }).await;
        wait_for(&store, in_line("n", "op-2")).await
    };
    assert!(next.await > token);
}
