//! The node: sockets, time and disk around the state machine.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_clock::Runtime;
use mainstay_consistency::replicate::Replicated;
use mainstay_consistency::{Actor, ActorId};
use mainstay_store::DurableCell;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Stats};
use crate::member::{Member, Membership};
use crate::network::{Network, Sent, Way};
use crate::seal::Keys;
use crate::snapshot::Snapshot;
use crate::state::{Begin, Core};

/// A replicated value on this node. Clones share it; when the last one is dropped the node stops, without a last
/// snapshot: [`shutdown`](Gossip::shutdown) is the sure way.
///
/// Guarantees: every node that stays reachable ends with the same value, whatever the network lost, doubled or
/// reordered, and no packet takes a value back. Does not guarantee when, nor that a change survives which only this node
/// had when its disk was lost: [`flush`](Gossip::flush) makes it durable here.
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_consistency::crdt::AwSet;
/// use mainstay_gossip::{Config, Gossip, Keys, Sockets};
/// use std::sync::Arc;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # rt.block_on(async {
/// let rt = Runtime::system();
/// let keys = Keys::new(1, [7; 32]);
/// let node = async |name: &str, seeds: Vec<std::net::SocketAddr>| {
///     let config = Config::builder(name, "shop").keys(keys.clone()).members(["a", "b"]).seeds(seeds).build()?;
///     let net = Sockets::bind("127.0.0.1:0".parse().unwrap(), None, &rt).await?;
///     Gossip::<AwSet<String>>::start(config, Arc::new(net), None, &rt).await
/// };
/// let a = node("a", vec![]).await?;
/// let b = node("b", vec![a.address()]).await?;
/// a.change(|set, actor| set.add(actor, "new-checkout".into()))?;
/// b.wait_until(|set| set.contains(&"new-checkout".to_owned())).await?;
/// # Ok::<(), mainstay_gossip::Error>(())
/// # }).unwrap();
/// ```
pub struct Gossip<T: Replicated + Send + 'static> {
    shared: Arc<Shared<T>>,
    _alive: Arc<Alive>,
}

impl<T: Replicated + Send + 'static> Clone for Gossip<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), _alive: Arc::clone(&self._alive) }
    }
}

impl<T: Replicated + Send + 'static> fmt::Debug for Gossip<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Stops the tasks when the last handle goes.
struct Alive(watch::Sender<Stop>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.send_replace(Stop::Now);
    }
}

/// Whether the tasks shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    Now,
}

struct Shared<T> {
    core: Mutex<Core<T>>,
    network: Arc<dyn Network>,
    cell: Option<Arc<dyn DurableCell>>,
    /// One snapshot at a time.
    saving: AsyncMutex<()>,
    rt: Runtime,
    wake: Notify,
    changed: watch::Sender<u64>,
    stop: watch::Sender<Stop>,
    ended: watch::Sender<bool>,
}

impl<T: Replicated + Send + 'static> Gossip<T> {
    /// Starts a node over `network`. With a cell it starts from the snapshot in it, in a new epoch that is durable before
    /// anything is changed; without one it starts empty, as somebody new.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], [`ErrorKind::Newer`] or [`ErrorKind::Foreign`] for a snapshot that cannot be used,
    /// [`ErrorKind::Store`] when none can be read or written: nothing was overwritten. Remove the file to start anew.
    ///
    /// # Cancel safety
    /// A dropped future may have used up an epoch; no node runs.
    pub async fn start(
        config: Config,
        network: Arc<dyn Network>,
        cell: Option<Arc<dyn DurableCell>>,
        rt: &Runtime,
    ) -> Result<Self> {
        Self::start_with(config, network, cell, None, rt).await
    }

    /// Starts a node that learns of its members from `membership`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    /// As [`start`](Self::start).
    pub async fn start_with(
        config: Config,
        network: Arc<dyn Network>,
        cell: Option<Arc<dyn DurableCell>>,
        membership: Option<Box<dyn Membership>>,
        rt: &Runtime,
    ) -> Result<Self> {
        let snapshot = match &cell {
            Some(cell) => cell.load().await?.map(|bytes| Snapshot::decode(&bytes)).transpose()?,
            None => None,
        };
        let begin = Begin {
            address: network.address(),
            membership,
            snapshot,
            rng: Arc::clone(rt.rng()),
            now: rt.clock().now(),
            wall: rt.clock().wall().unix_millis(),
        };
        let every = config.snapshot_every;
        let core = Core::new(config, begin)?;
        let (stop, ended) = (watch::Sender::new(Stop::No), watch::Sender::new(false));
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            network,
            cell,
            saving: AsyncMutex::new(()),
            rt: rt.clone(),
            wake: Notify::new(),
            changed: watch::Sender::new(0),
            stop: stop.clone(),
            ended,
        });
        // The new epoch, before the first change.
        shared.save().await?;
        rt.spawn("gossip", run(Arc::clone(&shared)));
        if shared.cell.is_some() {
            rt.spawn("gossip-snapshots", keep(Arc::clone(&shared), every));
        }
        Ok(Self { shared, _alive: Arc::new(Alive(stop)) })
    }

    /// Where others reach this node.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.network.address()
    }

    /// Makes a change: `f` changes the value and answers with the delta, as every mutator does. Some peers are told at
    /// once.
    ///
    /// # Errors
    /// [`ErrorKind::Change`] with what `f` answers, [`ErrorKind::Closed`] after the node stopped. What `f` gets from a mutator
    /// for a single value that no packet holds (above 64 KiB less a few bytes, see [`MAX_FRAME`](crate::MAX_FRAME)) is
    /// [`TooLarge`](mainstay_consistency::ErrorKind::TooLarge), and nothing was changed.
    pub fn change(
        &self,
        f: impl FnOnce(&mut T, &mut Actor) -> mainstay_consistency::Result<T>,
    ) -> Result<()> {
        if *self.shared.stop.borrow() != Stop::No {
            return Err(closed());
        }
        let version = {
            let mut core = self.shared.lock();
            core.change(self.shared.rt.clock().now(), f)?;
            core.version()
        };
        self.shared.changed.send_replace(version);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Looks at the value. Short: the node waits meanwhile.
    pub fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(self.shared.lock().state())
    }

    /// The value as it is now, with who this node is: what it would write to disk. Two of them can be compared.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let wall = self.shared.rt.clock().wall().unix_millis();
        self.shared.lock().copy(wall)
    }

    /// Resolves when `f` says so of the value, now or after a change.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] when the node stops.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn wait_until(&self, mut f: impl FnMut(&T) -> bool) -> Result<()> {
        let (mut changed, mut stop) = (self.shared.changed.subscribe(), self.shared.stop.subscribe());
        loop {
            // Marked first: a change after the look wakes.
            changed.borrow_and_update();
            if self.read(&mut f) {
                return Ok(());
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s != Stop::No) => return Err(closed()),
                _ = changed.changed() => {}
            }
        }
    }

    /// Resolves when the value changed since it had this version, with the present version. Start with 0.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] when the node stops.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn changed_since(&self, version: u64) -> Result<u64> {
        let (mut changed, mut stop) = (self.shared.changed.subscribe(), self.shared.stop.subscribe());
        loop {
            changed.borrow_and_update();
            let now = self.shared.lock().version();
            if now > version {
                return Ok(now);
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s != Stop::No) => return Err(closed()),
                _ = changed.changed() => {}
            }
        }
    }

    /// The digests of contents and context: equal on two nodes, their values are equal.
    #[must_use]
    pub fn digest(&self) -> (u128, u64) {
        self.shared.lock().digest()
    }

    /// Everybody who is configured or seen, this node not included.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.shared.lock().members().to_vec()
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> Member {
        self.shared.lock().me()
    }

    /// Under which identity changes are made.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        self.shared.lock().actor()
    }

    /// What happened since the last call; at most the last 256.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        self.shared.lock().take_events()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats
    }

    /// Peers and identities about which something is kept: both are bounded.
    #[must_use]
    pub fn remembered(&self) -> (usize, usize) {
        let core = self.shared.lock();
        (core.peers(), core.remembered())
    }

    /// Exchanges the keys.
    pub fn set_keys(&self, keys: Keys) {
        self.shared.lock().set_keys(keys);
    }

    /// Removes a configured member for good: it no longer holds up what may be forgotten, and is refused when it returns.
    /// Do it on every node, and in the configuration. Changes that only that member had are lost. It is kept with the
    /// next snapshot; [`flush`](Self::flush) makes that now. Without a disk, a restart forgets it.
    pub fn remove_member(&self, name: &str) {
        tracing::warn!(target: "mainstay::gossip", name, "a member was removed");
        self.shared.lock().remove_member(Member::id_of(name));
    }

    /// Writes the value to disk, if it is not there yet.
    ///
    /// # Errors
    /// [`ErrorKind::Store`]: it may be there or not.
    ///
    /// # Cancel safety
    /// A dropped future may have written it.
    pub async fn flush(&self) -> Result<()> {
        self.shared.save().await
    }

    /// Says good-bye, writes a last snapshot and stops. Calling it again does nothing more.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the snapshot could not be written; the node stopped all the same.
    ///
    /// # Cancel safety
    /// A dropped future leaves a node that stops, perhaps without the snapshot.
    pub async fn shutdown(&self) -> Result<()> {
        if *self.shared.stop.borrow() == Stop::No {
            let now = self.shared.rt.clock().now();
            self.shared.lock().leave(now);
            self.shared.send();
        }
        self.shared.stop.send_replace(Stop::Now);
        let mut ended = self.shared.ended.subscribe();
        // An error: its sender is gone, so the task has ended.
        let _ = ended.wait_for(|ended| *ended).await;
        self.shared.save().await
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the node was stopped")
}

impl<T: Replicated> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Core<T>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands what is ready to the network.
    fn send(&self) {
        let packets = self.lock().take_packets();
        let (mut full, mut sent, mut bytes) = (0, 0, 0);
        for packet in packets {
            let size = packet.bytes.len() as u64;
            match self.network.send(packet.to, packet.way, packet.bytes) {
                Sent::Full => full += 1,
                Sent::OnItsWay => (sent, bytes) = (sent + 1, bytes + size),
            }
        }
        let mut core = self.lock();
        core.stats.full += full;
        core.stats.sent += sent;
        core.stats.sent_bytes += bytes;
    }

    async fn save(&self) -> Result<()> {
        let Some(cell) = &self.cell else { return Ok(()) };
        let _one = self.saving.lock().await;
        let made = self.lock().snapshot(self.rt.clock().wall().unix_millis());
        let Some((version, snapshot)) = made else { return Ok(()) };
        match cell.store_synced(snapshot.encode()).await {
            Ok(()) => {
                self.lock().saved(version);
                Ok(())
            }
            Err(error) => {
                let error = Error::from(error);
                self.lock().save_failed(&error);
                Err(error)
            }
        }
    }
}

/// Packets and time, until the node stops.
async fn run<T: Replicated + Send + 'static>(shared: Arc<Shared<T>>) {
    let mut stop = shared.stop.subscribe();
    let mut told = 0;
    loop {
        let due = shared.lock().due();
        let inbound = tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s != Stop::No) => break,
            inbound = shared.network.receive() => Some(inbound),
            () = shared.wake.notified() => None,
            () = shared.rt.clock().sleep_until(due) => None,
        };
        let now = shared.rt.clock().now();
        let version = {
            let mut core = shared.lock();
            if let Some(inbound) = inbound
                && !core.on_packet(&inbound, now)
                && inbound.way == Way::Stream
            {
                shared.network.refuse(inbound.from);
            }
            core.on_time(now, &|to| shared.network.is_full(to));
            core.version()
        };
        if version != told {
            told = version;
            shared.changed.send_replace(version);
        }
        shared.send();
    }
    shared.ended.send_replace(true);
}

/// Snapshots, until the node stops.
async fn keep<T: Replicated + Send + 'static>(shared: Arc<Shared<T>>, every: std::time::Duration) {
    let mut stop = shared.stop.subscribe();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s != Stop::No) => return,
            () = shared.rt.clock().sleep(every) => {}
        }
        // A failure is an event, and tried again.
        let _ = shared.save().await;
    }
}
