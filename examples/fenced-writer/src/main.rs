//! Two processes write to one account under one lock. The first is stopped, as a long pause of a machine or a
//! collector does, and goes on when its lease has passed to the second. Its late write carries its token, and the
//! database refuses it.
//!
//! `cargo run -p example-fenced-writer [postgres://...]`: without a URL it starts a private PostgreSQL, which must be
//! installed (`apt-get install postgresql`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mainstay::clock::{Deadline, Runtime};
use mainstay::coordination::{Coordinator, Guard};
use mainstay::postgres::fence::Column;
use mainstay::postgres::{PostgresConfig, PostgresLeases};
use mainstay::store::FencingToken;
use mainstay::store::lease::Fencing;
use mainstay_sim::servers::PostgresKit;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

/// Of the first writer: short, since its end is waited for.
const BRIEF: Duration = Duration::from_secs(1);
/// Of the second: longer than a machine stands still.
const LONG: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [role, url] if role == "writer" => writer(url).await,
        [url] => story(url).await,
        _ => {
            let kit = PostgresKit::new()?;
            let kit =
                kit.context("PostgreSQL is not installed: give a URL, or apt-get install postgresql")?;
            let server = kit.primary(&[])?;
            story(&server.url()).await
        }
    }
}

async fn story(url: &str) -> anyhow::Result<()> {
    let client = connect(url).await?;
    let table =
        "create table if not exists account (id int primary key, owner text not null, fence int8 not null);
                 insert into account values (1, 'nobody', 0) on conflict do nothing";
    client.batch_execute(table).await?;

    let mut first = Writer::start(url)?;
    let first_token: u64 = first.hears("token ")?.parse()?;
    println!("the first writer holds the lock with token {first_token}, and is stopped");
    first.signal(Signal::STOP)?;

    // Its lease runs out and passes on; the lock alone cannot stop what is on its way.
    let guard = lock(url, "second", LONG).await?;
    ensure!(guard.token().get() > first_token, "tokens only grow");
    ensure!(write(&client, "second", guard.token()).await?, "the holder's write is accepted");
    println!("the second writer holds it with token {}, and has written", guard.token());

    first.signal(Signal::CONT)?;
    writeln!(first.to, "write")?;
    let verdict = first.hears("late write: ")?;
    println!("the first writer wakes up and writes: {verdict}");
    ensure!(verdict == "refused", "an older token must be refused");
    let owner: String = client.query_one("select owner from account where id = 1", &[]).await?.get(0);
    ensure!(owner == "second", "{owner}");
    guard.release().await?;
    Ok(())
}

/// The first writer: it checks once, and then writes whenever it is told to.
async fn writer(url: &str) -> anyhow::Result<()> {
    let client = connect(url).await?;
    let guard = lock(url, "first", BRIEF).await?;
    println!("token {}", guard.token());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let accepted = write(&client, "first", guard.token()).await?;
    println!("late write: {}", if accepted { "accepted" } else { "refused" });
    Ok(())
}

async fn lock(url: &str, owner: &str, ttl: Duration) -> anyhow::Result<Guard> {
    let rt = Runtime::system();
    let store = Arc::new(PostgresLeases::open(PostgresConfig::builder(url).build()?, &rt).await?);
    let limit = Deadline::after(rt.clock().now(), Duration::from_secs(90));
    let locks = Coordinator::builder(store, rt).namespace("bank").owner(owner).build()?;
    Ok(locks.mutex("account/1").ttl(ttl).require(Fencing::Strict).build()?.acquire(limit).await?)
}

/// The check and the write are one statement. False when somebody with a larger token has written.
async fn write(client: &Client, owner: &str, token: FencingToken) -> anyhow::Result<bool> {
    let fence = Column::new("account", "fence")?;
    let sql =
        format!("update account set owner = $1, {} where id = 1 and {}", fence.set(2), fence.accepts(2));
    Ok(client.execute(&sql, &[&owner, &i64::try_from(token.get())?]).await? == 1)
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let _driver = Runtime::system().spawn("connection", async move {
        // Its end is seen by the next statement.
        let _ = connection.await;
    });
    Ok(client)
}

/// The other process.
struct Writer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Writer {
    fn start(url: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(["writer", url]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let to = child.stdin.take().context("a piped input")?;
        let from = BufReader::new(child.stdout.take().context("a piped output")?);
        Ok(Self { child, to, from })
    }

    fn hears(&mut self, what: &str) -> anyhow::Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let said =
            line.trim_end().strip_prefix(what).with_context(|| format!("the first writer said {line:?}"))?;
        Ok(said.to_owned())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process number")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
