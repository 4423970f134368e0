//! The in-memory implementations against the one suite.

use std::sync::Arc;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_sim::conformance;
use mainstay_store::Journal;
use mainstay_store::memory::MemoryJournal;

#[tokio::test(start_paused = true)]
async fn memory_journal_conforms() {
    let clock = VirtualClock::new();
    let make = || Arc::new(MemoryJournal::new(Arc::new(clock.clone()))) as Arc<dyn Journal>;
    let checks = conformance::journal(&make, &clock).await;
    println!("memory journal: {checks} checks");
    assert_eq!(checks, 16);
}
