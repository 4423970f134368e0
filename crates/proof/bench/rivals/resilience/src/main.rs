//! The resilience suite on the crates of others, as their documentation uses them.

#[path = "../../../src/resilience/battery.rs"]
mod battery;
mod breakers;
#[path = "../../../src/resilience/measure.rs"]
mod measure;
mod paths;

use battery::Failed;

/// An operation that is ready at once and says so.
#[inline(always)]
async fn operation() -> Result<u64, Failed> {
    Ok(std::hint::black_box(1))
}

fn main() {
    let quick = std::env::args().any(|word| word == "--quick");
    // Some ask the runtime for the time, or for timers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime can be started");
    let entered = runtime.enter();
    for row in breakers::rows(quick).into_iter().chain(paths::rows(quick, &runtime)) {
        println!("{}", row.line());
    }
    for (name, make) in breakers::subjects() {
        println!("{}", battery::line(name, &battery::ask(&*make)));
    }
    drop(entered);
}
