//! The tables, and the token rule as SQL.

use mainstay_store::{Error, ErrorKind, Outcome, Result};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::error::store_error;
use crate::pool::{Lent, Pool};

/// The version this program writes, as the comment on the table says it.
const VERSION: u32 = 1;
/// Bits of a token below its epoch.
pub(crate) const COUNTER_BITS: u32 = 48;
/// The largest counter.
const COUNTER: i64 = (1 << COUNTER_BITS) - 1;

/// The names of the tables, and texts made of them.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) lease: String,
    pub(crate) place: String,
    epoch: u16,
}

/// Whoever makes tables waits for whoever else does, until its transaction ends: `if not exists` alone lets two
/// programs that start together run into each other. The key is the name of this project.
pub(crate) const MAKING: &str = "select pg_advisory_xact_lock(7881696745979404665);";

impl Tables {
    pub(crate) fn new(table: &str, epoch: u16) -> Self {
        Self { lease: table.to_owned(), place: format!("{table}_place"), epoch }
    }

    /// The channel on which a change of `name` is told: one for each namespace.
    pub(crate) fn channel(&self, name: &str) -> String {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        let plain = format!("{}:{namespace}", self.lease);
        let clean = |b: u8| b.is_ascii_alphanumeric() || b"_-.:".contains(&b);
        if plain.len() <= 63 && plain.bytes().all(clean) {
            return plain;
        }
        crate::op::Op::of(&format!("channel {plain}")).text()
    }

    /// The smallest token of this moment: timeline and base epoch above the wall clock. Fails on a standby, and
    /// when the epoch has more than 15 bits.
    pub(crate) fn floor(&self) -> String {
        format!(
            "((('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 + {base}) * {unit}::int8 \
             + ((extract(epoch from clock_timestamp()) * 1000000)::int8 / 16) % {unit}::int8)",
            base = self.epoch,
            unit = COUNTER + 1,
        )
    }

    /// The token after the one in column `stored`. Computed under the row's lock. A counter that is used up is an
    /// error, not a carry into the epoch.
    pub(crate) fn next(&self, stored: &str) -> String {
        let floor = self.floor();
        format!(
            "(case when ({stored} & {COUNTER}) = {COUNTER} and {stored} >= {floor} then {max}::int8 \
             else greatest({stored}, {floor} - 1) end + 1)",
            max = i64::MAX,
        )
    }

    fn create(&self) -> String {
        let (lease, place) = (&self.lease, &self.place);
        let index = lease.rsplit('.').next().unwrap_or_default();
        format!(
            "{MAKING}
             create table if not exists {lease} (
               name text collate \"C\" primary key, op_id bytea, owner text not null default '',
               token int8 not null, granted_at timestamptz, expires_at timestamptz not null default '-infinity',
               ttl int8 not null default 0, note text not null default '', released_op bytea,
               names int4 not null default 1, annotation bytea,
               crowd_until timestamptz not null default '-infinity');
             create index if not exists {index}_op on {lease} (op_id) where op_id is not null;
             create table if not exists {place} (
               name text collate \"C\" not null, op_id bytea not null, owner text not null, token int8,
               share int2 not null, permits int8 not null, number int8, expires_at timestamptz not null,
               ttl int8 not null, note text not null, names int4 not null, granted_at timestamptz,
               primary key (name, op_id));
             create index if not exists {index}_place_op on {place} (op_id);
             comment on table {lease} is 'mainstay leases, version {VERSION}';"
        )
    }

    fn create_sessions(&self) -> String {
        format!(
            "{MAKING}
             create table if not exists {lease} (
               name text collate \"C\" primary key, op_id bytea, owner text not null default '',
               token int8 not null, granted_at timestamptz, ttl int8 not null default 0, note text not null default '',
               pid int4, lock text);
             comment on table {lease} is 'mainstay leases, version {VERSION}';",
            lease = self.lease
        )
    }

    /// Makes the tables if they are not there; a role that may not make them finds them made.
    pub(crate) async fn prepare(&self, pool: &std::sync::Arc<Pool>, sessions: bool) -> Result<()> {
        let lent = pool.lend().await?;
        let text = if sessions { self.create_sessions() } else { self.create() };
        let prepared = pool.within("making the tables", Outcome::Unknown, async {
            if self.version(&lent).await?.is_none() {
                // Beside a program that does not take its turn, one of them finds the other's rows in the catalog.
                let made = lent.client().batch_execute(&text).await;
                let raced = |e: &tokio_postgres::Error| {
                    matches!(e.code(), Some(&SqlState::UNIQUE_VIOLATION | &SqlState::DUPLICATE_TABLE))
                };
                match made {
                    Err(e) if raced(&e) => lent.client().batch_execute(&text).await.map_err(store_error)?,
                    other => other.map_err(store_error)?,
                }
            }
            let found = self.version(&lent).await?.flatten();
            if !sessions && found == Some(VERSION) {
                self.date_places(&lent).await?;
            }
            found.ok_or_else(|| {
                let text = format!("`{}` is a table, but not one of ours", self.lease);
                Error::new(ErrorKind::Unsupported, text)
            })
        });
        let found = prepared.await?;
        lent.give_back();
        if found > VERSION {
            let text = format!("the lease tables have version {found}; this program knows up to {VERSION}");
            return Err(Error::new(ErrorKind::NewerVersion, text));
        }
        Ok(())
    }

    /// Tables that an earlier program made say nothing of since when a place is held. The column is one that it leaves alone.
    async fn date_places(&self, lent: &Lent) -> Result<()> {
        let sql = "select exists (select from pg_attribute where attrelid = to_regclass($1) and attname = 'granted_at'
                     and not attisdropped)";
        let row = lent.client().query_typed_one(sql, &[(&self.place, Type::TEXT)]).await;
        if row.map_err(store_error)?.get(0) {
            return Ok(());
        }
        let add = format!("alter table {} add column if not exists granted_at timestamptz", self.place);
        lent.client().batch_execute(&add).await.map_err(|e| {
            let text = format!("the lease tables are of an earlier version; let their owner run `{add}`");
            Error::new(ErrorKind::Unsupported, text).with_source(e)
        })
    }

    /// The version in the table's comment; none without a table, none inside for a table that is not ours.
    async fn version(&self, lent: &Lent) -> Result<Option<Option<u32>>> {
        let sql = "select obj_description(to_regclass($1), 'pg_class') where to_regclass($1) is not null";
        let row = lent.client().query_typed_opt(sql, &[(&self.lease, Type::TEXT)]).await;
        let comment = row.map_err(store_error)?.map(|row| row.get::<_, Option<String>>(0));
        Ok(comment.map(|text| text?.strip_prefix("mainstay leases, version ")?.parse().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::Tables;

    #[test]
    fn channels_fit_into_a_name_of_the_server() {
        let tables = Tables::new("mainstay_lease", 0);
        assert_eq!(tables.channel("billing/invoice/42"), "mainstay_lease:billing");
        assert_eq!(tables.channel("plain"), "mainstay_lease:");
        let long = "n".repeat(255);
        assert_eq!(tables.channel(&format!("{long}/x")).len(), 32);
        assert_ne!(tables.channel("\"a/x"), tables.channel("\"b/x"), "quotes never reach the server");
    }
}
