//! Deadlines on the wire.
