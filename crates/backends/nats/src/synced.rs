//! Whether acknowledged writes are on disk: asked of the servers themselves, since nobody else can know.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::ConnectOptions;
use futures_util::StreamExt as _;
use mainstay_store::Result;
use serde::Deserialize;

use crate::api::Api;
use crate::bucket::Info;
use crate::config::NatsConfig;
use crate::connect::connect;

/// As many copies survive the loss of one server.
const COPIES: usize = 3;
/// How long servers may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Answer {
    server: Named,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    config: Option<Storage>,
}

#[derive(Deserialize)]
struct Storage {
    #[serde(default)]
    sync_always: bool,
}

/// Whether the bucket has three copies or more, each on a server that syncs before it answers.
///
/// # Errors
/// The system account does not let us in.
pub(crate) async fn is_shown(api: &Api, config: &NatsConfig, info: &Info) -> Result<bool> {
    let Some(system) = &config.system else { return Ok(false) };
    let cluster = info.cluster.clone().unwrap_or_default();
    let mut keepers: Vec<String> = cluster.replicas.into_iter().flatten().map(|p| p.name).collect();
    keepers.push(cluster.leader);
    if keepers.len() < COPIES || info.config.num_replicas < 3 || !info.is_on_disk() {
        return Ok(false);
    }
    let options = ConnectOptions::new().connection_timeout(config.request_timeout);
    let client = connect(options, system, &config.tls).await?;
    let inbox = client.new_inbox();
    let gone = || crate::error::unanswered("servers of the system account");
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| gone())?;
    let question = client.publish_with_reply("$SYS.REQ.SERVER.PING.JSZ", inbox, "{}".into());
    question.await.map_err(|_| gone())?;
    let end = api.clock.now().saturating_add(PATIENCE);
    let mut synced: BTreeMap<String, bool> = BTreeMap::new();
    while keepers.iter().any(|name| !synced.contains_key(name)) {
        let answer = tokio::select! {
            biased;
            answer = answers.next() => answer,
            () = api.clock.sleep_until(end) => None,
        };
        let Some(answer) = answer else { break };
        if let Ok(answer) = serde_json::from_slice::<Answer>(&answer.payload) {
            let always = answer.data.and_then(|d| d.config).is_some_and(|c| c.sync_always);
            synced.insert(answer.server.name, always);
        }
    }
    Ok(keepers.iter().all(|name| synced.get(name) == Some(&true)))
}
