//! Tokens in headers and cookies.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use mainstay_consistency::session::carrier::{Carried, SessionLayer};
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
