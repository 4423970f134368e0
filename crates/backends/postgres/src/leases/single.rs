//! The exclusive lease of one name: one statement per call.

use std::time::Duration;

use futures_util::future::join;
use mainstay_clock::WallTime;
use mainstay_store::lease::{AcquireRequest, Grant, Released, Renewed, Since};
use mainstay_store::{Error, ErrorKind, FencingToken, Outcome, Result};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::PostgresLeases;
use crate::error::{is_locked, is_usable_after, store_error};
use crate::op::Op;
use crate::pool::Lent;
use crate::schema::Tables;

/// What the one statement can say.
pub(super) enum Asked {
    /// Others than exclusive holders are there, or stand in line.
    Crowd,
    /// It was held when asked for and is free now.
    Freed,
    Granted(FencingToken),
    Held {
        by: String,
        remaining: Option<Duration>,
        since: Option<Since>,
    },
}

/// The statements, made once.
#[derive(Debug)]
pub(super) struct Texts {
    acquire: String,
    who: String,
    renew: String,
    release: String,
    elsewhere: String,
    bury: String,
    released: String,
}

impl Texts {
    pub(super) fn new(tables: &Tables) -> Self {
        let (lease, place) = (&tables.lease, &tables.place);
        let (first, next) = (tables.next("0::int8"), tables.next("l.token"));
        let granted = unix_millis("granted_at");
        Self {
            // `clock_timestamp` is read under the row's lock, `now` would be read before the wait for it.
            acquire: format!(
                "insert into {lease} as l (name, op_id, owner, token, granted_at, expires_at, ttl, note)
                 values ($1, $2, $3, {first}, clock_timestamp(), clock_timestamp() + $4 * interval '1 microsecond',
                         $4, $5)
                 on conflict (name) do update set
                   op_id = excluded.op_id, owner = excluded.owner, ttl = excluded.ttl, note = excluded.note, names = 1,
                   granted_at = case when l.op_id = excluded.op_id then l.granted_at else clock_timestamp() end,
                   annotation = case when l.op_id = excluded.op_id then l.annotation end,
                   token = case when l.op_id = excluded.op_id then l.token else {next} end,
                   expires_at = clock_timestamp() + $4 * interval '1 microsecond'
                 where l.released_op is distinct from excluded.op_id and l.crowd_until <= clock_timestamp()
                   and (l.expires_at <= clock_timestamp() or l.op_id = excluded.op_id)
                 returning token, current_setting('synchronous_commit') <> 'off'"
            ),
            who: format!(
                "select owner, case when expires_at <= clock_timestamp() then 0 when isfinite(expires_at)
                          then (extract(epoch from expires_at - clock_timestamp()) * 1000000)::int8 end,
                        released_op is not distinct from $2, crowd_until > clock_timestamp(), {granted}
                 from {lease} where name = $1"
            ),
            // All names of an acquisition or none: one that was broken loses the others too.
            renew: format!(
                "update {lease} l set expires_at = clock_timestamp() + ttl * interval '1 microsecond'
                 where op_id = $1 and expires_at > clock_timestamp() and names =
                   (select count(*) from {lease} o where o.op_id = $1 and o.expires_at > clock_timestamp())
                 returning name, token, ttl"
            ),
            release: format!(
                "with held as materialized (select name, names, expires_at > clock_timestamp() as alive
                                            from {lease} where op_id = $1 order by name for update),
                      freed as (update {lease} l set op_id = null, released_op = $1, expires_at = '-infinity',
                                                     annotation = null
                                from held h where l.name = h.name)
                 select name, names, alive from held"
            ),
            elsewhere: format!("select exists (select from {place} where op_id = $1)"),
            bury: format!(
                "insert into {lease} as l (name, token, released_op)
                 select n, 0, $1 from (select n from unnest($2::text[]) as t(n) order by n collate \"C\") as s
                 on conflict (name) do update set released_op = excluded.released_op"
            ),
            released: format!("select count(*) from {lease} where name = any($2) and released_op = $1"),
        }
    }
}

pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Micros of a ttl; the store counts in these, rounded up so that the row never ends before the holder thinks.
pub(super) fn micros(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_nanos().div_ceil(1_000)).unwrap_or(i64::MAX)
}

pub(super) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A point in time as milliseconds since 1970, none where there is none or it has no number.
pub(crate) fn unix_millis(column: &str) -> String {
    format!("case when isfinite({column}) then floor(extract(epoch from {column}) * 1000)::int8 end")
}

/// When a lease was granted, as [`unix_millis`] told it: by the server's calendar.
pub(crate) fn dated(millis: Option<i64>) -> Option<Since> {
    millis.map(|ms| Since::store(WallTime::from_unix_millis(ms)))
}

pub(super) fn token(n: i64) -> FencingToken {
    FencingToken::new(u64::try_from(n).unwrap_or(0))
}

/// The connection goes back when it is as good as before.
pub(super) fn settle<T>(
    lent: Lent,
    result: std::result::Result<T, tokio_postgres::Error>,
) -> Result<(Lent, T)> {
    match result {
        Ok(value) => Ok((lent, value)),
        Err(e) => {
            if is_usable_after(&e) {
                lent.give_back();
            }
            Err(store_error(e))
        }
    }
}

impl PostgresLeases {
    pub(super) async fn ask_one(&self, request: &AcquireRequest, op: Op) -> Result<Asked> {
        let lent = self.0.pool.lend().await?;
        let (ttl, bytes) = (micros(request.ttl), op.bytes());
        let parameters: [Parameter<'_>; 5] = [
            (&request.names[0], Type::TEXT),
            (&bytes, Type::BYTEA),
            (&request.owner, Type::TEXT),
            (&ttl, Type::INT8),
            (&request.note, Type::TEXT),
        ];
        let work = async {
            let row = match lent.client().query_typed_opt(&self.single().acquire, &parameters).await {
                // A guarded transaction holds the row: that is a holder, not a failure.
                Err(e) if is_locked(&e) => {
                    return Ok(Err((self.who(lent.client(), &request.names[0], op).await?, true)));
                }
                other => other?,
            };
            match row {
                Some(row) => Ok(Ok(row)),
                None => Ok(Err((self.who(lent.client(), &request.names[0], op).await?, false))),
            }
        };
        let asked = self.0.pool.within("an acquisition", Outcome::Unknown, async { Ok(work.await) }).await?;
        let (lent, answer) = settle(lent, asked)?;
        match answer {
            Ok(row) => {
                self.tell(&lent, [&request.names[0]]);
                lent.give_back();
                self.granted(&row)
            }
            Err((who, locked)) => {
                lent.give_back();
                read_who(who, locked)
            }
        }
    }

    async fn who(
        &self,
        client: &Client,
        name: &str,
        op: Op,
    ) -> std::result::Result<Option<Row>, tokio_postgres::Error> {
        let bytes = op.bytes();
        client.query_typed_opt(&self.single().who, &[(&name, Type::TEXT), (&bytes, Type::BYTEA)]).await
    }

    /// A grant is told only if the setting it was committed under is the one that was promised.
    fn granted(&self, row: &Row) -> Result<Asked> {
        if self.0.fencing == mainstay_store::lease::Fencing::Strict && !row.get::<_, bool>(1) {
            let text = "`synchronous_commit` was switched off while Strict fencing is promised; the grant may be lost";
            return Err(Error::new(ErrorKind::Unsupported, text).with_outcome(Outcome::Applied));
        }
        Ok(Asked::Granted(token(row.get(0))))
    }

    /// None when no exclusive lease of the operation is there.
    pub(super) async fn renew_single(&self, op: Op) -> Result<Option<Renewed>> {
        let lent = self.0.pool.lend().await?;
        let bytes = op.bytes();
        let parameters: [Parameter<'_>; 1] = [(&bytes, Type::BYTEA)];
        let (renew, elsewhere) = (&self.single().renew, &self.single().elsewhere);
        let both = join(
            lent.client().query_typed(renew, &parameters),
            lent.client().query_typed_one(elsewhere, &parameters),
        );
        let answers = self.0.pool.within("a renewal", Outcome::Unknown, async { Ok(both.await) }).await?;
        let (lent, rows) = settle(lent, answers.0)?;
        let (lent, elsewhere) = settle(lent, answers.1)?;
        lent.give_back();
        if elsewhere.get::<_, bool>(0) {
            return Ok(None);
        }
        let grant =
            |row: &Row| Grant { name: row.get(0), token: token(row.get(1)), ttl: duration(row.get(2)) };
        let mut grants: Vec<Grant> = rows.iter().map(grant).collect();
        grants.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(if grants.is_empty() { Renewed::Lost } else { Renewed::Renewed(grants) }))
    }

    /// Frees the exclusive leases of the operation; none when it has a place elsewhere. `doubtful` are names that
    /// it may yet arrive at: it is buried there first.
    pub(super) async fn release_single(
        &self,
        op: Op,
        doubtful: Option<&[String]>,
    ) -> Result<Option<Released>> {
        let lent = self.0.pool.lend().await?;
        let bytes = op.bytes();
        let texts = self.single();
        let by_op: [Parameter<'_>; 1] = [(&bytes, Type::BYTEA)];
        let names = doubtful.unwrap_or_default();
        let buried: [Parameter<'_>; 2] = [(&bytes, Type::BYTEA), (&names, Type::TEXT_ARRAY)];
        let work = async {
            let client = lent.client();
            if !names.is_empty()
                && let Err(e) = client.execute_typed(&texts.bury, &buried).await
            {
                return Ok((Err(e), None));
            }
            let both = join(
                client.query_typed(&texts.release, &by_op),
                client.query_typed_one(&texts.elsewhere, &by_op),
            );
            let (rows, elsewhere) = both.await;
            Ok((rows, Some(elsewhere)))
        };
        let (rows, elsewhere) = self.0.pool.within("a release", Outcome::Unknown, work).await?;
        let (lent, rows) = settle(lent, rows)?;
        let (lent, elsewhere) = match elsewhere {
            Some(elsewhere) => settle(lent, elsewhere)?,
            None => return Err(Error::new(ErrorKind::Internal, "a release without a second answer")),
        };
        let freed: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        self.tell(&lent, &freed);
        lent.give_back();
        if elsewhere.get::<_, bool>(0) {
            return Ok(None);
        }
        let whole =
            rows.iter().all(|row| row.get(2) && usize::try_from(row.get::<_, i32>(1)) == Ok(rows.len()));
        let clean = whole && !rows.is_empty();
        Ok(Some(if clean { Released::Clean } else { Released::AlreadyGone }))
    }

    /// Whether each of these was the operation's until a release of it. Of each name the last release is remembered.
    pub(super) async fn was_released(&self, op: Op, names: &[String]) -> Result<bool> {
        let lent = self.0.pool.lend().await.map_err(|e| e.with_outcome(Outcome::Unknown))?;
        let bytes = op.bytes();
        let parameters: [Parameter<'_>; 2] = [(&bytes, Type::BYTEA), (&names, Type::TEXT_ARRAY)];
        let found = lent.client().query_typed_one(&self.single().released, &parameters);
        let found = self.0.pool.within("a look", Outcome::Unknown, async { Ok(found.await) }).await?;
        let (lent, row) = settle(lent, found)?;
        lent.give_back();
        Ok(usize::try_from(row.get::<_, i64>(0)) == Ok(names.len()))
    }
}

fn read_who(row: Option<Row>, locked: bool) -> Result<Asked> {
    let Some(row) = row else { return Ok(Asked::Freed) };
    let since = dated(row.get(4));
    if locked {
        // How long the transaction lasts is not known.
        return Ok(Asked::Held { by: row.get(0), remaining: None, since });
    }
    if row.get(2) {
        let text = "this acquisition was released before it arrived";
        return Err(Error::new(ErrorKind::ApiMisuse, text));
    }
    if row.get(3) {
        return Ok(Asked::Crowd);
    }
    // Somebody's row may have no end at all.
    let left: Option<i64> = row.get(1);
    if left.is_some_and(|micros| micros <= 0) {
        return Ok(Asked::Freed);
    }
    Ok(Asked::Held { by: row.get(0), remaining: left.map(duration), since })
}
