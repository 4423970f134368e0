//! Options of a quorum.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Rng, Runtime};
use mainstay_store::lease::Names;
use mainstay_store::{Error, ErrorKind};

use super::RedisQuorum;
use crate::ConfigError;
use crate::config::Options;
use crate::keys::KeyProfile;
use crate::node::{Admit, Node, Report, locked};

/// More servers than this add round trips and no safety that anybody has asked for.
const MAX_SERVERS: usize = 15;
/// The longest lease, unless told otherwise: the default ttl of a lock.
const MAX_TTL: Duration = Duration::from_secs(30);

/// Settings of a [`RedisQuorum`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `fencing` | two phases | a lease alone is no mutual exclusion; where counters agree it costs nothing |
/// | `max_ttl` | 30 s | how long a server that restarted without durable data grants nothing |
/// | `request_timeout` | a 20th of the ttl, 50 ms to 500 ms | one server that hangs leaves most of the ttl |
/// | `require_durable` | off | few run `appendfsync always`; with it tokens are strict |
/// | `allow_even` | off | an even number survives no more failures than one less, and splits evenly |
/// | `profile`, `names`, `epoch` | as for one server | |
#[derive(Clone)]
#[must_use]
pub struct Builder {
    urls: Vec<String>,
    options: Options,
    pub(super) fenced: bool,
    pub(super) durable: bool,
    even: bool,
    trusted: bool,
    pub(super) max_ttl: Duration,
    pub(super) patience: Option<Duration>,
}

/// Without its address, which may hold a password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            options: Options::default(),
            fenced: true,
            durable: false,
            even: false,
            trusted: false,
            max_ttl: MAX_TTL,
            patience: None,
        }
    }

    /// How names become keys.
    pub fn profile(mut self, profile: KeyProfile) -> Self {
        self.options.profile = profile;
        self
    }

    /// Which part of a name is the key: with [`Names::Bare`] that without its namespace, which is what clients of other
    /// make lock.
    pub fn names(mut self, names: Names) -> Self {
        self.options.names = names;
        self
    }

    /// The upper 15 bits of every token.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.options.epoch = epoch.into();
        self
    }

    /// Leaves tokens as each majority happens to give them: no second phase, and no fence.
    pub fn without_fencing(mut self) -> Self {
        self.fenced = false;
        self
    }

    /// Uses only servers that have every write on disk before they answer (`appendonly yes`, `appendfsync
    /// always`), and declares strict fencing. Others are refused when they are connected.
    pub fn require_durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Accepts an even number of servers.
    pub fn allow_even(mut self) -> Self {
        self.even = true;
        self
    }

    /// The longest lease that any client takes here.
    pub fn max_ttl(mut self, limit: Duration) -> Self {
        self.max_ttl = limit;
        self
    }

    /// Longest wait for one server, whatever the ttl: for servers whose syncs take long. A majority that has answered
    /// is not kept waiting by the others.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.options.request_timeout = limit;
        self.patience = Some(limit);
        self
    }

    /// Lets a server grant at once after a restart. Whoever says so knows that it keeps its data, or that no
    /// lease was held when it stopped; otherwise two may hold the same name.
    pub fn trust_restarts(mut self) -> Self {
        self.trusted = true;
        self
    }

    /// Checks the settings. Nothing is connected yet: the first call does that, or
    /// [`ready`](RedisQuorum::ready).
    ///
    /// # Errors
    /// Fewer than three servers, more than 15, an even number unless allowed, the same URL twice, a ttl limit
    /// outside 200 ms to 30 days, and as for one server.
    pub fn build(self, rt: &Runtime) -> Result<RedisQuorum, ConfigError> {
        self.options.check()?;
        let count = self.urls.len();
        let least = if self.even { 2 } else { 3 };
        if !(least..=MAX_SERVERS).contains(&count) {
            return Err(ConfigError::new("servers", count, "3 to 15, each on a machine of its own"));
        }
        if count.is_multiple_of(2) && !self.even {
            let allowed = "an odd number: an even one can split in halves; `allow_even` if you must";
            return Err(ConfigError::new("servers", count, allowed));
        }
        let (least, most) = (super::MIN_TTL, Duration::from_secs(86_400 * 30));
        if self.max_ttl < least || self.max_ttl > most {
            return Err(ConfigError::new("max_ttl", format!("{:?}", self.max_ttl), "200 ms to 30 days"));
        }
        let mut sorted = self.urls.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::new("servers", count, "different servers: one is named twice"));
        }
        let runs: Arc<Mutex<BTreeMap<usize, String>>> = Arc::default();
        let nodes: Result<Vec<Node>, ConfigError> = self
            .urls
            .iter()
            .enumerate()
            .map(|(at, url)| {
                let patience = self.patience.unwrap_or(super::MAX_PATIENCE);
                Node::admitted(url, patience, rt, self.admit(at, &runs))
            })
            .collect();
        Ok(RedisQuorum::on(nodes?, self.options.clone(), &self, rt))
    }

    /// Two addresses may lead to one server, which would then vote twice; a server that forgot its leases
    /// must not vote while any of them may be alive.
    fn admit(&self, at: usize, runs: &Arc<Mutex<BTreeMap<usize, String>>>) -> Admit {
        let (runs, durable, trusted, max_ttl) = (Arc::clone(runs), self.durable, self.trusted, self.max_ttl);
        Arc::new(move |report: &Report| {
            let mut runs = locked(&runs);
            if let Some((other, _)) = runs.iter().find(|(i, run)| **i != at && **run == report.run_id) {
                let text = format!("servers {other} and {at} of the quorum are one: run {}", report.run_id);
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            if durable && !report.durable {
                let text = format!("server {at} of the quorum is not durable, which was required");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            runs.insert(at, report.run_id.clone());
            let forgets = !report.durable && !trusted;
            Ok(if forgets { max_ttl.saturating_sub(report.uptime) } else { Duration::ZERO })
        })
    }
}

/// How often and after which pauses an acquisition is tried again where nothing tells when it is worth it.
///
/// # Defaults
/// Those of the published algorithm: 10 retries, 200 ms apart, give or take 200 ms. The drift factor, 0.01,
/// is part of every deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redlock {
    /// Tries after the first.
    pub retries: u32,
    /// Between two tries.
    pub delay: Duration,
    /// A pause is up to this much shorter or longer, so that those who split the votes do not meet again.
    pub jitter: Duration,
}

impl Default for Redlock {
    fn default() -> Self {
        Self { retries: 10, delay: Duration::from_millis(200), jitter: Duration::from_millis(200) }
    }
}

impl Redlock {
    /// The next pause: `max(0, delay + uniform(-jitter, jitter))`.
    pub(super) fn pause(&self, rng: &dyn Rng) -> Duration {
        let least = self.delay.saturating_sub(self.jitter);
        let most = self.delay.saturating_add(self.jitter);
        // Below zero counts as zero, so the shares of the range stay those of the formula.
        let span = self.jitter.saturating_mul(2);
        let drawn = span.mul_f64(rng.unit());
        self.delay.saturating_add(drawn).saturating_sub(self.jitter).clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_clock::SeededRng;

    fn refused(urls: &[&str], change: impl Fn(Builder) -> Builder) -> Option<&'static str> {
        let urls = urls.iter().map(|u| (*u).to_owned()).collect();
        change(Builder::new(urls)).build(&Runtime::system()).err().map(|e| e.field())
    }

    const URLS: [&str; 4] = ["redis://a", "redis://b", "redis://c", "redis://d"];

    #[test]
    fn f01_what_cannot_hold_is_refused() {
        let same = |b: Builder| b;
        assert_eq!(refused(&URLS[..3], same), None);
        assert_eq!(refused(&URLS, same), Some("servers"), "even");
        assert_eq!(refused(&URLS, Builder::allow_even), None);
        assert_eq!(refused(&URLS[..1], same), Some("servers"));
        assert_eq!(refused(&["redis://a", "redis://b", "redis://a"], same), Some("servers"));
        assert_eq!(refused(&["redis://a", "redis://b", "nonsense"], same), Some("url"));
        assert_eq!(refused(&URLS[..3], |b| b.max_ttl(Duration::ZERO)), Some("max_ttl"));
        assert_eq!(refused(&URLS[..3], |b| b.epoch(1 << 15)), Some("epoch"));
        assert_eq!(refused(&URLS[..3], |b| b.request_timeout(Duration::ZERO)), Some("request_timeout"));
    }

    #[test]
    fn k14_the_textbooks_schedule() {
        let (preset, rng) = (Redlock::default(), SeededRng::new(1));
        let pauses: Vec<Duration> = (0..1_000).map(|_| preset.pause(&rng)).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(*least < Duration::from_millis(20) && *most > Duration::from_millis(380));
        assert!(*most <= Duration::from_millis(400));
        assert_eq!(preset.retries, 10);
    }
}
