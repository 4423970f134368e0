//! Every snippet of the documents, compiled and run.

#[cfg(feature = "sqlite")]
#[doc = include_str!("../../../../README.md")]
struct Readme;

#[doc = include_str!("../../../../docs/planned-change.md")]
struct PlannedChange;

#[cfg(feature = "definitions")]
#[doc = include_str!("../../../../docs/saga.md")]
struct Sagas;
#[doc = include_str!("../../../../docs/api.md")]
struct Api;
#[doc = include_str!("../../../../docs/README.md")]
struct Contents;
#[doc = include_str!("../../../../docs/backend.md")]
struct Backends;
#[doc = include_str!("../../../../docs/console.md")]
struct Console;
#[doc = include_str!("../../../../docs/operations.md")]
struct Operations;
#[doc = include_str!("../../../../docs/participant.md")]
struct Participants;
#[doc = include_str!("../../../../docs/terms.md")]
struct Terms;
#[doc = include_str!("../../../../docs/failures.md")]
struct Failures;
#[doc = include_str!("../../../../docs/partition.md")]
struct Placement;
#[cfg(feature = "redis")]
#[doc = include_str!("../../../../docs/redis.md")]
struct OnRedis;
#[doc = include_str!("../../../../DESIGN.md")]
struct Design;
#[doc = include_str!("../../../../COMPARE.md")]
struct Compare;

#[doc = include_str!("../../../../docs/limit.md")]
struct Limits;
#[doc = include_str!("../../../../docs/hedge.md")]
struct Hedges;
#[doc = include_str!("../../../../docs/fallback.md")]
struct Fallbacks;
#[doc = include_str!("../../../../docs/outlier.md")]
struct Outliers;
#[doc = include_str!("../../../../docs/fleet.md")]
struct Fleets;
#[cfg(feature = "etcd")]
#[doc = include_str!("../../../../docs/etcd.md")]
struct OnEtcd;

#[cfg(feature = "nats")]
#[doc = include_str!("../../../../docs/nats.md")]
struct OnNats;
#[cfg(feature = "gossip")]
#[doc = include_str!("../../../../docs/gossip.md")]
struct OverGossip;
#[cfg(feature = "postgres")]
#[doc = include_str!("../../../../docs/postgres.md")]
struct Postgres;
#[cfg(feature = "tower")]
#[doc = include_str!("../../../../docs/tower.md")]
struct Layers;
#[cfg(feature = "policies")]
#[doc = include_str!("../../../../docs/order-and-budgets.md")]
struct OrderAndBudgets;

#[cfg(all(feature = "metrics", feature = "policies"))]
#[doc = include_str!("../../../../docs/events-and-metrics.md")]
struct EventsAndMetrics;

#[doc = include_str!("../../../../docs/breaker.md")]
struct Breakers;
#[doc = include_str!("../../../../docs/bulkhead.md")]
struct Bulkheads;
#[doc = include_str!("../../../../docs/retry.md")]
struct Retries;
#[doc = include_str!("../../../../docs/budget.md")]
struct Budgets;
#[doc = include_str!("../../../../docs/timeout.md")]
struct Timeouts;

#[doc = include_str!("../../../../docs/lock.md")]
struct Locks;
#[doc = include_str!("../../../../docs/membership.md")]
struct Membership;
#[doc = include_str!("../../../../docs/cron.md")]
struct Jobs;
#[doc = include_str!("../../../../docs/barrier.md")]
struct Barriers;
#[doc = include_str!("../../../../docs/election.md")]
struct Elections;
#[doc = include_str!("../../../../docs/conflict-resolution.md")]
struct Conflicts;
#[cfg(feature = "documents")]
#[doc = include_str!("../../../../docs/crdt.md")]
struct ReplicatedTypes;
#[cfg(all(feature = "mysql", feature = "postgres", feature = "redis", feature = "tokens"))]
#[doc = include_str!("../../../../docs/sessions.md")]
struct Sessions;
