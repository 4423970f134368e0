//! What the reports of the others mean to one node. Pure: reports in, a judgement out.

use std::hash::{Hash, Hasher};

use super::wire::Report;

/// Thresholds, validated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Share of the peers with evidence that must report failing.
    pub(crate) quorum: f64,
    /// Fewest peers that must report failing.
    pub(crate) min_peers: u32,
    /// Probes in flight, all nodes together.
    pub(crate) permits: u32,
}

/// Fewest calls of a period that are evidence: one or two failures are an accident.
const EVIDENCE: u32 = 3;
/// Share of failures of a period that counts as failing: the default of the breaker's own rate.
const FAILING: f64 = 0.5;

/// What one node makes of one dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// A quorum of peers reports it failing.
    pub(crate) armed: bool,
    /// Probes that this node may have in flight.
    pub(crate) share: u32,
    /// Whether any peer watches the dependency.
    pub(crate) has_peers: bool,
}

/// Judges one dependency by the node's own report and those of its peers.
pub(crate) fn judge<'a>(
    settings: &Settings,
    node: &str,
    own: &Report,
    peers: impl Iterator<Item = (&'a str, &'a Report)>,
) -> Judgement {
    let (mut failing, mut evidence) = (0_u32, 0_u32);
    // Everybody who would probe, in the order in which they may: who has failed least goes first, so that a
    // node which cannot reach a healthy dependency does not hold the permit of one that can.
    let mine = (own.round, rank(node, &own.dependency));
    let (mut before, mut probing, mut has_peers) = (0_u32, 1_u32, false);
    for (peer, report) in peers {
        has_peers = true;
        if report.open || report.calls >= EVIDENCE {
            evidence += 1;
            failing += u32::from(report.open || is_failing(report));
        }
        if report.open {
            probing += 1;
            before += u32::from((report.round, rank(peer, &report.dependency)) < mine);
        }
    }
    let quorum = failing >= settings.min_peers && f64::from(failing) >= settings.quorum * f64::from(evidence);
    let extra = u32::from(before < settings.permits % probing);
    Judgement { armed: quorum, share: settings.permits / probing + extra, has_peers }
}

fn is_failing(report: &Report) -> bool {
    f64::from(report.failures) >= FAILING * f64::from(report.calls)
}

/// An order of the nodes that differs per dependency and is the same everywhere.
fn rank(node: &str, dependency: &str) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    (node, dependency).hash(&mut hasher);
    hasher.0
}

/// FNV-1a (Fowler, Noll, Vo): the same on every machine, which the standard library's hasher need not be.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Report, Settings, judge};

    const SETTINGS: Settings = Settings { quorum: 0.5, min_peers: 2, permits: 3 };

    fn report(open: bool, calls: u32, failures: u32, round: u32) -> Report {
        Report { dependency: "db".to_owned(), open, calls, failures, round }
    }

    #[track_caller]
    fn check(own: &Report, peers: &[Report], expected: Judgement) {
        let names: Vec<String> = (0..peers.len()).map(|i| format!("n{i}")).collect();
        let peers = names.iter().map(String::as_str).zip(peers);
        let expected = Judgement { has_peers: !names.is_empty(), ..expected };
        assert_eq!(judge(&SETTINGS, "me", own, peers), expected);
    }

    #[test]
    fn arming_needs_a_quorum_of_peers_with_evidence() {
        let (good, bad, idle) = (report(false, 100, 1, 1), report(false, 100, 90, 1), report(false, 2, 2, 1));
        let own = good.clone();
        let armed = |armed| Judgement { armed, share: 3, has_peers: true };
        check(&own, &[], armed(false));
        check(&own, std::slice::from_ref(&bad), armed(false));
        check(&own, &[bad.clone(), bad.clone()], armed(true));
        check(&own, &[bad.clone(), bad.clone(), good.clone(), good.clone()], armed(true));
        check(&own, &[bad.clone(), bad.clone(), good.clone(), good.clone(), good.clone()], armed(false));
        check(&own, &[bad.clone(), bad, idle.clone(), idle], armed(true));
    }

    #[test]
    fn permits_are_shared_out_and_never_exceeded() {
        for nodes in 1..20_usize {
            let rounds: Vec<u32> = (0..nodes).map(|i| 1 + (i as u32) % 3).collect();
            let mut total = 0;
            for me in 0..nodes {
                let peers: Vec<(String, Report)> = (0..nodes)
                    .filter(|i| *i != me)
                    .map(|i| (format!("n{i}"), report(true, 0, 0, rounds[i])))
                    .collect();
                let own = report(true, 0, 0, rounds[me]);
                let judged =
                    judge(&SETTINGS, &format!("n{me}"), &own, peers.iter().map(|(n, r)| (n.as_str(), r)));
                total += judged.share;
            }
            assert_eq!(total, 3, "{nodes} nodes");
        }
    }

    #[test]
    fn who_failed_least_probes_first() {
        let peers: Vec<Report> = (0..5).map(|_| report(true, 0, 0, 2)).collect();
        check(&report(true, 0, 0, 1), &peers, Judgement { armed: true, share: 1, has_peers: true });
        check(&report(true, 0, 0, 9), &peers, Judgement { armed: true, share: 0, has_peers: true });
    }
}
