//! What refuses a late writer.

use mainstay_clock::Clock as _;
use mainstay_postgres::fence::{self, Column};
use mainstay_store::lease::{Acquired, Renewed};
use mainstay_store::{FenceCheck, FencingToken, LeaseStore};

use crate::world::{SILENCE, ServerClock, TTL, Test, World, ask, connect, direct, open, opened, take};

pub(crate) const TESTS: &[Test] = &[
    ("f25_the_predicate_refuses_an_older_token_and_the_trigger_whoever_writes", |w| Box::pin(columns(w))),
    ("f25_a_table_of_tokens_refuses_in_the_transaction_of_the_write", |w| Box::pin(advances(w))),
    ("f37_a_guarded_transaction_keeps_the_lease_beyond_its_end_and_is_no_loss", |w| Box::pin(f37(w))),
    ("f40_a_broken_lease_burns_its_token_and_the_resource_refuses_its_holder", |w| Box::pin(f40(w))),
    ("a_guard_holds_only_for_whoever_holds_the_lease", |w| Box::pin(guards(w))),
];

async fn columns(world: World) {
    let client = world.client().await;
    let table = world.table();
    let column = Column::new(&table, "fence").unwrap();
    let make = format!("create table {table} (id int primary key, v text not null, fence int8 not null)");
    client.batch_execute(&make).await.unwrap();
    let upsert = format!(
        "insert into {table} (id, v, fence) values (1, $1, $2) on conflict (id) do update
         set v = excluded.v, fence = excluded.fence where {}",
        column.accepts_conflict()
    );
    let update =
        format!("update {table} set v = $1, {} where id = 1 and {}", column.set(2), column.accepts(2));
    // Token, statement, whether it is accepted.
    for (token, sql, accepted) in
        [(7, &upsert, true), (7, &upsert, true), (6, &upsert, false), (8, &update, true), (7, &update, false)]
    {
        let v = format!("by {token}");
        let token: i64 = token;
        let rows = client.execute(sql, &[&v, &token]).await.unwrap();
        assert_eq!(rows == 1, accepted, "{token}: {sql}");
    }
    client.batch_execute(&column.trigger()).await.unwrap();
    // Somebody whose statement does not check.
    let careless = format!("update {table} set v = 'late', fence = $1 where id = 1");
    let refused = client.execute(&careless, &[&7_i64]).await.unwrap_err();
    assert!(fence::is_stale(&refused), "{refused:?}");
    assert!(client.execute(&careless, &[&8_i64]).await.is_ok(), "equal passes");
    let other = client.execute(&format!("update {table} set id = null"), &[]).await.unwrap_err();
    assert!(!fence::is_stale(&other));
    let seen: (String, i64) = {
        let row = client.query_one(&format!("select v, fence from {table}"), &[]).await.unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!(seen, ("late".to_owned(), 8));
}

async fn advances(world: World) {
    let mut client = world.client().await;
    client.batch_execute(fence::CREATE).await.unwrap();
    let (old, new) = (FencingToken::new(41), FencingToken::new(42));
    // The new holder announces itself before its first write.
    assert_eq!(fence::advance(&client, "advances", new).await.unwrap(), FenceCheck::Pass);
    let late = client.transaction().await.unwrap();
    assert_eq!(fence::advance(&late, "advances", old).await.unwrap(), FenceCheck::Stale { seen: new });
    late.rollback().await.unwrap();
    assert_eq!(
        fence::advance(&client, "advances", new).await.unwrap(),
        FenceCheck::Pass,
        "one holder writes often"
    );
    // A token that rolls back with its write was not stored.
    let undone = client.transaction().await.unwrap();
    assert_eq!(fence::advance(&undone, "advances", new.next()).await.unwrap(), FenceCheck::Pass);
    undone.rollback().await.unwrap();
    assert_eq!(fence::advance(&client, "advances", new).await.unwrap(), FenceCheck::Pass);
}

async fn f37(world: World) {
    let clock = ServerClock::make(&world, "f37").await;
    let table = world.table();
    let config = || direct(&clock.url(&world)).table(&table);
    let (holder, other) = (open(config()).await, open(config()).await);
    let hasty = opened(config().request_timeout(SILENCE)).await;
    let Acquired::Granted(grants) = holder.acquire(ask("n", "a")).await.unwrap() else { panic!() };
    let mut client = connect(&clock.url(&world)).await;
    client.batch_execute(&format!("create table {table}_data (v text)")).await.unwrap();
    let guarded = client.transaction().await.unwrap();
    assert!(fence::hold(&guarded, &table, "n", grants[0].token).await.unwrap());
    // Its own renewal waits for it: an error that can be repeated, and no loss.
    let blocked = hasty.renew("a").await.unwrap_err();
    assert!(blocked.is_retryable() && blocked.outcome() == mainstay_store::Outcome::NotApplied, "{blocked}");
    clock.sleep(2 * TTL).await;
    // By now the lease has run out, and still nobody takes it over.
    let held = other.acquire(ask("n", "b")).await.unwrap();
    assert!(matches!(&held, Acquired::Held { by, remaining: None, .. } if by == "a"), "{held:?}");
    guarded.execute(&format!("insert into {table}_data values ('a')"), &[]).await.unwrap();
    guarded.commit().await.unwrap();
    let later = take(&other, "n", "c").await.expect("after the commit it is free");
    assert!(later > grants[0].token);
    assert_eq!(holder.renew("a").await.unwrap(), Renewed::Lost);
    let late = client.transaction().await.unwrap();
    assert!(!fence::hold(&late, &table, "n", grants[0].token).await.unwrap(), "the old holder is refused");
}

async fn f40(world: World) {
    let store = world.store().await;
    let client = world.client().await;
    client.batch_execute(fence::CREATE).await.unwrap();
    let token = take(&store, "n", "stuck").await.unwrap();
    assert_eq!(fence::advance(&client, "f40", token).await.unwrap(), FenceCheck::Pass);
    let burned = store.break_lease("n").await.unwrap();
    assert!(burned > token);
    // Until the resource knows, the old holder still writes.
    assert_eq!(fence::advance(&client, "f40", token).await.unwrap(), FenceCheck::Pass);
    assert_eq!(fence::advance(&client, "f40", burned).await.unwrap(), FenceCheck::Pass);
    assert_eq!(fence::advance(&client, "f40", token).await.unwrap(), FenceCheck::Stale { seen: burned });
    let next = take(&store, "n", "next").await.unwrap();
    assert_eq!(fence::advance(&client, "f40", next).await.unwrap(), FenceCheck::Pass);
}

async fn guards(world: World) {
    let clock = ServerClock::make(&world, "guards").await;
    let table = world.table();
    let store = open(direct(&clock.url(&world)).table(&table)).await;
    let mut client = connect(&clock.url(&world)).await;
    let token = take(&store, "n", "a").await.unwrap();
    assert!(!fence::hold(&client, &table, "n", token.next()).await.unwrap());
    assert!(!fence::hold(&client, &table, "other", token).await.unwrap());
    clock.sleep(TTL).await;
    assert!(!fence::hold(&client, &table, "n", token).await.unwrap(), "it has run out");
    let token = take(&store, "n", "b").await.unwrap();
    let tx = client.transaction().await.unwrap();
    assert!(fence::hold(&tx, &table, "n", token).await.unwrap());
    tx.commit().await.unwrap();
    store.release("b").await.unwrap();
    assert!(!fence::hold(&client, &table, "n", token).await.unwrap(), "it was given back");
}
