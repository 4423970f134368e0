//! Which endpoints to leave out: Envoy's rules as a state machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// So many failures in a row.
    Consecutive,
    /// Its success rate lies far below that of the others.
    SuccessRate,
}

/// Settings, validated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) consecutive: u32,
    pub(crate) interval: Duration,
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
    pub(crate) max_share: f64,
    pub(crate) success_rate: bool,
    pub(crate) deviations: f64,
    pub(crate) min_hosts: u32,
    pub(crate) min_requests: u32,
}

#[derive(Clone, Debug, Default)]
struct Host {
    run: u32,
    ok: u64,
    total: u64,
    /// How often in a row it was ejected; falls by one per healthy interval.
    times: u32,
    ejected: Option<Ejected>,
}

impl Host {
    /// Serves again, with a clean slate but for how often it was ejected.
    fn forgive(&mut self) {
        *self = Self { times: self.times, ..Self::default() };
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ejected {
    pub(crate) until: Instant,
    pub(crate) cause: Cause,
}

/// All endpoints of one service.
#[derive(Clone, Debug)]
pub(crate) struct State {
    settings: Settings,
    hosts: BTreeMap<Arc<str>, Host>,
    sweep_at: Instant,
    /// The first end of an ejection.
    back_at: Instant,
}

impl State {
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        let sweep_at = now.saturating_add(settings.interval);
        Self { settings, hosts: BTreeMap::new(), sweep_at, back_at: Instant::FAR_FUTURE }
    }

    pub(crate) fn add(&mut self, host: Arc<str>) -> bool {
        let fresh = !self.hosts.contains_key(&host);
        self.hosts.entry(host).or_default();
        fresh
    }

    /// Forgets an endpoint. If that leaves only ejected ones, the one whose ejection ends first serves again.
    pub(crate) fn remove(&mut self, host: &str) -> bool {
        let known = self.hosts.remove(host).is_some();
        if self.hosts.values().all(|h| h.ejected.is_some())
            && let Some(first) = self.hosts.values_mut().min_by_key(|h| h.ejected.map(|e| e.until))
        {
            first.forgive();
        }
        known
    }

    /// Counts a result and returns whether it ejected the endpoint. Results of unknown endpoints, and of calls
    /// that were under way when theirs was ejected, are dropped.
    pub(crate) fn record(&mut self, host: &str, ok: bool, now: Instant) -> Option<Cause> {
        self.advance(now);
        let limit = self.settings.consecutive;
        let state = self.hosts.get_mut(host).filter(|h| h.ejected.is_none())?;
        state.total += 1;
        state.ok += u64::from(ok);
        state.run = if ok { 0 } else { state.run.saturating_add(1) };
        if state.run >= limit && self.eject(host, Cause::Consecutive, now) {
            return Some(Cause::Consecutive);
        }
        None
    }

    /// The endpoints to send to, in order of their names.
    pub(crate) fn available(&mut self, now: Instant) -> Vec<Arc<str>> {
        self.advance(now);
        self.hosts.iter().filter(|(_, h)| h.ejected.is_none()).map(|(name, _)| Arc::clone(name)).collect()
    }

    pub(crate) fn ejected(&mut self, now: Instant) -> Vec<(Arc<str>, Ejected)> {
        self.advance(now);
        let out = |(name, host): (&Arc<str>, &Host)| host.ejected.map(|e| (Arc::clone(name), e));
        self.hosts.iter().filter_map(out).collect()
    }

    /// Whether `host` is known and not ejected.
    pub(crate) fn is_available(&mut self, host: &str, now: Instant) -> bool {
        self.advance(now);
        self.hosts.get(host).is_some_and(|h| h.ejected.is_none())
    }

    /// Ends ejections that are over, and sweeps when an interval has passed.
    fn advance(&mut self, now: Instant) {
        if now >= self.back_at {
            self.back_at = Instant::FAR_FUTURE;
            for host in self.hosts.values_mut() {
                match host.ejected {
                    Some(e) if now >= e.until => host.forgive(),
                    Some(e) => self.back_at = self.back_at.min(e.until),
                    None => {}
                }
            }
        }
        if now >= self.sweep_at {
            self.sweep_at = now.saturating_add(self.settings.interval);
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        for host in self.below_the_others() {
            self.eject(&host, Cause::SuccessRate, now);
        }
        for host in self.hosts.values_mut().filter(|h| h.ejected.is_none()) {
            if host.total > 0 && host.ok == host.total {
                host.times = host.times.saturating_sub(1);
            }
            (host.ok, host.total) = (0, 0);
        }
    }

    /// Endpoints whose success rate is below `mean - deviations * sigma` of those with enough requests.
    fn below_the_others(&self) -> Vec<Arc<str>> {
        let enough = |h: &Host| h.ejected.is_none() && h.total >= u64::from(self.settings.min_requests);
        let rates: Vec<(&Arc<str>, f64)> = self
            .hosts
            .iter()
            .filter(|(_, h)| enough(h))
            .map(|(name, h)| (name, h.ok as f64 / h.total as f64))
            .collect();
        if !self.settings.success_rate || rates.len() < self.settings.min_hosts as usize {
            return Vec::new();
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / count;
        let least = mean - self.settings.deviations * variance.sqrt();
        let mut below: Vec<_> = rates.into_iter().filter(|(_, r)| *r < least).collect();
        // The worst first: the share of ejected endpoints is bounded.
        below.sort_by(|a, b| a.1.total_cmp(&b.1));
        below.into_iter().map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Ejects unless that would leave nobody or exceed the share.
    fn eject(&mut self, host: &str, cause: Cause, now: Instant) -> bool {
        let total = self.hosts.len();
        let out = self.hosts.values().filter(|h| h.ejected.is_some()).count();
        let most = ((total as f64 * self.settings.max_share) as usize).max(1).min(total.saturating_sub(1));
        let Some(state) = self.hosts.get_mut(host).filter(|_| out < most) else { return false };
        state.times = state.times.saturating_add(1);
        let time = self.settings.base.saturating_mul(state.times).min(self.settings.cap);
        let until = now.saturating_add(time);
        state.ejected = Some(Ejected { until, cause });
        self.back_at = self.back_at.min(until);
        true
    }
}
