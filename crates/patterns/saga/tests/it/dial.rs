//! Names, addresses and redirects: what was checked is what is dialed.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Clock, SystemClock};
use mainstay_saga::http::{AddressPolicy, HttpParticipant, Resolve, install_tls};
use mainstay_saga::participant::{Kind, Participant as _, Reply, Request, Verdict, judge};
use mainstay_store::barrier::Op;
use mainstay_store::{BoxFuture, FencingToken};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Answers by script; the last goes on for ever.
#[derive(Clone, Debug)]
struct Names(Arc<Mutex<VecDeque<Vec<IpAddr>>>>);

impl Names {
    fn of(answers: &[&[&str]]) -> Self {
        let parse = |some: &&[&str]| some.iter().map(|a| a.parse().unwrap()).collect();
        Self(Arc::new(Mutex::new(answers.iter().map(parse).collect())))
    }
}

impl Resolve for Names {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut answers = self.0.lock().unwrap();
        let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        Box::pin(async move { next.ok_or_else(|| io::ErrorKind::NotFound.into()) })
    }
}

/// A server that counts its connections and closes each after one answer.
async fn server(answer: &'static str) -> (u16, Arc<Mutex<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(Mutex::new(0));
    let kept = Arc::clone(&count);
    let runtime = mainstay_clock::Runtime::system();
    runtime.spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            *kept.lock().unwrap() += 1;
            // All of it, however many pieces it comes in: what is left unread resets the connection and its answer.
            let (mut all, mut piece) = (Vec::new(), [0; 8192]);
            while !all.ends_with(b"{}") {
                match stream.read(&mut piece).await {
                    Ok(n @ 1..) => all.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, count)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";

fn caller(port: u16, names: Names) -> HttpParticipant {
    install_tls();
    let policy = AddressPolicy::only([format!("http://shop.example:{port}")]).unwrap();
    let policy = policy.allow_network("127.0.0.0/8").unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    HttpParticipant::builder(policy, clock).resolver(Arc::new(names)).build().unwrap()
}

async fn call(caller: &HttpParticipant, url: String) -> Reply {
    let request = Request {
        url,
        body: b"{}".to_vec(),
        idempotency_key: "s/a/action".to_owned(),
        saga: "s".to_owned(),
        definition: "order".to_owned(),
        step: "a".to_owned(),
        op: Op::Action { generation: 1 },
        attempt: 1,
        fencing_token: FencingToken::new(1),
        deadline_wall: None,
        traceparent: None,
        tracestate: None,
        kind: Kind::Act,
    };
    let deadline = SystemClock::new().now().saturating_add(Duration::from_secs(120));
    caller.call(request, deadline).await
}

fn is_done(reply: &Reply) -> bool {
    matches!(judge(&Op::Action { generation: 1 }, reply), Verdict::Done(_))
}

#[tokio::test]
async fn if_a09_sec_15_a_name_that_leads_inside_is_not_dialed() {
    let (port, count) = server(OK).await;
    let url = || format!("http://shop.example:{port}/a");
    for inside in ["169.254.169.254", "10.0.0.1", "::1", "fd00::1", "::ffff:169.254.169.254", "100.64.0.1"] {
        let reply = call(&caller(port, Names::of(&[&[inside]])), url()).await;
        assert!(matches!(&reply, Reply::NotSent(_)), "{inside}: {reply:?}");
    }
    assert_eq!(*count.lock().unwrap(), 0, "nothing was dialed");
    // Of several answers only what is admitted is dialed.
    let mixed = caller(port, Names::of(&[&["169.254.169.254", "127.0.0.1", "10.0.0.1"]]));
    assert!(is_done(&call(&mixed, url()).await));
    assert_eq!(*count.lock().unwrap(), 1);
}

/// Rebinding: the name is fine when the definition is registered and for a while, and then it is not.
#[tokio::test]
async fn sec_15_a_name_that_changes_its_address_gains_nothing() {
    let (port, count) = server(OK).await;
    let caller = caller(port, Names::of(&[&["127.0.0.1"], &["169.254.169.254"]]));
    let url = || format!("http://shop.example:{port}/a");
    assert!(caller.check(&url()).is_ok());
    assert!(is_done(&call(&caller, url()).await));
    for _ in 0..3 {
        let reply = call(&caller, url()).await;
        assert!(matches!(&reply, Reply::NotSent(why) if why.contains("169.254.169.254")), "{reply:?}");
    }
    assert_eq!(*count.lock().unwrap(), 1);
}

#[tokio::test]
async fn sec_15_a_redirect_is_an_answer_and_not_a_way() {
    let (target, count) = server(OK).await;
    let (port, _) = server(
        "HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )
    .await;
    let reply =
        call(&caller(port, Names::of(&[&["127.0.0.1"]])), format!("http://shop.example:{port}/a")).await;
    assert!(matches!(judge(&Op::Action { generation: 1 }, &reply), Verdict::ContractBroken(_)), "{reply:?}");
    assert_eq!(*count.lock().unwrap(), 0);
    // Another port of an allowed host is another origin.
    let reply =
        call(&caller(port, Names::of(&[&["127.0.0.1"]])), format!("http://shop.example:{target}/a")).await;
    assert!(matches!(reply, Reply::NotSent(_)), "{reply:?}");
    assert_eq!(*count.lock().unwrap(), 0);
}

#[tokio::test]
async fn what_nobody_listens_to_was_not_sent() {
    // Bound, so that nobody else gets the port, and not listening.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    let reply =
        call(&caller(port, Names::of(&[&["127.0.0.1"]])), format!("http://shop.example:{port}/a")).await;
    assert!(matches!(reply, Reply::NotSent(_)), "{reply:?}");
    let unknown = call(&caller(port, Names::of(&[])), format!("http://shop.example:{port}/a")).await;
    assert!(matches!(unknown, Reply::NotSent(_)), "{unknown:?}");
}
