//! One user writes a note and looks for it while the replica stands still, when it has caught up, and after a failover
//! that lost the second note.
//!
//! It starts a private PostgreSQL with a replica, which must be installed (`apt-get install postgresql`); without one
//! it says what it did not show.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use example_replica_reads::{TABLE, app};
use http_body_util::BodyExt as _;
use mainstay::clock::Runtime;
use mainstay::consistency::session::{Router, SessionEvent, TokenKeys};
use mainstay::postgres::replicas::{Endpoint, EndpointConfig, Node};
use mainstay_chaos::proxy::TcpProxy;
use mainstay_sim::servers::{Postgres, PostgresKit};
use tower::ServiceExt as _;

/// Set by `cargo xtask test`: an absent server is a failure.
const REQUIRE: &str = mainstay_sim::servers::REQUIRE;

fn endpoint(server: &Postgres, rt: &Runtime) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::new(EndpointConfig::builder(&server.url()).build()?, rt))
}

/// What the user's browser does: sends the last token, keeps the next one.
struct User {
    service: axum::Router,
    token: Option<String>,
}

impl User {
    async fn ask(&mut self, method: &str, body: &str) -> anyhow::Result<(StatusCode, String)> {
        let mut request = Request::builder().method(method).uri("/notes");
        if let Some(token) = &self.token {
            request = request.header("mainstay-session", token);
        }
        let response = self.service.clone().oneshot(request.body(Body::from(body.to_owned()))?).await?;
        if let Some(token) = response.headers().get("mainstay-session") {
            self.token = Some(token.to_str()?.to_owned());
        }
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Some(kit) = PostgresKit::new()? else {
        ensure!(
            std::env::var_os(REQUIRE).is_none(),
            "PostgreSQL is not installed: apt-get install postgresql"
        );
        println!("NOT COVERED: PostgreSQL is not installed, so nothing was read from a replica");
        return Ok(());
    };
    let rt = Runtime::system();
    let mut primary = kit.primary(&[])?;
    primary.sql(TABLE)?;
    let link = TcpProxy::bind(rt.clone(), 1).await?;
    link.set_upstream(Some(primary.address()));
    let standby = primary.standby_through(link.address(), &[])?;

    let places: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&places);
    let router: Router<Node> = Router::builder("notes", Arc::clone(rt.clock()))
        .node("primary", endpoint(&primary, &rt)?.lender())
        .node("standby", endpoint(&standby, &rt)?.lender())
        .max_wait(Duration::from_millis(50))
        // Samples are taken when this story says so: an old one counts, and a slow machine has time to answer.
        .trust(Duration::from_secs(3_600))
        .call_timeout(Duration::from_secs(60))
        .on_event(move |event| {
            let place = match event {
                SessionEvent::ToReplica { node, .. } => node.clone(),
                SessionEvent::ToPrimary { .. } => "primary".to_owned(),
                _ => return,
            };
            heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(place);
        })
        .build()?;
    let keys = TokenKeys::builder("notes").key(1, [7; 32]).build()?;
    let service = app(router.clone(), keys);
    let place = || places.lock().ok().and_then(|p| p.last().cloned()).unwrap_or_default();
    // A service lets a poller do this (`router.start`); here each step says when samples are taken.
    router.poll_once().await;

    standby.sql("select pg_wal_replay_pause()")?;
    let mut user = User { service: service.clone(), token: None };
    let (status, _) = user.ask("POST", "buy pears").await?;
    ensure!(status == StatusCode::OK, "{status}");
    let (_, stranger) = User { service, token: None }.ask("GET", "").await?;
    println!("somebody else reads from the {}, which stands still: {stranger}", place());
    ensure!(stranger == "[]" && place() == "standby");
    let (_, own) = user.ask("GET", "").await?;
    println!("the writer reads from the {}: {own}", place());
    ensure!(own == "[\"buy pears\"]" && place() == "primary");

    standby.sql("select pg_wal_replay_resume()")?;
    standby.caught_up(&primary)?;
    router.poll_once().await;
    let (_, own) = user.ask("GET", "").await?;
    println!("and from the {}, once that has it: {own}", place());
    ensure!(own == "[\"buy pears\"]" && place() == "standby");

    // The next note never reaches the standby that takes over.
    link.set_upstream(None);
    link.cut();
    user.ask("POST", "buy plums").await?;
    primary.kill()?;
    standby.promote()?;
    router.poll_once().await;
    let (status, told) = user.ask("GET", "").await?;
    println!("after the failover: {status}, {told}");
    ensure!(status == StatusCode::CONFLICT, "a lost write is told");
    let (status, own) = user.ask("GET", "").await.context("after the loss was told")?;
    ensure!(status == StatusCode::OK && own == "[\"buy pears\"]", "{status}: {own}");
    println!("and once it was told, the user goes on with what there is: {own}");
    Ok(())
}
