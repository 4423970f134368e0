//! A server that lets our user in only encrypted and with a certificate.

use mainstay_clock::Runtime;
use mainstay_postgres::PostgresLeases;
use mainstay_postgres::replicas::{Endpoint, EndpointConfig};
use mainstay_sim::servers::Authority;
use mainstay_store::lease::Renewed;
use mainstay_store::{Error, ErrorKind, LeaseStore as _, ReplicatedStore as _};
use tempfile::TempDir;

use crate::world::{Test, World, direct, take};

pub(crate) const TESTS: &[Test] =
    &[("tls_by_url_is_trusted_by_its_authority_alone_and_shows_who_it_is", |w| Box::pin(certificates(w)))];

fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

async fn open(url: &str) -> Result<PostgresLeases, Error> {
    PostgresLeases::open(direct(url).build().unwrap(), &Runtime::system()).await
}

async fn certificates(world: World) {
    let (ours, others) = (Authority::new().unwrap(), Authority::new().unwrap());
    let server = world.kit.secured(|address| {
        let (cert, key) = ours.sign(&address.ip().to_string()).unwrap();
        [cert, key, ours.pem().to_owned()]
    });
    let server = server.unwrap();
    server.sql("create role app login; create schema app authorization app").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ca, wrong) = (file(&dir, "ca.pem", ours.pem()), file(&dir, "wrong.pem", others.pem()));
    let (cert, key) = ours.sign("client").unwrap();
    let (cert, key) = (file(&dir, "cert.pem", &cert), file(&dir, "key.pem", &key));
    let url = |rest: &str| format!("postgres://app@{}/postgres?{rest}", server.address());
    let good = url(&format!("sslmode=verify-full&sslrootcert={ca}&sslcert={cert}&sslkey={key}"));
    let store = open(&good).await.unwrap();
    assert!(take(&store, "n", "op").await.is_some());
    assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(_)));
    let endpoint = Endpoint::new(EndpointConfig::builder(&good).build().unwrap(), &Runtime::system());
    assert!(endpoint.connect().await.unwrap().observe().await.is_ok());
    for bad in [
        // Another authority, and none that the system knows.
        format!("sslmode=require&sslrootcert={wrong}&sslcert={cert}&sslkey={key}"),
        format!("sslmode=require&sslcert={cert}&sslkey={key}"),
    ] {
        let error = open(&url(&bad)).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unsupported, false), "{bad}: {error:?}");
    }
    assert!(
        open(&url(&format!("sslmode=require&sslrootcert={ca}"))).await.is_err(),
        "no certificate of its own"
    );
    assert!(open(&url("sslmode=disable")).await.is_err(), "no encryption");
    // The key of somebody else.
    let (_, other) = ours.sign("other").unwrap();
    let other = file(&dir, "other.pem", &other);
    let bad = url(&format!("sslmode=require&sslrootcert={ca}&sslcert={cert}&sslkey={other}"));
    assert_eq!(direct(&bad).build().unwrap_err().field(), "tls");
}
