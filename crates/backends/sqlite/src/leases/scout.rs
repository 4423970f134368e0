//! Looks for what other processes changed, once for all watchers of this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::Result;
use mainstay_store::lease::Watchers;
use rusqlite::Connection;

use super::combine::Combiner;
use super::rows::{self, News};
use crate::error::store_error;

/// Between two looks; a look reads one page in shared memory.
const LOOK: Duration = Duration::from_millis(20);
/// Looks between two questions whether anybody still watches.
const ROUND: u32 = 50;

/// What was seen, and whether somebody looks.
#[derive(Debug)]
pub(super) struct Scout(Arc<Seen>);

#[derive(Debug)]
struct Seen {
    origin: i64,
    /// What `pragma data_version` said last.
    version: AtomicI64,
    /// The last change that watchers were told of.
    number: AtomicI64,
    /// Somebody looks.
    out: AtomicBool,
}

impl Scout {
    /// For the handle that marks its changes with `origin`.
    pub(super) fn new(origin: i64) -> Self {
        let (version, number) = (AtomicI64::new(0), AtomicI64::new(0));
        Self(Arc::new(Seen { origin, version, number, out: AtomicBool::new(false) }))
    }

    /// Looks in the background, until nobody watches any more.
    pub(super) fn send(&self, combiner: &Combiner, rt: &Runtime) {
        if self.0.out.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut back = Back { seen: Arc::clone(&self.0), out: true };
        let (combiner, clock) = (combiner.clone(), Arc::clone(rt.clock()));
        rt.spawn("sqlite-lease-scout", async move {
            loop {
                for _ in 0..ROUND {
                    if let Err(error) = back.seen.look(&combiner).await {
                        tracing::debug!(%error, "changes of other processes are not seen; timers go on");
                    }
                    clock.sleep(LOOK).await;
                }
                if !combiner.watchers.any() && !back.goes_out_again(&combiner) {
                    return;
                }
            }
        });
    }
}

/// Tells that nobody looks any more, however the task ended.
struct Back {
    seen: Arc<Seen>,
    out: bool,
}

impl Back {
    /// Comes back, and goes out again for whoever began to watch just before and saw that somebody looks.
    fn goes_out_again(&mut self, combiner: &Combiner) -> bool {
        self.seen.out.store(false, Ordering::Release);
        self.out = combiner.watchers.any() && !self.seen.out.swap(true, Ordering::AcqRel);
        self.out
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if self.out {
            self.seen.out.store(false, Ordering::Release);
        }
    }
}

impl Seen {
    async fn look(&self, combiner: &Combiner) -> Result<()> {
        let (version, number, origin) =
            (self.version.load(Ordering::Acquire), self.number.load(Ordering::Acquire), self.origin);
        let look = move |conn: &Connection| -> rusqlite::Result<Option<(i64, News, i64)>> {
            // Changes of one's own do not move it.
            let now: i64 = conn.prepare_cached("pragma data_version")?.query_row([], |r| r.get(0))?;
            if now == version {
                return Ok(None);
            }
            let (news, last) = rows::news(conn, number, origin)?;
            Ok(Some((now, news, last)))
        };
        let Some((version, news, last)) = combiner.look(look).await?.map_err(store_error)? else {
            return Ok(());
        };
        self.version.store(version, Ordering::Release);
        self.number.store(last, Ordering::Release);
        tell(&combiner.watchers, news);
        Ok(())
    }
}

fn tell(watchers: &Watchers, news: News) {
    match news {
        News::Anything => watchers.fire_all(),
        News::Of(names) => names.iter().for_each(|name| watchers.fire(name)),
    }
}
