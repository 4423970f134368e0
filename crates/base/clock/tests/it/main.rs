//! Integration tests.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::process::Command;
use std::time::Duration;

use mainstay_clock::{Instant, os_boot_now};

/// Set in the child of the test below, which tells its clock.
const TELL: &str = "MAINSTAY_TEST_TELL_BOOT_TIME";

/// The clock of a child for whom one clock of the kernel is a day ahead, as boot time is after a day of suspend; `None`
/// where the kernel does not give a process clocks of its own.
fn a_day_ahead(clock: &str) -> Option<Instant> {
    let mut child = Command::new("unshare");
    child
        .args(["--time", &format!("--{clock}"), "86400", "--fork", "--"])
        .arg(std::env::current_exe().unwrap());
    child.args(["--exact", "if_x03_leases_go_by_the_clock_that_goes_on_in_suspend", "--nocapture"]);
    let output = child.env(TELL, "1").output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).unwrap();
    let told = text.split("boot time is ").nth(1).unwrap_or_else(|| panic!("{text}"));
    Some(Instant::from_nanos(told.split_whitespace().next().unwrap().parse().unwrap()))
}

/// `std::time::Instant` stands still while a machine sleeps: a lease would outlive its store's view of it by the whole
/// night. Only boot time is moved by a suspend, and every deadline is counted by it.
#[test]
fn if_x03_leases_go_by_the_clock_that_goes_on_in_suspend() {
    #[allow(clippy::disallowed_methods, reason = "the child of this test is told so")]
    let is_child = std::env::var(TELL).is_ok();
    if is_child {
        println!("boot time is {} ", os_boot_now().as_nanos());
        return;
    }
    let day = Duration::from_secs(86_400);
    let before = os_boot_now();
    // Of the kernel: how long it runs, sleep included, in hundredths of a second.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime = Duration::from_secs_f64(uptime.split(' ').next().unwrap().parse().unwrap());
    let (boot, monotonic) = (a_day_ahead("boottime"), a_day_ahead("monotonic"));
    let after = os_boot_now();
    let hundredth = Duration::from_millis(10);
    let uptime = Instant::from_nanos(0).saturating_add(uptime);
    assert!(before <= uptime.saturating_add(hundredth) && uptime <= after, "{before:?} {uptime:?} {after:?}");
    let (Some(boot), Some(monotonic)) = (boot, monotonic) else {
        eprintln!("no clocks of one's own here: what a suspend moves is not looked at");
        return;
    };
    assert!(
        before.saturating_add(day) <= boot && boot <= after.saturating_add(day),
        "{boot:?} after {before:?}"
    );
    assert!(before <= monotonic && monotonic <= after, "{monotonic:?} is not of boot time");
}
