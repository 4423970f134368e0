//! What sessions ask the server: locks, tokens, and who is there.

use std::time::Duration;

use mainstay_store::lease::{AcquireRequest, Fencing, Grant, Holder, LeaseInfo, Since};
use mainstay_store::{Error, ErrorKind, FencingToken, Outcome, Result};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::{Key, PostgresSessions};
use crate::error::store_error;
use crate::leases::{dated, unix_millis};
use crate::op::Op;
use crate::pool::Lent;
use crate::schema::Tables;

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The advisory locks of this database; `{}` stands for a condition.
pub(super) const LOCKS: &str =
    "locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
                     and classid::int8::text || ':' || objid::int8::text || ':' || objsubid::text";

#[derive(Debug)]
pub(super) struct Texts {
    draw: String,
    alive: String,
    forget: String,
    burn: String,
    held_with: String,
    look: String,
    list: String,
}

impl Texts {
    pub(super) fn new(tables: &Tables) -> Self {
        let table = &tables.lease;
        let (first, next) = (tables.next("0::int8"), tables.next("l.token"));
        let granted = unix_millis("l.granted_at");
        let held = format!(
            "exists (select from pg_locks k where {LOCKS} = l.lock and k.pid = l.pid and k.granted and mode = 'ExclusiveLock')"
        );
        Self {
            draw: format!(
                "insert into {table} as l (name, op_id, owner, token, granted_at, ttl, note, pid, lock)
                 values ($1, $2, $3, {first}, clock_timestamp(), $4, $5, pg_backend_pid(), $6)
                 on conflict (name) do update set op_id = excluded.op_id, owner = excluded.owner, token = {next},
                   granted_at = excluded.granted_at, ttl = excluded.ttl, note = excluded.note, pid = excluded.pid,
                   lock = excluded.lock
                 returning token, current_setting('synchronous_commit') <> 'off'"
            ),
            alive: format!("select count(*) from {table} where op_id = $1 and pid = pg_backend_pid()"),
            forget: format!("update {table} set op_id = null, pid = null where op_id = $1 and pid = pg_backend_pid()"),
            burn: format!(
                "insert into {table} as l (name, token) values ($1, {first})
                 on conflict (name) do update set op_id = null, pid = null, token = {next} returning token"
            ),
            held_with: format!("select exists (select from {table} l where name = $1 and token = $2 and {held})"),
            look: format!(
                "select l.owner, l.token, l.ttl, l.note, {held}, {granted} from {table} l where name = $1"
            ),
            list: format!(
                "select l.owner, l.token, l.ttl, l.note, true, {granted}, l.name from {table} l
                 where name >= $1 and starts_with(name, $1) and {held} order by name limit $2"
            ),
        }
    }
}

fn token(n: i64) -> FencingToken {
    FencingToken::new(u64::try_from(n).unwrap_or(0))
}

impl PostgresSessions {
    /// A short question beside the sessions.
    async fn control(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>> {
        let lent = self.0.control.lend().await?;
        let asked = async { Ok(lent.client().query_typed(sql, parameters).await) };
        let rows = self.0.control.within("a question", Outcome::Unknown, asked).await?;
        match rows {
            Ok(rows) => {
                lent.give_back();
                Ok(rows)
            }
            Err(e) => Err(store_error(e)),
        }
    }

    async fn on_session<T>(
        &self,
        what: &str,
        asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        self.0.sessions.within(what, Outcome::Unknown, async { asked.await.map_err(store_error) }).await
    }

    /// Takes every lock or none; which one is not free.
    pub(super) async fn try_locks(&self, lent: &Lent, keys: &[Key]) -> Result<Option<usize>> {
        let client = lent.client();
        for (i, key) in keys.iter().enumerate() {
            let sql = format!("select pg_try_advisory_lock({})", key.arguments);
            let row = self.on_session("a lock", client.query_typed_one(&sql, &[])).await?;
            if !row.get::<_, bool>(0) {
                self.on_session("unlocking", client.batch_execute("select pg_advisory_unlock_all()")).await?;
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// Draws the tokens, under the locks that its connection holds.
    pub(super) async fn draw(
        &self,
        lent: &Lent,
        request: &AcquireRequest,
        keys: &[Key],
    ) -> Result<Vec<Grant>> {
        let op = Op::of(&request.op_id);
        let (bytes, ttl) = (op.bytes(), i64::try_from(request.ttl.as_micros()).unwrap_or(i64::MAX));
        let mut grants = Vec::with_capacity(keys.len());
        for (name, key) in request.names.iter().zip(keys) {
            let parameters: [Parameter<'_>; 6] = [
                (name, Type::TEXT),
                (&bytes, Type::BYTEA),
                (&request.owner, Type::TEXT),
                (&ttl, Type::INT8),
                (&request.note, Type::TEXT),
                (&key.text, Type::TEXT),
            ];
            let drawn = lent.client().query_typed_one(&self.0.texts.draw, &parameters);
            let row = self.on_session("a token", drawn).await?;
            if self.0.fencing == Fencing::Strict && !row.get::<_, bool>(1) {
                let text = "`synchronous_commit` was switched off while Strict fencing is promised";
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            grants.push(Grant { name: name.clone(), token: token(row.get(0)), ttl: request.ttl });
        }
        Ok(grants)
    }

    /// Whether the session still has every row: a row that was burned is lost, and so is a closed connection.
    pub(super) async fn is_alive(&self, lent: &Lent, op: Op, grants: &[Grant]) -> Result<bool> {
        let bytes = op.bytes();
        let parameters: [Parameter<'_>; 1] = [(&bytes, Type::BYTEA)];
        let asked = async { Ok(lent.client().query_typed_one(&self.0.texts.alive, &parameters).await) };
        let answer = self.0.sessions.within("a renewal", Outcome::Unknown, asked).await?;
        // Any failure of the connection is a loss: the lock lives exactly as long as it.
        Ok(answer.is_ok_and(|row| usize::try_from(row.get::<_, i64>(0)) == Ok(grants.len())))
    }

    /// Whether every lock was held until now.
    pub(super) async fn unlock(&self, lent: &Lent, op: Op, keys: &[Key]) -> Result<bool> {
        if lent.client().is_closed() {
            return Ok(false);
        }
        let bytes = op.bytes();
        let parameters: [Parameter<'_>; 1] = [(&bytes, Type::BYTEA)];
        let rows = lent.client().execute_typed(&self.0.texts.forget, &parameters);
        let rows = self.on_session("a release", rows).await?;
        let mut clean = usize::try_from(rows) == Ok(keys.len());
        for key in keys {
            let sql = format!("select pg_advisory_unlock({})", key.arguments);
            let row = self.on_session("a release", lent.client().query_typed_one(&sql, &[])).await?;
            clean &= row.get::<_, bool>(0);
        }
        Ok(clean)
    }

    /// Ends a session of the server, and waits until it has ended.
    pub(super) async fn terminate(&self, pid: i32, started: i64) -> Result<()> {
        let sql = "select pg_terminate_backend(pid, $3) from pg_stat_activity
                   where pid = $1 and (extract(epoch from backend_start) * 1000000)::int8 = $2";
        let patience = i64::try_from((self.0.control.timeout / 2).as_millis()).unwrap_or(i64::MAX);
        let parameters: [Parameter<'_>; 3] =
            [(&pid, Type::INT4), (&started, Type::INT8), (&patience, Type::INT8)];
        self.control(sql, &parameters).await.map(drop)
    }

    /// How many stand before it, if it stands in one of the queues.
    pub(super) async fn position(&self, pid: i32, keys: &[Key]) -> Result<Option<u32>> {
        let texts: Vec<&str> = keys.iter().map(|k| k.text.as_str()).collect();
        let sql = format!(
            "with w as (select k.*, {LOCKS} = any($1) as ours from pg_locks k where not granted and mode = 'ExclusiveLock')
             select (select count(*) from w o where o.ours and o.classid = w.classid and o.objid = w.objid
                       and o.objsubid = w.objsubid and o.waitstart < w.waitstart)
             from w where ours and pid = $2"
        );
        let rows = self.control(&sql, &[(&texts, Type::TEXT_ARRAY), (&pid, Type::INT4)]).await?;
        Ok(rows.first().map(|row| u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX)))
    }

    /// Whether a session holds every lock.
    pub(super) async fn holds(&self, pid: i32, keys: &[Key]) -> Result<bool> {
        let texts: Vec<&str> = keys.iter().map(|k| k.text.as_str()).collect();
        let sql = format!("select count(*) from pg_locks where {LOCKS} = any($1) and granted and pid = $2");
        let rows = self.control(&sql, &[(&texts, Type::TEXT_ARRAY), (&pid, Type::INT4)]).await?;
        Ok(rows.first().is_some_and(|row| usize::try_from(row.get::<_, i64>(0)) == Ok(keys.len())))
    }

    /// Who has the lock, and since when: the owner of our row, or whatever session it is.
    pub(super) async fn holder(&self, key: &Key, name: &str) -> Result<(String, Option<Since>)> {
        let info = self.look(name, key).await?;
        if let Some(holder) = info.holders.into_iter().next() {
            return Ok((holder.owner, holder.since));
        }
        let sql = format!(
            "select coalesce(nullif(a.application_name, ''), 'a session') || ' (pid ' || k.pid || ')'
             from pg_locks k left join pg_stat_activity a using (pid) where {LOCKS} = $1 and granted limit 1"
        );
        let rows = self.control(&sql, &[(&key.text, Type::TEXT)]).await?;
        Ok((rows.first().map(|row| row.get(0)).unwrap_or_default(), None))
    }

    pub(super) async fn is_held_with(&self, name: &str, token: FencingToken) -> Result<bool> {
        let token = i64::try_from(token.get()).unwrap_or(i64::MAX);
        let rows =
            self.control(&self.0.texts.held_with, &[(&name, Type::TEXT), (&token, Type::INT8)]).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    pub(super) async fn look(&self, name: &str, key: &Key) -> Result<LeaseInfo> {
        let rows = self.control(&self.0.texts.look, &[(&name, Type::TEXT)]).await?;
        let mut info = LeaseInfo::free(name, FencingToken::ZERO);
        if let Some(row) = rows.first() {
            fill(&mut info, row);
        }
        if !info.holders.is_empty() {
            self.0.told.fire(name);
        }
        let sql = format!(
            "select count(*) from pg_locks where {LOCKS} = $1 and not granted and mode = 'ExclusiveLock'"
        );
        let rows = self.control(&sql, &[(&key.text, Type::TEXT)]).await?;
        info.waiting = rows.first().map_or(0, |row| u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX));
        Ok(info)
    }

    pub(super) async fn look_all(&self, prefix: &str, limit: usize) -> Result<Vec<LeaseInfo>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.control(&self.0.texts.list, &[(&prefix, Type::TEXT), (&limit, Type::INT8)]).await?;
        let info = |row: &Row| {
            let mut info = LeaseInfo::free(row.get(6), FencingToken::ZERO);
            fill(&mut info, row);
            info
        };
        Ok(rows.iter().map(info).collect())
    }

    /// Burns a token and ends whoever holds the lock.
    pub(super) async fn burn(&self, name: &str, key: &Key) -> Result<FencingToken> {
        let rows = self.control(&self.0.texts.burn, &[(&name, Type::TEXT)]).await?;
        let burned = rows.first().map_or(FencingToken::ZERO, |row| token(row.get(0)));
        let sql = format!(
            "select pg_terminate_backend(pid, $2) from pg_locks where {LOCKS} = $1 and granted and mode = 'ExclusiveLock'"
        );
        let patience = i64::try_from((self.0.control.timeout / 2).as_millis()).unwrap_or(i64::MAX);
        self.control(&sql, &[(&key.text, Type::TEXT), (&patience, Type::INT8)]).await?;
        Ok(burned)
    }
}

fn fill(info: &mut LeaseInfo, row: &Row) {
    info.last_token = token(row.get(1));
    if row.get(4) {
        // Its end is that of its connection; what is told is how long it lives without renewal.
        let ttl = Duration::from_micros(u64::try_from(row.get::<_, i64>(2)).unwrap_or(0));
        let holder = Holder::new(row.get::<_, String>(0), info.last_token, ttl);
        info.holders.push(holder.with_since(dated(row.get(5))));
        info.note = row.get(3);
    }
}
