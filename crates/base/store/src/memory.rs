//! Every contract in memory. Nothing survives the process.
