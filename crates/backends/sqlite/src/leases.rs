//! Leases: the mutex part. Everything else answers `Unsupported`.

use std::time::Duration;

use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Grant, Guarantees, LeaseInfo, Line, Released, Renewed, Share,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Result};
use rusqlite::{Connection, OptionalExtension, params};

use crate::store::SqliteStore;
use crate::writer::Step;

/// A longer lease than this is a mistake: it would outlive whoever could end it.
const MAX_TTL: Duration = Duration::from_secs(86_400 * 30);

struct Lease {
    token: i64,
    owner: Option<String>,
    op_id: Option<String>,
    until: i64,
    note: String,
}

impl Lease {
    fn held(&self, now: i64) -> bool {
        self.op_id.is_some() && self.until > now
    }

    fn left(&self, now: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.until - now).unwrap_or(0))
    }

    fn token(&self) -> FencingToken {
        FencingToken::new(u64::try_from(self.token).unwrap_or(0))
    }
}

fn read(conn: &Connection, name: &str) -> rusqlite::Result<Option<Lease>> {
    conn.prepare_cached("select token, owner, op_id, until, note from lease where name = ?1")?
        .query_row([name], |r| {
            Ok(Lease {
                token: r.get(0)?,
                owner: r.get(1)?,
                op_id: r.get(2)?,
                until: r.get(3)?,
                note: r.get(4)?,
            })
        })
        .optional()
}

fn check(request: &AcquireRequest) -> Result<()> {
    let misuse = |text: &str| Err(Error::new(ErrorKind::ApiMisuse, text));
    if request.share != Share::Exclusive || request.line != Line::Try {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the SQLite lease store grants exclusive leases without a line",
        ));
    }
    if request.names.is_empty() || request.names.windows(2).any(|w| w[0] >= w[1]) {
        return misuse("lease names must be given sorted and unique, at least one");
    }
    if request.ttl.is_zero() || request.ttl > MAX_TTL {
        return misuse("a lease lasts more than 0 and at most 30 days");
    }
    let sizes = request.names.iter().chain([&request.owner, &request.op_id]);
    if sizes.into_iter().any(|s| s.is_empty() || s.len() > 1_024) {
        return misuse("lease names, owners and op ids have 1 to 1,024 bytes");
    }
    Ok(())
}

fn acquire(conn: &Connection, request: &AcquireRequest, now: i64) -> std::result::Result<Acquired, Step> {
    for (name, token) in &request.require {
        let lease = read(conn, name)?;
        if !lease.as_ref().is_some_and(|l| l.held(now) && l.token() == *token) {
            let by = lease.and_then(|l| l.owner).unwrap_or_default();
            return Ok(Acquired::Held { by, remaining: None });
        }
    }
    let mut leases = Vec::with_capacity(request.names.len());
    for name in &request.names {
        let lease = read(conn, name)?;
        if let Some(other) =
            lease.as_ref().filter(|l| l.held(now) && l.op_id.as_ref() != Some(&request.op_id))
        {
            let by = other.owner.clone().unwrap_or_default();
            return Ok(Acquired::Held { by, remaining: Some(other.left(now)) });
        }
        leases.push(lease);
    }
    let ttl = i64::try_from(request.ttl.as_millis()).unwrap_or(i64::MAX);
    let mut grants = Vec::with_capacity(leases.len());
    for (name, lease) in request.names.iter().zip(leases) {
        // A repeated request after a lost reply keeps its token.
        let again = lease.as_ref().filter(|l| l.held(now)).map(|l| l.token);
        let token = again.unwrap_or_else(|| lease.map_or(0, |l| l.token) + 1);
        conn.prepare_cached(
            "insert or replace into lease (name, token, owner, op_id, until, ttl, note) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![name, token, request.owner, request.op_id, now.saturating_add(ttl), ttl, request.note])?;
        let token = FencingToken::new(u64::try_from(token).unwrap_or(0));
        grants.push(Grant { name: name.clone(), token, ttl: request.ttl });
    }
    Ok(Acquired::Granted(grants))
}

fn renew(conn: &Connection, op_id: &str, now: i64) -> std::result::Result<Renewed, Step> {
    let rows: Vec<(String, i64, i64, i64)> = conn
        .prepare_cached("select name, token, until, ttl from lease where op_id = ?1 order by name")?
        .query_map([op_id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?
        .collect::<rusqlite::Result<_>>()?;
    if rows.is_empty() || rows.iter().any(|(_, _, until, _)| *until <= now) {
        return Ok(Renewed::Lost);
    }
    conn.prepare_cached("update lease set until = ?2 + ttl where op_id = ?1")?
        .execute(params![op_id, now])?;
    let grant = |(name, token, _, ttl): (String, i64, i64, i64)| Grant {
        name,
        token: FencingToken::new(u64::try_from(token).unwrap_or(0)),
        ttl: Duration::from_millis(u64::try_from(ttl).unwrap_or(0)),
    };
    Ok(Renewed::Renewed(rows.into_iter().map(grant).collect()))
}

fn info(name: String, lease: Option<&Lease>, now: i64) -> LeaseInfo {
    let mut info = LeaseInfo::free(&name, lease.map_or(FencingToken::ZERO, Lease::token));
    if let Some(lease) = lease.filter(|l| l.held(now)) {
        info.holders = vec![(lease.owner.clone().unwrap_or_default(), lease.token(), lease.left(now))];
        info.note.clone_from(&lease.note);
    }
    info
}

impl LeaseStore for SqliteStore {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(async move {
            check(&request)?;
            self.0.writer.write(0, move |conn, now| acquire(conn, &request, now)).await
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op_id = op_id.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, now| renew(conn, &op_id, now)))
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op_id = op_id.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, now| {
            let held = conn
                .prepare_cached(
                    "update lease set op_id = null, owner = null where op_id = ?1 and until > ?2",
                )?
                .execute(params![op_id, now])?;
            let ended = conn
                .prepare_cached("update lease set op_id = null, owner = null where op_id = ?1")?
                .execute([&op_id])?;
            Ok(if held > 0 && ended == 0 { Released::Clean } else { Released::AlreadyGone })
        }))
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, _| {
            conn.prepare_cached(
                "insert into lease (name, token, owner, op_id, until, ttl, note) values (?1, 1, null, null, 0, 0, '')
                 on conflict (name) do update set token = token + 1, owner = null, op_id = null",
            )?
            .execute([&name])?;
            Ok(read(conn, &name)?.map_or(FencingToken::ZERO, |l| l.token()))
        }))
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        // On the writer: its clock decides what is held.
        Box::pin(self.0.writer.write(0, move |conn, now| {
            let lease = read(conn, &name)?;
            Ok(info(name, lease.as_ref(), now))
        }))
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(self.0.writer.write(0, move |conn, now| {
            let names: Vec<String> = conn
                .prepare_cached(
                    "select name from lease where op_id is not null and until > ?1 and substr(name, 1, length(?2)) = ?2
                     order by name limit ?3",
                )?
                .query_map(params![now, prefix, limit], |r| r.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut found = Vec::with_capacity(names.len());
            for name in names {
                let lease = read(conn, &name)?;
                found.push(info(name, lease.as_ref(), now));
            }
            Ok(found)
        }))
    }

    fn guarantees(&self) -> Guarantees {
        let clock = "the wall clock of this machine, never going back";
        let mut guarantees = Guarantees::new(Fencing::Strict, clock, "none: one file on one machine");
        guarantees.native = &["break_lease", "list"];
        guarantees
    }
}
