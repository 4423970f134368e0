//! Callers of one server that come at once go together: one script call for up to 32 of them.
//!
//! A call of a script costs a server as much as what the script does for one lease. Few callers go alone, by
//! the shortest way; behind them a line forms, and up to three carriers take from its head whatever waits there,
//! each batch as one call, and bring everybody their own answer.

mod state;

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use mainstay_clock::{Instant, Runtime};
use mainstay_store::{Error, ErrorKind, Outcome};
use redis::{Cmd, Value};
use tokio::sync::oneshot;

use crate::error::{self, garbled};
use crate::keys::Keys;
use crate::node::{Failure, Node, Once, Purpose, Reply, locked};
use crate::ops::Ops;
pub(crate) use state::Kind;
use state::{Entered, Line};

type Answer = Result<Reply, Failure>;

/// What a caller says.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) keys: Arc<[Keys]>,
    pub(crate) op: String,
    /// The ttl, or the life of a tombstone, in milliseconds.
    pub(crate) millis: u64,
    /// What an acquisition says of its holder.
    pub(crate) about: Vec<u8>,
}

/// Where its answer goes.
#[derive(Debug)]
struct Caller(oneshot::Sender<Answer>);

impl Caller {
    fn tell(self, answer: Answer) {
        // Nobody listens to one that was dropped, or whose time is up.
        let _ = self.0.send(answer);
    }

    fn waits(&self) -> bool {
        !self.0.is_closed()
    }
}

/// The callers of one server. Clones are the same.
#[derive(Clone)]
pub(crate) struct Crowd(Arc<Inner>);

struct Inner {
    node: Node,
    rt: Runtime,
    /// How long an answer is waited for.
    patience: Duration,
    line: Mutex<Line<(Words, Caller)>>,
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("node", &self.0.node).finish_non_exhaustive()
    }
}

/// How a caller goes.
pub(crate) enum Way<'a> {
    /// By itself, while this lives.
    Alone(Alone<'a>),
    /// With others.
    Together(Waiting<'a>),
}

/// One that goes by itself.
pub(crate) struct Alone<'a>(&'a Crowd);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        locked(&self.0.0.line).returned();
    }
}

/// One that waits, or is on its way. Dropped while it waits, nothing is sent.
pub(crate) struct Waiting<'a> {
    crowd: &'a Crowd,
    ops: &'a Ops,
    op: &'a str,
    kind: Kind,
    number: u64,
    until: Instant,
    answer: oneshot::Receiver<Answer>,
}

impl Waiting<'_> {
    /// Its own answer, or that there was none in its time.
    ///
    /// # Cancel safety
    /// Before it is sent nothing happens; after that it may take effect, and stays in doubt.
    pub(crate) async fn answer(mut self) -> Answer {
        let Inner { node, rt, .. } = &*self.crowd.0;
        let end = rt.clock().sleep_until(self.until);
        tokio::select! {
            biased;
            answer = &mut self.answer => answer.unwrap_or_else(|_| {
                let text = format!("redis {} was asked by a task that ended with its runtime", node.name());
                let error = Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown);
                Err(Failure { error, doubt: true })
            }),
            () = end => Err(if self.leave() {
                late(node.name())
            } else {
                Failure { error: error::unheard(node.name()), doubt: true }
            }),
        }
    }

    /// Whether it was still in the line.
    fn leave(&self) -> bool {
        locked(&self.crowd.0.line).leave(self.kind, self.number).is_some()
    }
}

/// Nothing was sent.
fn late(node: &str) -> Failure {
    let text = format!("redis {node} has not got to this request in time: others were before it");
    Failure { error: Error::new(ErrorKind::Unavailable, text), doubt: false }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.leave() && self.kind == Kind::Acquire {
            self.ops.settled(self.op, 0);
            self.ops.refused(self.op);
        }
    }
}

/// Whether a request of these names may go with others. In a batch nobody's key may be another kind of key of
/// somebody else, and every key beside a lock has a brace.
pub(crate) fn may_join(keys: &[Keys]) -> bool {
    matches!(keys, [one] if !one.lock.contains('}'))
}

impl Crowd {
    pub(crate) fn new(node: Node, rt: &Runtime, patience: Duration) -> Self {
        Self(Arc::new(Inner { node, rt: rt.clone(), patience, line: Mutex::new(Line::new()) }))
    }

    /// A caller comes. `words` is asked for if it goes with others.
    pub(crate) fn enter<'a>(
        &'a self,
        kind: Kind,
        (ops, op): (&'a Ops, &'a str),
        words: impl FnOnce() -> Words,
    ) -> Way<'a> {
        let mut heard = None;
        let caller = || {
            let (to, answer) = oneshot::channel();
            let until = self.0.rt.clock().now().saturating_add(self.0.patience);
            heard = Some((until, answer));
            (until, (words(), Caller(to)))
        };
        let entered = locked(&self.0.line).enter(kind, caller);
        let (Entered::First(number) | Entered::Waits(number), Some((until, answer))) = (entered, heard)
        else {
            return Way::Alone(Alone(self));
        };
        let waiting = Waiting { crowd: self, ops, op, kind, number, until, answer };
        if matches!(entered, Entered::First(_)) {
            let carrier = Carrier { crowd: self.clone(), carries: Some(0) };
            self.0.rt.spawn("redis-crowd", carrier.run());
        }
        Way::Together(waiting)
    }
}

/// Takes batches to the server for as long as anybody waits.
struct Carrier {
    crowd: Crowd,
    /// How many are on their way with it; none when it ended as it should.
    carries: Option<usize>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if let Some(count) = self.carries {
            let left = locked(&self.crowd.0.line).lost(count);
            // Whoever is dropped unanswered is told so.
            drop(left);
        }
    }
}

impl Carrier {
    async fn run(mut self) {
        // Those who were woken together come together.
        once_around().await;
        loop {
            // Nobody is taken from the line before there is a connection: until then they may leave it.
            let up = self.crowd.0.node.ready().await;
            let Some((kind, batch)) = self.take() else { return };
            let count = batch.len();
            self.carries = Some(count);
            let (words, callers): (Vec<Words>, Vec<Caller>) = batch.into_iter().unzip();
            match up {
                Ok(()) => self.carry(kind, words, callers).await,
                Err(error) => refuse(callers, error, false),
            }
            locked(&self.crowd.0.line).delivered(count);
            self.carries = Some(0);
        }
    }

    /// Those who go next. Nobody is sent whose time is up.
    fn take(&mut self) -> Option<(Kind, Vec<(Words, Caller)>)> {
        let Inner { node, rt, line, .. } = &*self.crowd.0;
        let over = locked(line).over(rt.clock().now());
        over.into_iter().for_each(|(_, caller)| caller.tell(Err(late(node.name()))));
        let batch = locked(line).take();
        if batch.is_none() {
            self.carries = None;
        }
        batch
    }

    /// Sends a batch, once more if the connection broke, then without those who do not wait any more.
    async fn carry(&self, kind: Kind, mut words: Vec<Words>, mut callers: Vec<Caller>) {
        let (node, patience) = (&self.crowd.0.node, self.crowd.0.patience);
        let (script, purpose) = match kind {
            Kind::Acquire => (&node.scripts().acquire_all, Purpose::Grant),
            Kind::Release => (&node.scripts().release_all, Purpose::Other),
        };
        let mut doubt = false;
        while !words.is_empty() {
            let call = script.call(10 * words.len(), |cmd| fill(cmd, kind, &words));
            match node.once(&call, purpose, patience).await {
                Once::Answered(value) => return deliver(node.name(), callers, value, doubt),
                Once::Broken(_) if !doubt => {
                    doubt = true;
                    let both = words.into_iter().zip(callers);
                    (words, callers) = both.filter(|(_, caller)| caller.waits()).unzip();
                }
                Once::Broken(error) | Once::Unheard(error) => return refuse(callers, error, true),
                Once::Refused(error) => return refuse(callers, error, doubt),
            }
        }
    }
}

/// Lets everybody else who can run do so.
async fn once_around() {
    let mut been = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut been, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn fill(cmd: &mut Cmd, kind: Kind, all: &[Words]) {
    let keys_of_one = match kind {
        Kind::Acquire => 7,
        Kind::Release => 4,
    };
    cmd.arg(keys_of_one * all.len());
    for Words { keys, op, .. } in all {
        keys[0].put_tombstone(cmd, op);
        match kind {
            Kind::Acquire => keys[0].put_acquired(cmd),
            Kind::Release => keys[0].put_released(cmd),
        }
    }
    for Words { op, millis, about, .. } in all {
        cmd.arg(op).arg(*millis);
        if kind == Kind::Acquire {
            cmd.arg(about);
        }
    }
}

/// Everybody's own answer.
fn deliver(node: &str, callers: Vec<Caller>, reply: Value, doubt: bool) {
    match reply {
        Value::Array(answers) if answers.len() == callers.len() => {
            for (caller, value) in callers.into_iter().zip(answers) {
                caller.tell(match value {
                    Value::ServerError(error) => {
                        Err(Failure { error: error::by_server(node, &error), doubt })
                    }
                    value => Ok(Reply { value, doubt }),
                });
            }
        }
        other => refuse(callers, garbled(node, &other), true),
    }
}

/// The same error for everybody.
fn refuse(callers: Vec<Caller>, error: Error, doubt: bool) {
    let error = Arc::new(error);
    for caller in callers {
        caller.tell(Err(Failure { error: error::again(&error), doubt }));
    }
}
