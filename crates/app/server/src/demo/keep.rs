//! `--keep`: after the audit everything comes up again, with one order that only a person can end.

use mainstay_chaos::proxy::{HttpFaults, HttpProxy};
use mainstay_clock::Runtime;
use serde_json::json;

use super::children::Places;
use super::orders::SERVICES;
use crate::error::{Code, Error, Result};

/// Starts services and node without faults, starts one order that gets stuck, and waits for the signal that
/// ends the demo.
pub(super) async fn keep(rt: &Runtime, places: &Places, proxies: &[HttpProxy]) -> Result<()> {
    let mut services = Vec::with_capacity(SERVICES.len());
    for (service, proxy) in SERVICES.iter().zip(proxies) {
        proxy.set_faults(HttpFaults::none());
        let server = places.service(rt, service.name).await?;
        proxy.set_upstream(Some(server.address));
        services.push(server);
    }
    let node = places.node(rt).await?;
    // Shipping says no, and the refund is refused: the money is with somebody who closed the account.
    let order = json!({
        "definition": "order",
        "id": "order-stuck",
        "input": {
            "order": "order-stuck", "items": 1, "cents": 4_200, "article": "apple", "card": "fine",
            "address": "nowhere", "account": "closed",
        },
    });
    let client = reqwest::Client::builder().no_proxy().timeout(super::run::ANSWER).build();
    let client = client.map_err(|e| Error::with(Code::Internal, "no HTTP client", e))?;
    client
        .post(format!("http://{}/v1/sagas", node.address))
        .header("content-type", "application/json")
        .header("idempotency-key", "\"start-order-stuck\"")
        .body(order.to_string())
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|e| Error::with(Code::Unreachable, "the node does not take the stuck order", e))?;
    eprintln!("mainstay demo: the node is up at http://{}", node.address);
    eprintln!("mainstay demo: the console is at http://{}{}", node.address, crate::console::MOUNT);
    eprintln!("mainstay demo: `order-stuck` will wait for a person; Ctrl-C ends everything");
    std::future::pending().await
}
