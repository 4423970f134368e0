//! What a file can say, as data.

use std::time::Duration;

use crate::lint::Layer;

/// Whether an operation may be repeated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Idempotent {
    Always,
    #[default]
    Never,
    PerCall,
}

/// Which budget retries and hedges spend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum BudgetUse {
    Named(String),
    None,
    #[default]
    Own,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BudgetSpec {
    pub(super) ratio: Option<f64>,
    pub(super) floor: Option<f64>,
    pub(super) credit: Option<Duration>,
    pub(super) preset: Option<String>,
    pub(super) in_flight: Option<InFlightSpec>,
    pub(super) grpc: Option<GrpcSpec>,
}

/// Envoy's rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct InFlightSpec {
    pub(super) share: Option<f64>,
    pub(super) at_least: Option<u32>,
}

/// gRPC's rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GrpcSpec {
    pub(super) max: Option<u32>,
    pub(super) ratio: Option<f64>,
}

/// One target, with the defaults already merged in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spec {
    pub(super) deadline: Option<Duration>,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) idempotent: Idempotent,
    pub(super) budget: BudgetUse,
    /// The target whose policy is around this one.
    pub(super) within: Option<String>,
    /// Calls per second that are expected; only the linter reads it.
    pub(super) expected_rate: Option<f64>,
    /// How the caller stacks the layers; only the linter reads it.
    pub(super) order: Option<Vec<Layer>>,
    pub(super) retry: Option<RetrySpec>,
    pub(super) breaker: Option<BreakerSpec>,
    pub(super) bulkhead: Option<BulkheadSpec>,
    pub(super) attempt_bulkhead: Option<BulkheadSpec>,
    /// The longest wait, if it is set.
    pub(super) send_rate: Option<Option<Duration>>,
    pub(super) hedge: Option<HedgeSpec>,
    pub(super) rate: Option<RateSpec>,
    pub(super) adaptive: Option<AdaptiveSpec>,
    pub(super) throttle: Option<ThrottleSpec>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RetrySpec {
    pub(super) attempts: Option<u32>,
    pub(super) base: Option<Duration>,
    pub(super) cap: Option<Duration>,
    pub(super) growth: Option<String>,
    pub(super) jitter: Option<String>,
    pub(super) total_time: Option<Duration>,
    pub(super) max_retry_after: Option<Duration>,
    pub(super) min_attempt_time: Option<Duration>,
    pub(super) on: Option<Vec<String>>,
    pub(super) preset: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BreakerSpec {
    pub(super) window: Option<Duration>,
    pub(super) count: Option<u32>,
    pub(super) consecutive: Option<u32>,
    pub(super) failure_rate: Option<f64>,
    pub(super) min_calls: Option<u32>,
    pub(super) slow_after: Option<Duration>,
    pub(super) slow_rate: Option<f64>,
    pub(super) open_for: Option<Duration>,
    pub(super) open_growth: Option<f64>,
    pub(super) open_cap: Option<Duration>,
    pub(super) jitter: Option<f64>,
    pub(super) permits: Option<u32>,
    pub(super) required: Option<u32>,
    pub(super) probe_lease: Option<Duration>,
    /// Least time of a stage of a progressive half-open.
    pub(super) ramp: Option<Duration>,
    /// Results of probes after which half-open decides by their share of failures.
    pub(super) samples: Option<u32>,
    pub(super) sample_rate: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BulkheadSpec {
    pub(super) limit: Option<u32>,
    pub(super) queue: Option<u32>,
    pub(super) wait: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct HedgeSpec {
    pub(super) after: Option<Duration>,
    pub(super) percentile: Option<f64>,
    pub(super) window: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RateSpec {
    pub(super) cells: Option<u32>,
    pub(super) per: Option<Duration>,
    pub(super) burst: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AdaptiveSpec {
    pub(super) algorithm: Option<String>,
    pub(super) initial: Option<u32>,
    pub(super) min: Option<u32>,
    pub(super) max: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ThrottleSpec {
    pub(super) k: Option<f64>,
    pub(super) window: Option<Duration>,
    pub(super) trickle: Option<f64>,
}
