//! The middleware: what is refused, what is remembered, and that nothing old runs beside something new.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response};
use mainstay_clock::SystemClock;
use mainstay_coordination::{Fencing, FencingLayer};
use mainstay_store::memory::MemoryRecordStore;
use mainstay_store::{
    BoxFuture, Error, ErrorKind, FencingToken, PutIf, RecordStore, Result, VersionedRecord,
};
use tower::{Layer, Service, ServiceExt, service_fn};

fn path(parts: &Parts) -> Option<String> {
    (parts.method == http::Method::PUT).then(|| parts.uri.path().to_owned())
}

fn records() -> Arc<MemoryRecordStore> {
    Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())))
}

fn put(path: &str, token: Option<&str>) -> Request<()> {
    let mut request = Request::put(path);
    if let Some(token) = token {
        request = request.header("fencing-token", token);
    }
    request.body(()).unwrap()
}

/// Answers with the token that it was given.
fn guarded(
    records: Arc<dyn RecordStore>,
) -> Fencing<impl Service<Request<()>, Response = Response<u64>, Error = Infallible, Future: Send> + Clone> {
    FencingLayer::new(records, path).layer(service_fn(|request: Request<()>| async move {
        let token = request.extensions().get::<FencingToken>().map_or(0, |t| t.get());
        Ok::<_, Infallible>(Response::new(token))
    }))
}

async fn status(records: &Arc<MemoryRecordStore>, request: Request<()>) -> (u16, u64, Option<String>) {
    let answer = guarded(Arc::clone(records) as Arc<dyn RecordStore>).oneshot(request).await.unwrap();
    let seen = answer.headers().get("fencing-token").map(|v| v.to_str().unwrap().to_owned());
    (answer.status().as_u16(), *answer.body(), seen)
}

#[tokio::test]
async fn k09_requests_of_old_holders_are_refused_whoever_serves_them() {
    let store = records();
    assert_eq!(status(&store, put("/a", Some("7"))).await, (200, 7, None));
    assert_eq!(status(&store, put("/a", Some("\"7\""))).await, (200, 7, None), "one holder writes often");
    assert_eq!(status(&store, put("/a", Some("9"))).await, (200, 9, None));
    // Each call has a service of its own, as after a restart: the store remembers.
    assert_eq!(status(&store, put("/a", Some("8"))).await, (412, 0, Some("9".to_owned())));
    assert_eq!(status(&store, put("/b", Some("8"))).await, (200, 8, None), "another resource");
    assert_eq!(status(&store, put("/a", None)).await, (428, 0, None));
    assert_eq!(status(&store, put("/a", Some("nine"))).await, (400, 0, None));
    let get = Request::get("/a").body(()).unwrap();
    assert_eq!(status(&store, get).await, (200, 0, None), "nothing is guarded there");
}

/// Records that cannot be reached, or that somebody else changes at every look.
#[derive(Debug)]
struct Shaky {
    inner: Arc<MemoryRecordStore>,
    down: AtomicBool,
    raced: AtomicU64,
}

impl RecordStore for Shaky {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        if self.down.load(Ordering::Relaxed) {
            return Box::pin(async { Err(Error::new(ErrorKind::Unavailable, "down")) });
        }
        self.inner.get(key)
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        Box::pin(async move {
            let left = self.raced.load(Ordering::Relaxed);
            if left > 0 {
                self.raced.store(left - 1, Ordering::Relaxed);
                let seen = self.inner.get(&key).await?.map(|r| r.version);
                self.inner.put_if(&key, seen, b"5".to_vec(), None).await?;
            }
            self.inner.put_if(&key, expected, value, ttl).await
        })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        self.inner.delete_if(key, expected)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        self.inner.list(prefix, after, limit)
    }
}

#[tokio::test]
async fn a_store_that_cannot_say_what_it_saw_lets_nobody_through() {
    let shaky = Arc::new(Shaky { inner: records(), down: AtomicBool::new(true), raced: AtomicU64::new(0) });
    let ask = |token: &'static str| {
        let service = guarded(Arc::clone(&shaky) as Arc<dyn RecordStore>);
        async move { service.oneshot(put("/a", Some(token))).await.unwrap().status().as_u16() }
    };
    assert_eq!(ask("7").await, 503);
    shaky.down.store(false, Ordering::Relaxed);
    // Another server lets 5 pass between the look and the write: looked at again.
    shaky.raced.store(1, Ordering::Relaxed);
    assert_eq!(ask("4").await, 412);
    shaky.raced.store(1, Ordering::Relaxed);
    assert_eq!(ask("7").await, 200);
    shaky.raced.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(ask("8").await, 503, "it does not go on for ever");
}

/// A request of the old holder that is under way holds up the new one: nothing is written behind its back.
#[tokio::test]
async fn f25_a_request_under_way_ends_before_one_with_a_larger_token_begins() {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let go: Arc<tokio::sync::Notify> = Arc::default();
    let (told, waits) = (Arc::clone(&log), Arc::clone(&go));
    let service = FencingLayer::new(records(), path).layer(service_fn(move |request: Request<()>| {
        let token = request.extensions().get::<FencingToken>().unwrap().get();
        let (log, go) = (Arc::clone(&told), Arc::clone(&waits));
        async move {
            log.lock().unwrap().push(format!("begin {token}"));
            if token == 1 {
                go.notified().await;
            }
            log.lock().unwrap().push(format!("end {token}"));
            Ok::<_, Infallible>(Response::new(()))
        }
    }));
    let old = service.clone().oneshot(put("/a", Some("1")));
    let new = service.clone().oneshot(put("/a", Some("2")));
    let rest = async {
        let other = service.clone().oneshot(put("/b", Some("2"))).await.unwrap();
        assert_eq!(other.status(), 200, "another resource does not wait");
        tokio::task::yield_now().await;
        go.notify_one();
    };
    let (old, new, ()) = futures_util::future::join3(old, new, rest).await;
    assert_eq!((old.unwrap().status(), new.unwrap().status()), (http::StatusCode::OK, http::StatusCode::OK));
    let lines = log.lock().unwrap().clone();
    assert_eq!(lines, ["begin 1", "begin 2", "end 2", "end 1", "begin 2", "end 2"]);
    // A request that is dropped gives its turn on.
    let hung = service.clone().oneshot(put("/a", Some("2")));
    drop(hung);
    assert_eq!(service.oneshot(put("/a", Some("1"))).await.unwrap().status(), 412);
}
