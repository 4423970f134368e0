//! What the service does without a server: it says so, and answers nothing old.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use example_replica_reads::app;
use mainstay::clock::{Runtime, SystemClock};
use mainstay::consistency::session::{Router, TokenKeys};
use mainstay::postgres::replicas::{Endpoint, EndpointConfig};
use tower::ServiceExt as _;

#[tokio::test]
async fn without_a_node_nothing_is_read_and_the_token_is_kept() {
    // A port of loopback on which nobody listens.
    let config = EndpointConfig::builder("postgres://notes@127.0.0.1:1/notes").build().unwrap();
    let endpoint = Endpoint::new(config, &Runtime::system());
    let router = Router::builder("notes", Arc::new(SystemClock::new()))
        .node("primary", endpoint.lender())
        .call_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let service = app(router, TokenKeys::builder("notes").key(1, [7; 32]).build().unwrap());
    for method in ["GET", "POST"] {
        let request = Request::builder().method(method).uri("/notes").body(Body::from("note")).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{method}");
    }
}
