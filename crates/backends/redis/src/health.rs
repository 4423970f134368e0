//! What was noticed about a server.

/// What was noticed about a server since the store was built. For people and dashboards; decide nothing by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// A connection is open.
    pub connected: bool,
    /// The server's own name for this run of it, empty before the first connection.
    pub run_id: String,
    /// How often a connection found the server restarted: leases that it had not kept are gone.
    pub restarts: u64,
    /// How often its clock was seen to jump by a second or more between two renewals: leases ended early, or
    /// last too long.
    pub clock_jumps: u64,
    /// The last jump, in milliseconds; negative backwards.
    pub last_jump_ms: i64,
}
