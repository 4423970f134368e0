//! Two schedulers share a ledger, and only the leader writes. The first leader's machine stands still beyond its term:
//! the other one takes over, and what the first one still sends is refused by its old term.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use mainstay::clock::{Deadline, Runtime};
use mainstay::coordination::{Coordinator, Election, Fence};
use mainstay::store::memory::MemoryLeaseStore;
use mainstay::store::{FenceCheck, FencingToken};

/// Where the runs are written down. It keeps the highest term it has seen, in the same step as the write.
#[derive(Debug, Default)]
struct Ledger(Mutex<(FencingToken, Vec<String>)>);

impl Ledger {
    fn write(&self, term: FencingToken, line: &str) -> bool {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(term.check(inner.0), FenceCheck::Stale { .. }) {
            return false;
        }
        inner.0 = term;
        inner.1.push(line.to_owned());
        true
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

fn candidate(
    store: &Arc<MemoryLeaseStore>,
    rt: &Runtime,
    name: &str,
    ttl: Duration,
) -> anyhow::Result<Election> {
    let store = Arc::clone(store) as Arc<_>;
    let coordinator = Coordinator::builder(store, rt.clone()).namespace("jobs").owner(name).build()?;
    Ok(coordinator.election("scheduler").ttl(ttl).build()?)
}

/// The first leader, on a machine of its own: a thread with its own runtime. Between two jobs the machine stands
/// still, with everything on it, until `wake` speaks.
fn first_leader(
    election: &Election,
    rt: &Runtime,
    ledger: &Ledger,
    leads: Sender<()>,
    wake: &Receiver<()>,
) -> anyhow::Result<()> {
    let machine = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    machine.block_on(async {
        let term = election.campaign(patience(rt)).await?;
        ensure!(ledger.write(term.token(), "node-1 runs the midnight job"), "the leader writes");
        leads.send(())?;
        wake.recv()?;
        ensure!(term.check().is_err(), "the first look after the pause finds the term over");
        ensure!(!ledger.write(term.token(), "node-1 runs it once more"), "and who does not look is refused");
        Ok(())
    })
}

fn patience(rt: &Runtime) -> Deadline {
    Deadline::after(rt.clock().now(), Duration::from_secs(60))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let rt = Runtime::system();
    let store = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
    let ledger = Arc::new(Ledger::default());
    let (leads, leading) = channel();
    let (wake, woken) = channel();

    let machine = {
        // Short: its end is waited for.
        let election = candidate(&store, &rt, "node-1", Duration::from_millis(300))?;
        let (rt, ledger) = (rt.clone(), Arc::clone(&ledger));
        std::thread::spawn(move || first_leader(&election, &rt, &ledger, leads, &woken))
    };
    leading.recv()?;

    // Nobody renews node-1's term: it ends, and the next candidate leads.
    let second = candidate(&store, &rt, "node-2", Duration::from_secs(60))?.campaign(patience(&rt)).await?;
    let work = |fence: Fence| {
        let ledger = &ledger;
        async move { ledger.write(fence.token(), "node-2 runs the one o'clock job") }
    };
    ensure!(second.run(work).await?, "the new leader writes");

    wake.send(())?;
    machine.join().map_err(|_| anyhow::anyhow!("node-1 panicked"))??;
    second.resign().await?;

    let lines = ledger.lines();
    println!("{}", lines.join("\n"));
    ensure!(lines.len() == 2, "nobody else wrote");
    Ok(())
}
