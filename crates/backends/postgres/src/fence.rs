//! What refuses a late writer, where the data is.
//!
//! One rule: a write is accepted iff the stored token is not larger than the incoming one, and the incoming one is
//! stored in the same atomic step ([`FencingToken::check`]). Equal passes: one holder writes often. Three ways to
//! keep it, and one that needs no token:
//!
//! | way | good for |
//! |---|---|
//! | [`Column`] | rows that may get a column for the token: the check is part of the statement |
//! | [`Column::trigger`] | the same, kept by the database whoever writes |
//! | [`advance`] | data whose table cannot change: a table of tokens by resource, in the same transaction |
//! | [`hold`] | data in the database of the leases: the lease's row is locked until the transaction ends, so nobody can take the lease over before it |
//!
//! ```
//! use mainstay_postgres::fence::Column;
//!
//! let fence = Column::new("accounts", "fence").unwrap();
//! let update = format!("update accounts set balance = $1, {} where id = $2 and {}", fence.set(3), fence.accepts(3));
//! assert_eq!(update, "update accounts set balance = $1, fence = $3 where id = $2 and accounts.fence <= $3");
//! ```

use mainstay_store::{ConfigError, FenceCheck, FencingToken};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, GenericClient};

use crate::config::is_identifier;

/// What the trigger raises. Of a class that is nobody else's.
const STALE: &str = "MS412";

/// A table whose rows carry the token of their last writer in a `bigint` column that is never null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    table: String,
    column: String,
}

impl Column {
    /// `table`, with a schema or without, and its column.
    ///
    /// # Errors
    /// A name that is more than lower-case letters, digits and `_`: the texts made of it go into statements.
    pub fn new(table: &str, column: &str) -> Result<Self, ConfigError> {
        let allowed =
            "lower-case letters, digits and _, up to 40 bytes; a table may have a schema before a dot";
        let parts: Vec<&str> = table.split('.').collect();
        if parts.len() > 2 || !parts.iter().all(|p| is_identifier(p)) {
            return Err(ConfigError::new("table", table, allowed));
        }
        if !is_identifier(column) {
            return Err(ConfigError::new("column", column, allowed));
        }
        Ok(Self { table: table.to_owned(), column: column.to_owned() })
    }

    /// The name that qualifies its columns.
    fn short(&self) -> &str {
        self.table.rsplit('.').next().unwrap_or_default()
    }

    /// For `where`: parameter number `n` is the token of the writer. An update of no row is stale, or the row is
    /// not there; read its column to tell.
    #[must_use]
    pub fn accepts(&self, n: u32) -> String {
        format!("{}.{} <= ${n}", self.short(), self.column)
    }

    /// For `set`: stores parameter number `n`.
    #[must_use]
    pub fn set(&self, n: u32) -> String {
        format!("{} = ${n}", self.column)
    }

    /// For `on conflict .. do update .. where`.
    #[must_use]
    pub fn accepts_conflict(&self) -> String {
        format!("{}.{} <= excluded.{}", self.short(), self.column, self.column)
    }

    /// The statements that let the database itself refuse: an update that lowers the column, and one that clears
    /// it, fails with an error that [`is_stale`] knows. An insert is not checked: there is nothing to compare with.
    /// A delete is not either: delete with [`accepts`](Self::accepts), and keep a row where names come back.
    #[must_use]
    pub fn trigger(&self) -> String {
        let (table, column, short) = (&self.table, &self.column, self.short());
        let schema = table.split_once('.').map_or(String::new(), |(schema, _)| format!("{schema}."));
        format!(
            "create or replace function {schema}{short}_fence() returns trigger language plpgsql as $f$ begin
               if new.{column} is null or new.{column} < old.{column} then
                 raise exception using errcode = '{STALE}',
                   message = format('stale fencing token: %s after %s', coalesce(new.{column}::text, 'none'), old.{column});
               end if;
               return new;
             end $f$;
             create or replace trigger {short}_fence before update on {table}
               for each row execute function {schema}{short}_fence();"
        )
    }
}

/// Whether a statement failed because its token was stale, as the trigger of [`Column::trigger`] says it.
#[must_use]
pub fn is_stale(error: &Error) -> bool {
    error.code().map(SqlState::code) == Some(STALE)
}

/// The table that [`advance`] uses; make it once. Programs that do so together wait for each other.
pub const CREATE: &str = "do $$ begin
    perform pg_advisory_xact_lock(7881696745979404665);
    create table if not exists mainstay_fence (resource text primary key, token int8 not null);
end $$";

/// Stores `token` for `resource` if it is not stale. In the transaction that writes the data, before the write: it
/// locks the resource's row until the commit. Alone, it announces a new holder before its first write.
///
/// A resource is only as safe as its writers: each of them must come through here.
///
/// # Errors
/// When a statement fails; then the transaction must be given up.
///
/// # Cancel safety
/// Give up the transaction.
pub async fn advance<C>(client: &C, resource: &str, token: FencingToken) -> Result<FenceCheck, Error>
where
    C: GenericClient + Sync,
{
    let sql = "insert into mainstay_fence as f (resource, token) values ($1, $2)
               on conflict (resource) do update set token = excluded.token where f.token <= excluded.token
               returning token";
    // Larger numbers than these are no tokens.
    let incoming = i64::try_from(token.get()).unwrap_or(i64::MAX);
    let stored = client.query_typed(sql, &[(&resource, Type::TEXT), (&incoming, Type::INT8)]).await?;
    if !stored.is_empty() {
        return Ok(FenceCheck::Pass);
    }
    let sql = "select token from mainstay_fence where resource = $1";
    let rows = client.query_typed(sql, &[(&resource, Type::TEXT)]).await?;
    let seen: i64 = rows.first().map_or(0, |row| row.get(0));
    Ok(FenceCheck::Stale { seen: FencingToken::new(u64::try_from(seen).unwrap_or(0)) })
}

/// Locks the lease's row, if `token` still holds `name`, until the transaction ends; whether it does.
///
/// The first statement of a transaction in the database of the leases, under read committed. While it lasts nobody
/// takes the lease over, also when it runs out: so data that is written in such transactions only needs no token
/// in it. A renewal waits too, so keep the transaction shorter than a third of the ttl. Go on only if the answer is
/// true; and the commit must come from this session, not from a later try.
///
/// `table` is the one that the store was opened with.
///
/// # Errors
/// When the statement fails; then the transaction must be given up.
///
/// # Cancel safety
/// Give up the transaction.
pub async fn hold<C>(client: &C, table: &str, name: &str, token: FencingToken) -> Result<bool, Error>
where
    C: GenericClient + Sync,
{
    let sql = format!(
        "select from {table} where name = $1 and token = $2 and op_id is not null
         and expires_at > clock_timestamp() for share"
    );
    let token = i64::try_from(token.get()).unwrap_or(i64::MAX);
    let rows = client.query_typed(&sql, &[(&name, Type::TEXT), (&token, Type::INT8)]).await?;
    Ok(!rows.is_empty())
}

#[cfg(test)]
mod tests {
    use super::Column;

    #[test]
    fn names_that_could_carry_a_statement_are_refused() {
        for table in ["", "T", "a;b", "a b", "a.b.c", "1a", "a\"", "a--"] {
            assert_eq!(Column::new(table, "fence").unwrap_err().field(), "table", "{table}");
        }
        assert_eq!(Column::new("t", "f = 1 or 1").unwrap_err().field(), "column");
        let inner = Column::new("s.t", "f").unwrap();
        assert_eq!(inner.accepts(2), "t.f <= $2");
        assert_eq!(inner.accepts_conflict(), "t.f <= excluded.f");
    }
}
