//! Tables, and their versions.

use mainstay_store::{Error, ErrorKind};
use rusqlite::Connection;

use crate::error::store_error;

/// Steps from version n to n + 1; applied ones never change.
const MIGRATIONS: [&str; 10] = [V1, V2, V3, V4, V5, V6, V7, V8, V9, V10];

/// The rows of a saga's log are chained from the newest back (`last_n`, `previous`): an append then touches one
/// place in `log`, where an index by saga would be a second one. Row ids come from the writer's desk, which
/// never gives one twice; `autoincrement` would write one more page with every append.
const V1: &str = "
create table saga (
  rid integer primary key, uid text not null unique, definition text not null, version integer not null,
  definition_hash blob not null, id text not null, input_hash blob not null,
  epoch integer not null, next_seq integer not null, bytes integer not null,
  owner text, incarnation integer not null, strikes integer not null,
  created integer not null, updated integer not null,
  status text not null, retrying integer not null, paused integer not null, due integer, next_try integer,
  step text, attempt integer not null, error text, parent text, parent_step text,
  posts integer not null default 0, last_n integer not null, ended integer,
  unique (definition, id));
create index saga_due on saga (owner, incarnation, due) where due is not null;
create index saga_ended on saga (ended) where ended is not null;
create index saga_status on saga (status, rid);
create table attr (rid integer not null, key text not null, value text not null, primary key (rid, key)) without rowid;
create table log (
  n integer primary key, rid integer not null, seq integer not null, at integer not null, status text not null,
  previous integer not null, sum blob not null, records blob not null);
create table post (
  number integer primary key autoincrement, rid integer not null, message text not null, kind integer not null,
  at integer not null, bytes blob not null, drained integer not null default 0, unique (rid, message));
create table lock (name text primary key, rid integer not null) without rowid;
create table reply (key text primary key, request blob not null, status integer not null, body blob not null, at integer not null) without rowid;
create table definition (name text not null, version integer not null, hash blob not null, bytes blob not null, primary key (name, version)) without rowid;
create table node (name text primary key, incarnation integer not null, until integer not null) without rowid;
create table tombstone (
  definition text not null, id text not null, uid text not null, input_hash blob not null, status text not null,
  at integer not null, primary key (definition, id)) without rowid;
create table audit (
  seq integer primary key, at integer not null, who text not null, action text not null, target text not null,
  reason text not null, before text not null, after text not null, request_id text not null, chain blob not null);
create table kv (key text primary key, version integer not null, value blob, expires integer) without rowid;
create table cell (name text primary key, value blob not null, sum blob not null) without rowid;
create table purged (one integer primary key check (one = 1), last_rid integer not null, last_n integer not null);
insert into purged values (1, 0, 0);
";

/// The purge finds what is old without looking at what is kept longer.
const V2: &str = "
drop index saga_ended;
create index saga_ended on saga (status, ended) where ended is not null;
create index tombstone_at on tombstone (at);
create index reply_at on reply (at);
";

/// Lists by attribute, newest first, without looking at every saga.
const V3: &str = "create index attr_value on attr (key, value, rid);";

/// Finished sagas are counted as they finish: nobody looks at all of them to know how many there are.
const V4: &str = "
create table tally (
  definition text not null, status text not null, count integer not null, primary key (definition, status)) without rowid;
insert into tally select definition, status, count(*) from saga where ended is not null group by definition, status;
drop index saga_ended;
create index saga_ended on saga (status, definition, ended) where ended is not null;
";

/// Damage in a record is seen. Records of before have no checksum until they are written again.
const V5: &str = "alter table kv add column sum blob;";

/// Records that ended are found without a look at all of them.
const V6: &str = "create index kv_expires on kv (expires) where expires is not null;";

/// The time that was shown last, also for what leaves no record: claims, messages, values that expire. A run that begins
/// behind it, because the calendar was set back in between, goes on from here.
const V7: &str = "
create table calendar (one integer primary key check (one = 1), at integer not null);
insert into calendar values (1, 0);
";

/// Since when a saga needs attention, whatever is tried behind its item meanwhile. Of those that did before, the last
/// append is the best that is known.
const V8: &str = "
alter table saga add column needs_since integer;
update saga set needs_since = updated where status = 'needs_attention';
";

/// What waits for a person is found without a look at what does not.
const V9: &str = "
alter table saga add column overdue integer not null default 0;
create index saga_attention on saga (rid) where status = 'needs_attention' or overdue = 1;
";

/// Whether a saga is overdue stands in its log only, of those that were so before [`V9`]. What moves writes its row anew by
/// itself; what is paused and waits for nothing does not: it is due once, so that whoever takes it up puts its row right.
const V10: &str = "
update saga set due = updated where paused = 1 and due is null and ended is null and status <> 'needs_attention';
";

/// The version this program writes.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the file to [`VERSION`], step by step, each in its own transaction.
pub(crate) fn migrate(conn: &Connection) -> Result<(), Error> {
    let found: i64 = conn.query_row("pragma user_version", [], |r| r.get(0)).map_err(store_error)?;
    if found > VERSION {
        let text = format!(
            "the file has schema version {found}; this program knows up to {VERSION}: use a newer one"
        );
        return Err(Error::new(ErrorKind::NewerVersion, text));
    }
    let done = usize::try_from(found).map_err(|_| crate::error::corrupt("the schema version is negative"))?;
    for (i, step) in MIGRATIONS.iter().enumerate().skip(done) {
        let sql = format!("begin immediate; {step} pragma user_version = {}; commit;", i + 1);
        conn.execute_batch(&sql).map_err(|e| {
            // Leaves the file at the version before; a failed rollback shows at the next statement.
            let _ = conn.execute_batch("rollback");
            store_error(e)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mainstay_clock::Runtime;
    use mainstay_store::Journal as _;
    use mainstay_store::journal::{Append, Appended, Filter, Row, SagaStatus, Uid};
    use rusqlite::Connection;

    use super::{V1, VERSION, migrate};
    use crate::journal::{OLD_IDENTITIES, OLD_SAGAS};
    use crate::query::OLDEST;
    use crate::store::SqliteStore;

    fn version(conn: &Connection) -> i64 {
        conn.query_row("pragma user_version", [], |r| r.get(0)).unwrap()
    }

    #[test]
    fn an_older_file_is_brought_up_with_what_it_holds() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!("{V1} pragma user_version = 1;")).unwrap();
        conn.execute("insert into tombstone values ('order', '7', 'u', x'00', 'completed', 5)", []).unwrap();
        migrate(&conn).unwrap();
        assert_eq!(version(&conn), VERSION);
        let kept: i64 = conn.query_row("select count(*) from tombstone", [], |r| r.get(0)).unwrap();
        assert_eq!(kept, 1);
        migrate(&conn).unwrap();
    }

    #[test]
    fn what_needed_attention_before_is_counted_from_its_last_append() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!("{} pragma user_version = 7;", super::MIGRATIONS[..7].concat())).unwrap();
        for (uid, updated, status) in [("a", 7, "needs_attention"), ("b", 8, "running")] {
            let row = "insert into saga (uid, definition, version, definition_hash, id, input_hash, epoch, next_seq, bytes,
                incarnation, strikes, created, updated, status, retrying, paused, attempt, last_n)
                values (?1, 'd', 1, x'00', ?1, x'00', 1, 1, 0, 0, 0, 5, ?2, ?3, 0, 0, 0, 0)";
            conn.execute(row, rusqlite::params![uid, updated, status]).unwrap();
        }
        migrate(&conn).unwrap();
        let mut since = conn.prepare("select needs_since from saga order by uid").unwrap();
        let since: Vec<Option<i64>> =
            since.query_map([], |r| r.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
        assert_eq!(since, [Some(7), None]);
    }

    /// They were in no list of what waits for a person, for good.
    #[test]
    fn what_is_paused_is_looked_at_once_because_it_may_be_overdue() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!("{} pragma user_version = 8;", super::MIGRATIONS[..8].concat())).unwrap();
        let sagas = [
            ("a", "running", 1, None, None, Some(8)),
            ("b", "running", 1, Some(99), None, Some(99)),
            ("c", "running", 0, None, None, None),
            // It is in the list already, and was set aside perhaps.
            ("d", "needs_attention", 1, None, None, None),
            ("e", "abandoned", 1, None, Some(8), None),
        ];
        for (uid, status, paused, due, ended, _) in sagas {
            let row = "insert into saga (uid, definition, version, definition_hash, id, input_hash, epoch, next_seq, bytes,
                incarnation, strikes, created, updated, status, retrying, paused, attempt, last_n, due, ended)
                values (?1, 'd', 1, x'00', ?1, x'00', 1, 1, 0, 0, 0, 5, 8, ?2, 0, ?3, 0, 0, ?4, ?5)";
            conn.execute(row, rusqlite::params![uid, status, paused, due, ended]).unwrap();
        }
        migrate(&conn).unwrap();
        for (uid, .., expected) in sagas {
            let due: Option<i64> =
                conn.query_row("select due from saga where uid = ?1", [uid], |r| r.get(0)).unwrap();
            assert_eq!(due, expected, "{uid}");
        }
    }

    /// Whatever version a file has, it ends with the schema of a new one, and what is in it can be listed, counted and
    /// written.
    #[tokio::test]
    async fn a_file_of_every_version_is_brought_up_and_used() {
        let schema = |conn: &Connection| -> Vec<(String, String)> {
            let sql = "select name, ifnull(sql, '') from sqlite_master order by name";
            let mut all = conn.prepare(sql).unwrap();
            all.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap()
        };
        let fresh = Connection::open_in_memory().unwrap();
        migrate(&fresh).unwrap();
        for found in 1..VERSION {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("m.db");
            let old = Connection::open(&file).unwrap();
            let steps = super::MIGRATIONS[..usize::try_from(found).unwrap()].concat();
            old.execute_batch(&format!("{steps} pragma user_version = {found};")).unwrap();
            for (uid, status) in [("a", "needs_attention"), ("b", "running")] {
                let row = "insert into saga (uid, definition, version, definition_hash, id, input_hash, epoch, next_seq,
                    bytes, incarnation, strikes, created, updated, status, retrying, paused, attempt, last_n)
                    values (?1, 'd', 1, zeroblob(32), ?1, zeroblob(32), 1, 1, 0, 0, 0, 5, 6, ?2, 0, 0, 0, 0)";
                old.execute(row, rusqlite::params![uid, status]).unwrap();
            }
            drop(old);
            let store = SqliteStore::builder(&file).open(&Runtime::system()).unwrap();
            assert_eq!(schema(&Connection::open(&file).unwrap()), schema(&fresh), "version {found}");
            let waiting = Filter { attention: true, ..Filter::default() };
            let page = store.query(&waiting, None, 10).await.unwrap();
            assert_eq!(
                page.rows.iter().map(|r| r.uid.as_str()).collect::<Vec<_>>(),
                ["a"],
                "version {found}"
            );
            let counts = store.counts().await.unwrap();
            let oldest = |status| counts.iter().find(|c| c.status == status).unwrap().oldest.unix_millis();
            assert_eq!((counts.len(), oldest(SagaStatus::NeedsAttention)), (2, 6), "version {found}");
            let summary = store.summary(&Uid::new("b")).await.unwrap().unwrap();
            let row = Row { overdue: true, ..summary.row };
            let append = Append::new(Uid::new("b"), summary.epoch, summary.next_seq, Vec::new(), row);
            assert!(
                matches!(store.append(append).await.unwrap(), Appended::Appended { .. }),
                "version {found}"
            );
            assert_eq!(store.query(&waiting, None, 10).await.unwrap().rows.len(), 2, "version {found}");
        }
    }

    #[test]
    fn every_search_of_the_purge_and_of_the_counts_walks_an_index() {
        let conn = Connection::open_in_memory().unwrap();
        migrate(&conn).unwrap();
        for sql in OLD_IDENTITIES.into_iter().chain([OLD_SAGAS, OLDEST]) {
            let mut plan = conn.prepare(&format!("explain query plan {sql}")).unwrap();
            let free = plan.parameter_count();
            let steps: Vec<String> = plan
                .query_map(rusqlite::params_from_iter(vec![1; free]), |r| r.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            let scans = steps.iter().any(|s| s.starts_with("SCAN") || s.contains("TEMP B-TREE FOR ORDER"));
            let dated = sql == OLDEST || steps.iter().any(|s| s.contains("<?"));
            assert!(!scans && dated, "{sql}: {steps:?}");
        }
    }
}
