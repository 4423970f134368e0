//! Real servers as private children of a test: found, started, paused, killed and cleaned up.
//!
//! Every server runs in a folder of its own, on a loopback address drawn for this test process, as an
//! unprivileged user when the tests run as root, and dies with the thread that started it: start it in the main
//! thread of the test target. Processes that a server forks die with it when it is dropped; for a test that is
//! killed they must see to it themselves, so configure servers to fork none where they let you.
//!
//! A server that is not installed registers no test: [`run`] prints `NOT COVERED redis: 3 tests` and passes,
//! unless [`REQUIRE`] is set, as `cargo xtask test` does; then it fails.

mod address;
mod ahead;
#[cfg(feature = "certificates")]
mod authority;
mod etcd;
mod find;
mod mariadb;
mod nats;
mod postgres;
mod process;
mod redis;
mod report;

pub use address::free_address;
pub use ahead::a_day_ahead;
#[cfg(feature = "certificates")]
pub use authority::Authority;
pub use etcd::{Etcd, EtcdCluster, EtcdKit};
pub use find::{FAKETIME, SERVERS_DIR, find, library};
pub use mariadb::{MariaDb, MariaDbKit};
pub use nats::{Nats, NatsKit};
pub use postgres::{Postgres, PostgresKit};
pub use process::{Launch, Server, Setup};
pub use redis::{Redis, RedisKit};
pub use report::{Cover, REQUIRE, Trial, run};
