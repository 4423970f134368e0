//! What the nodes of a replicated store have, side by side.

use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_consistency::session::{Verdict, verdict};
use mainstay_mysql::MysqlReplicas;
use mainstay_postgres::replicas::{Endpoint, EndpointConfig};
use mainstay_redis::RedisReplicas;
use mainstay_store::replicated::{Observed, Role};
use mainstay_store::{BoxFuture, ReplicatedStore as _};
use serde_json::{Value, json};

use crate::error::{Code, Error, Result};

/// How long a node may take; the others are not kept waiting longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One node and what it said.
pub(super) struct Seen {
    /// Its address, without what a URL may hold of secrets.
    pub(super) node: String,
    pub(super) said: std::result::Result<Observed, String>,
}

/// How a node stands to the one whose history counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Of another cluster or database.
    Foreign,
    /// On a history of the primary's that went elsewhere: sessions do not read from it.
    Fork,
    /// It says that it is primary, of a history that was left.
    OldPrimary,
    Primary,
    Replica,
    /// Nobody is primary, or it has nothing yet: nobody can tell.
    Unknown,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Fork => "fork",
            Self::OldPrimary => "old primary",
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Unknown => "unknown",
        }
    }

    /// Whether somebody has to look at it.
    pub(super) fn is_wrong(self) -> bool {
        matches!(self, Self::Foreign | Self::Fork | Self::OldPrimary)
    }
}

/// A way to ask one node.
type Ask = Box<dyn Fn() -> BoxFuture<'static, std::result::Result<Observed, String>>>;

/// Asks every node at once. `system` names stores that have no name of their own.
///
/// # Errors
/// `BadValue` for what is no URL of a replicated store; a node that does not answer is no error.
pub(super) async fn ask(urls: &[String], system: &str, rt: &Runtime) -> Result<Vec<Seen>> {
    let bad = |e: &dyn std::error::Error| Error::new(Code::BadValue, e.to_string());
    let redis = RedisReplicas::builder(system).request_timeout(PATIENCE).build(rt).map_err(|e| bad(&e))?;
    let mysql = MysqlReplicas::builder(system).request_timeout(PATIENCE).build(rt).map_err(|e| bad(&e))?;
    let mut asks: Vec<Ask> = Vec::new();
    for url in urls {
        asks.push(match scheme(url) {
            "postgres" | "postgresql" => {
                let (url, rt) = (url.clone(), rt.clone());
                Box::new(move || Box::pin(postgres(url.clone(), rt.clone())))
            }
            "redis" | "rediss" => {
                let node = redis.endpoint(url).map_err(|e| bad(&e))?;
                Box::new(move || {
                    let node = node.clone();
                    Box::pin(async move { node.observe().await.map_err(|e| told(&e)) })
                })
            }
            "mysql" => {
                let server = mysql.server(url).map_err(|e| bad(&e))?;
                Box::new(move || {
                    let server = server.clone();
                    Box::pin(async move {
                        let node = server.connect().await.map_err(|e| told(&e))?;
                        node.observe().await.map_err(|e| told(&e))
                    })
                })
            }
            _ => {
                let why = "expected URLs of single servers, such as postgres://USER@HOST/DATABASE, redis://HOST \
                           or mysql://USER@HOST/DATABASE";
                return Err(Error::new(Code::BadValue, why));
            }
        });
    }
    let all = || futures_util::future::join_all(asks.iter().map(|ask| ask()));
    let mut said = all().await;
    if urls.iter().any(|url| scheme(url).starts_with("redis")) {
        // A replica of Redis knows its own past by what the primary told.
        said = all().await;
    }
    Ok(urls.iter().zip(said).map(|(url, said)| Seen { node: address(url), said }).collect())
}

fn scheme(url: &str) -> &str {
    url.split_once("://").map_or("", |(scheme, _)| scheme)
}

async fn postgres(url: String, rt: Runtime) -> std::result::Result<Observed, String> {
    let config = EndpointConfig::builder(&url).connections(1).request_timeout(PATIENCE).build();
    let endpoint = Endpoint::new(config.map_err(|e| e.to_string())?, &rt);
    let node = endpoint.connect().await.map_err(|e| told(&e))?;
    node.observe().await.map_err(|e| told(&e))
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Host, port and database of a URL.
fn address(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    rest.rsplit_once('@').map_or(rest, |(_, rest)| rest).to_owned()
}

/// Of the nodes that say they are primary, the one of the latest history.
pub(super) fn leader(seen: &[Seen]) -> Option<&Observed> {
    let claims = seen.iter().filter_map(|s| s.said.as_ref().ok()).filter(|o| o.role == Role::Primary);
    let later = |a: &Observed, b: &Observed| {
        let number = |o: &Observed| o.mark.timeline.parse::<u64>().unwrap_or(0);
        number(a) > number(b)
            || a.history.iter().any(|s| s.timeline == b.mark.timeline)
            || (number(a), number(b)) == (0, 0) && a.changes > b.changes
    };
    claims.reduce(|best, next| if later(next, best) { next } else { best })
}

/// How `node` stands to the leader.
pub(super) fn state(node: &Observed, leader: Option<&Observed>) -> State {
    let Some(leader) = leader else { return State::Unknown };
    if node == leader {
        return State::Primary;
    }
    if node.mark.timeline.is_empty() {
        // It is being filled anew.
        return State::Unknown;
    }
    let same = node.mark.timeline == leader.mark.timeline;
    let elsewhere = node.history.last().zip(leader.history.last()).is_some_and(|(a, b)| a != b);
    match verdict(&node.mark, leader) {
        Verdict::Foreign => State::Foreign,
        Verdict::Lost { .. } => State::Fork,
        _ if same && elsewhere => State::Fork,
        _ if node.role == Role::Primary => State::OldPrimary,
        _ => State::Replica,
    }
}

/// How far a node is behind the leader, in the store's own unit.
fn lag(node: &Observed, leader: Option<&Observed>) -> Option<u64> {
    match verdict(&leader?.mark, node) {
        Verdict::Satisfied => Some(0),
        Verdict::Behind { by } => by,
        _ => None,
    }
}

/// The row and the JSON of a node.
pub(super) fn shown(seen: &Seen, leader: Option<&Observed>) -> (Vec<String>, Value) {
    match &seen.said {
        Err(why) => {
            let row = [&seen.node, "-", "-", "-", "-", why.as_str()].map(str::to_owned).to_vec();
            (row, json!({"node": seen.node, "error": why}))
        }
        Ok(observed) => {
            let (state, lag) = (state(observed, leader), lag(observed, leader));
            let role = if observed.role == Role::Primary { "primary" } else { "replica" };
            let row = vec![
                seen.node.clone(),
                observed.mark.system.clone(),
                observed.mark.timeline.clone(),
                observed.mark.position.to_string(),
                lag.map_or_else(|| "-".to_owned(), |by| by.to_string()),
                state.as_str().to_owned(),
            ];
            let history: Vec<Value> = observed
                .history
                .iter()
                .map(|s| json!({"timeline": s.timeline, "left_at": s.position.to_string(), "next": s.next}))
                .collect();
            let json = json!({
                "node": seen.node, "says": role, "state": state.as_str(), "system": observed.mark.system,
                "timeline": observed.mark.timeline, "position": observed.mark.position.to_string(), "lag": lag,
                "history": history,
            });
            (row, json)
        }
    }
}

#[cfg(test)]
mod tests {
    use mainstay_store::replicated::{Mark, Position, TimelineSwitch};

    use super::*;

    fn node(role: Role, timeline: &str, lsn: u64, left: Option<u64>) -> Observed {
        let mark = Mark { system: "7".into(), timeline: timeline.into(), position: Position::Lsn(lsn) };
        let left = left.map(|at| TimelineSwitch {
            timeline: "1".into(),
            position: Position::Lsn(at),
            next: timeline.into(),
        });
        Observed::new(mark, left.into_iter().collect()).with_role(role)
    }

    #[test]
    fn how_nodes_stand_to_the_primary() {
        let leader = node(Role::Primary, "2", 100, Some(50));
        for (other, expected, behind) in [
            (leader.clone(), State::Primary, Some(0)),
            (node(Role::Replica, "2", 90, Some(50)), State::Replica, Some(10)),
            (node(Role::Replica, "1", 40, None), State::Replica, None),
            (node(Role::Replica, "1", 60, None), State::Fork, None),
            (node(Role::Primary, "1", 50, None), State::OldPrimary, None),
            (node(Role::Primary, "1", 60, None), State::Fork, None),
            (node(Role::Primary, "2", 60, Some(55)), State::Fork, Some(40)),
        ] {
            assert_eq!(state(&other, Some(&leader)), expected, "{other:?}");
            assert_eq!(lag(&other, Some(&leader)), behind, "{other:?}");
        }
        let mut foreign = node(Role::Replica, "2", 1, Some(50));
        foreign.mark.system = "8".into();
        assert_eq!(state(&foreign, Some(&leader)), State::Foreign);
        assert_eq!(state(&foreign, None), State::Unknown);
    }

    #[test]
    fn the_later_history_leads() {
        let seen = |observed| Seen { node: String::new(), said: Ok(observed) };
        let (old, new) = (node(Role::Primary, "1", 900, None), node(Role::Primary, "2", 60, Some(50)));
        for nodes in [[old.clone(), new.clone()], [new.clone(), old]] {
            assert_eq!(leader(&nodes.map(seen)), Some(&new));
        }
    }

    #[test]
    fn addresses_keep_no_secrets() {
        assert_eq!(address("postgres://app:s3cr@t@db-1:5433/app?sslmode=disable"), "db-1:5433/app");
        assert_eq!((scheme("mysql://a/b"), scheme("db-1")), ("mysql", ""));
    }
}
