//! Tokens in headers and cookies, in the metadata of gRPC and of messages.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use mainstay_consistency::session::carrier::{Carried, SessionLayer};
use mainstay_consistency::session::headers::{Headers, NAME};
use mainstay_consistency::session::{Guarantees, SessionEvent};
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::session_tokens::keys;
use super::sessions::{Conn, World, get, on_paused, put};

/// Writes when asked to, and answers with what it reads; the write is answered with an error of HTTP.
async fn handle(request: Request<&'static str>) -> Result<Response<Vec<u8>>, Infallible> {
    let carried: Carried<Conn> = request.extensions().get::<Carried<Conn>>().unwrap().clone();
    let mut session = carried.session();
    let (mut body, mut status) = (Vec::new(), 200);
    if *request.body() == "write" {
        put(&mut session, "k", b"1").await.unwrap();
        status = 500;
    } else {
        body = get(&mut session, "k").await.unwrap().unwrap_or_default();
    }
    carried.keep(&mut session).await.unwrap();
    Ok(Response::builder().status(status).body(body).unwrap())
}

fn lagging() -> World {
    let w = World::new(|b| b.max_wait(Duration::from_millis(1)));
    (1..3).for_each(|i| w.cluster.set_lag(i, Duration::from_secs(3600)).unwrap());
    w
}

#[test]
fn a_header_carries_what_was_written_even_on_an_error() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        let service = SessionLayer::header(w.router.clone(), keys()).layer(service_fn(handle));
        let wrote = service.clone().oneshot(Request::new("write")).await.unwrap();
        assert_eq!(wrote.status(), 500);
        let token = wrote.headers()["mainstay-session"].clone();
        let read = |token: Option<http::HeaderValue>| {
            let mut request = Request::new("read");
            token.map(|t| request.headers_mut().insert("mainstay-session", t));
            service.clone().oneshot(request)
        };
        let mine = read(Some(token)).await.unwrap();
        assert_eq!(mine.body(), b"1");
        assert!(mine.headers().contains_key("mainstay-session"));
        assert_eq!(read(None).await.unwrap().body(), b"", "somebody else is served by a replica");
        let garbage = http::HeaderValue::from_bytes(b"\xff\xfe").unwrap();
        assert_eq!(read(Some(garbage)).await.unwrap().body(), b"1", "what cannot be read means the primary");
    });
}

#[test]
fn a_cookie_is_set_with_its_protections_and_found_among_others() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        let service = SessionLayer::cookie(w.router.clone(), keys()).layer(service_fn(handle));
        let wrote = service.clone().oneshot(Request::new("write")).await.unwrap();
        let cookie = wrote.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.ends_with("; Path=/; HttpOnly; Secure; SameSite=Lax"), "{cookie}");
        let pair = cookie.split(';').next().unwrap();
        let mut request = Request::new("read");
        request.headers_mut().insert("cookie", format!("a=b; {pair}; c=d").parse().unwrap());
        assert_eq!(service.oneshot(request).await.unwrap().body(), b"1");
    });
}

#[test]
fn the_token_of_the_request_goes_on_if_nobody_keeps_a_session() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        let token = session.token().await.unwrap();
        let now = mainstay_clock::Clock::wall(&w.clock);
        let idle = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
        let service = SessionLayer::header(w.router.clone(), keys()).layer(idle);
        let mut request = Request::new(());
        request.headers_mut().insert("mainstay-session", keys().seal(&token, now).parse().unwrap());
        let response = service.oneshot(request).await.unwrap();
        let text = response.headers()["mainstay-session"].to_str().unwrap();
        assert_eq!(keys().open(text, now), Ok(token));
    });
}

#[test]
fn p14_who_begins_again_drops_the_lost_token_and_not_a_newer_one() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        let now = mainstay_clock::Clock::wall(&w.clock);
        let mut before = w.router.session();
        put(&mut before, "k", b"1").await.unwrap();
        let came = keys().seal(&before.token().await.unwrap(), now);
        // Two parts of one request: the first writes, the second was told of a loss and begins again.
        let handle = service_fn(async |request: Request<bool>| {
            let carried: Carried<Conn> = request.extensions().get::<Carried<Conn>>().unwrap().clone();
            let (mut writes, mut begins) = (carried.session(), w.router.session());
            if *request.body() {
                put(&mut writes, "k", b"2").await.unwrap();
                carried.keep(&mut writes).await.unwrap();
            }
            carried.begin_again(&mut begins).await.unwrap();
            Ok::<_, Infallible>(Response::new(()))
        });
        let service = SessionLayer::header(w.router.clone(), keys()).layer(handle);
        for also_writes in [true, false] {
            let mut request = Request::new(also_writes);
            request.headers_mut().insert("mainstay-session", came.parse().unwrap());
            let response = service.clone().oneshot(request).await.unwrap();
            let text = response.headers()["mainstay-session"].to_str().unwrap();
            let mut next = w.router.session().resume_sealed(text, &keys());
            let found = get(&mut next, "k").await.unwrap();
            let wanted: Option<&[u8]> = if also_writes { Some(b"2") } else { None };
            assert_eq!(found.as_deref(), wanted, "also_writes: {also_writes}");
        }
    });
}

/// A worker that got `headers` with its message reads what its producer wrote.
async fn carries(w: &World, mut headers: impl Headers) {
    let mut session = w.router.session();
    put(&mut session, "k", b"1").await.unwrap();
    session.attach(&mut headers, &keys()).await.unwrap();
    let mut worker = w.router.session().resume_from(&headers, &keys());
    assert_eq!(get(&mut worker, "k").await.unwrap().as_deref(), Some(&b"1"[..]));
    // Whatever the worker sends on carries it too, in place of what was there.
    worker.attach(&mut headers, &keys()).await.unwrap();
    let mut count = 0;
    headers.each(NAME, &mut |_| count += 1);
    assert_eq!(count, 1);
}

#[test]
fn messages_carry_what_was_written_in_whatever_headers_their_client_has() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        carries(&w, BTreeMap::<String, String>::new()).await;
        carries(&w, HashMap::<String, Vec<u8>>::new()).await;
        carries(&w, vec![(NAME.to_owned(), "stale".to_owned()), ("other".to_owned(), "x".to_owned())]).await;
        carries(&w, HeaderMap::new()).await;
        let mut nobody = w.router.session().resume_from(&HeaderMap::new(), &keys());
        assert_eq!(get(&mut nobody, "k").await.unwrap(), None, "no token claims nothing");
    });
}

#[test]
fn p18_metadata_that_cannot_be_read_means_the_primary_and_never_any_version() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        let mut session = w.router.session();
        put(&mut session, "k", b"1").await.unwrap();
        let good = keys().seal(&session.token().await.unwrap(), mainstay_clock::Clock::wall(&w.clock));
        let list =
            |values: &[&[u8]]| values.iter().map(|v| (NAME.to_owned(), v.to_vec())).collect::<Vec<_>>();
        let cases =
            [list(&[b"garbage"]), list(&[b"\xff\xfe"]), list(&[b""]), list(&[good.as_bytes(), b"garbage"])];
        for (refusals, headers) in cases.iter().enumerate() {
            let mut worker = w.router.session().resume_from(headers, &keys());
            assert_eq!(w.heard(|e| matches!(e, SessionEvent::TokenRefused { .. })), refusals + 1);
            // What it sends on before it knows anything is no licence for the next one either.
            let mut onward = HeaderMap::new();
            worker.attach(&mut onward, &keys()).await.unwrap();
            let mut next = w.router.session().resume_from(&onward, &keys());
            assert_eq!(get(&mut next, "k").await.unwrap().as_deref(), Some(&b"1"[..]), "{headers:?}");
            assert_eq!(get(&mut worker, "k").await.unwrap().as_deref(), Some(&b"1"[..]), "{headers:?}");
        }
        assert_eq!(w.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), 0);
    });
}

#[test]
fn a_failed_call_of_grpc_brings_its_token_back_in_metadata_and_trailers() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        // What a gRPC server sends for a call that failed: headers alone, with the status among them.
        let failing = service_fn(async |request: Request<()>| {
            let carried = request.extensions().get::<Carried<Conn>>().unwrap().clone();
            let mut session = carried.session();
            put(&mut session, "k", b"1").await.unwrap();
            carried.keep(&mut session).await.unwrap();
            let reply =
                Response::builder().header("content-type", "application/grpc").header("grpc-status", "13");
            Ok::<_, Infallible>(reply.body(()).unwrap())
        });
        let reply =
            SessionLayer::header(w.router.clone(), keys()).layer(failing).oneshot(Request::new(())).await;
        let mut caller = w.router.session();
        caller.take_from(reply.unwrap().headers(), &keys());
        assert_eq!(get(&mut caller, "k").await.unwrap().as_deref(), Some(&b"1"[..]));

        // A stream ends with trailers: both are joined, the later write is found.
        let (mut trailers, mut server) = (HeaderMap::new(), w.router.session());
        put(&mut server, "k", b"2").await.unwrap();
        server.attach(&mut trailers, &keys()).await.unwrap();
        caller.take_from(&trailers, &keys());
        assert_eq!(get(&mut caller, "k").await.unwrap().as_deref(), Some(&b"2"[..]));
    });
}

#[test]
fn p18_the_debt_of_a_token_that_cannot_be_read_is_passed_on_until_the_primary_was_asked() {
    on_paused(async {
        let both = [Guarantees::READ_YOUR_WRITES, Guarantees::MONOTONIC_READS];
        for (asked, with_good, writes) in both.iter().flat_map(|g| {
            [(true, false), (false, true), (false, false)].map(|(good, writes)| (*g, good, writes))
        }) {
            let w = lagging();
            w.router.poll_once().await;
            let mut before = w.router.session();
            put(&mut before, "k", b"old").await.unwrap();
            (1..3).for_each(|i| w.cluster.set_lag(i, Duration::ZERO).unwrap());
            let good = keys().seal(&before.token().await.unwrap(), mainstay_clock::Clock::wall(&w.clock));
            (1..3).for_each(|i| w.cluster.set_cut(i, true).unwrap());
            w.router.poll_once().await;
            put(&mut before, "k", b"new").await.unwrap();
            // The token that has the newer write does not open.
            let mut middle = w.router.session().guarantees(asked);
            if with_good {
                middle = middle.resume_sealed(&good, &keys());
            }
            middle = middle.resume_sealed("garbage", &keys());
            if writes {
                put(&mut middle, "other", b"x").await.unwrap();
            }
            let mut onward = HeaderMap::new();
            middle.attach(&mut onward, &keys()).await.unwrap();
            let mut next = w.router.session().guarantees(asked).resume_from(&onward, &keys());
            let case = format!("{asked:?}, good: {with_good}, writes: {writes}");
            assert_eq!(get(&mut next, "k").await.unwrap().as_deref(), Some(&b"new"[..]), "{case}");
            // Then a position stands for it, under every guarantee, and nothing is owed any more.
            let known = next.token().await.unwrap();
            assert!(!known.is_owed() && known.positions().len() == 1, "{case}");
            // The same after a read of the one that was refused.
            get(&mut middle, "k").await.unwrap();
            let mut after =
                w.router.session().guarantees(asked).resume(&middle.token().await.unwrap()).unwrap();
            assert_eq!(get(&mut after, "k").await.unwrap().as_deref(), Some(&b"new"[..]), "{case}");
        }
    });
}

#[test]
fn several_tokens_of_one_request_are_joined_and_none_is_dropped() {
    on_paused(async {
        let w = lagging();
        w.router.poll_once().await;
        let now = mainstay_clock::Clock::wall(&w.clock);
        let mut session = w.router.session();
        put(&mut session, "j", b"0").await.unwrap();
        let old = keys().seal(&session.token().await.unwrap(), now);
        (1..3).for_each(|i| w.cluster.set_lag(i, Duration::ZERO).unwrap());
        (1..3).for_each(|i| w.cluster.set_cut(i, true).unwrap());
        w.router.poll_once().await;
        put(&mut session, "k", b"1").await.unwrap();
        let new = keys().seal(&session.token().await.unwrap(), now);
        let header = SessionLayer::header(w.router.clone(), keys()).layer(service_fn(handle));
        let cookie = SessionLayer::cookie(w.router.clone(), keys()).layer(service_fn(handle));
        for second in [new.as_str(), "garbage"] {
            let mut request = Request::new("read");
            request.headers_mut().append(NAME, old.parse().unwrap());
            request.headers_mut().append(NAME, second.parse().unwrap());
            assert_eq!(header.clone().oneshot(request).await.unwrap().body(), b"1", "{second}");
            // Another cookie that is no ASCII hides none of them.
            let text = format!("a=\u{e4}; mainstay_session={old}; mainstay_session={second}");
            let mut request = Request::new("read");
            request.headers_mut().insert("cookie", http::HeaderValue::from_bytes(text.as_bytes()).unwrap());
            assert_eq!(cookie.clone().oneshot(request).await.unwrap().body(), b"1", "{second}");
        }
    });
}
