//! A service of notes. Whoever wrote one finds it again, though reads go to a replica that lags; and is told when a
//! failover lost it.

use axum::extract::Extension;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router as Routes};
use mainstay::consistency::session::carrier::{Carried, SessionLayer};
use mainstay::consistency::session::{CallError, Router, Session, TokenKeys};
use mainstay::postgres::replicas::{Node, TransactionError};
use serde_json::{Value, json};
use tokio_postgres::{Client, Error};

/// The table of the service.
pub const TABLE: &str =
    "create table if not exists note (id int8 generated always as identity, text text not null)";

type Failed = CallError<TransactionError<Error>>;

/// The service. Tokens travel in the header `mainstay-session`; a browser would get a cookie
/// ([`SessionLayer::cookie`]).
pub fn app(router: Router<Node>, keys: TokenKeys) -> Routes {
    Routes::new().route("/notes", get(list).post(write)).layer(SessionLayer::header(router, keys))
}

async fn write(Extension(carried): Extension<Carried<Node>>, text: String) -> Response {
    let mut session = carried.session();
    let insert = async |node: &mut Node| {
        let insert = async |c: &Client| c.execute("insert into note (text) values ($1)", &[&text]).await;
        node.write(insert).await
    };
    match session.write(insert).await {
        Ok(_) => kept(&carried, &mut session, Value::Null).await,
        Err(error) => refused(&carried, &mut session, &error).await,
    }
}

async fn list(Extension(carried): Extension<Carried<Node>>) -> Response {
    let mut session = carried.session();
    let select = async |node: &mut Node| {
        let select = async |c: &Client| c.query("select text from note order by id", &[]).await;
        node.read(select).await
    };
    match session.read(select).await {
        Ok(rows) => {
            let notes: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            kept(&carried, &mut session, json!(notes)).await
        }
        Err(error) => refused(&carried, &mut session, &error).await,
    }
}

/// The answer, with what the session knows now beside it.
async fn kept(carried: &Carried<Node>, session: &mut Session<Node>, body: Value) -> Response {
    match carried.keep(session).await {
        Ok(()) => Json(body).into_response(),
        // What was read has no position any more; without one, the next request might see less.
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// A loss is told once, and the user goes on with what there is.
async fn refused(carried: &Carried<Node>, session: &mut Session<Node>, error: &Failed) -> Response {
    if error.is_lost() && session.accept_loss() && carried.begin_again(session).await.is_ok() {
        let text = "a failover lost what you wrote last; please look at it again";
        return (StatusCode::CONFLICT, text).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
}
