//! A stumble is repeated, a refusal is not, and advice of the server is followed.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::ensure;
use example_policies::virtual_runtime;
use mainstay::resilience::{CallContext, CallError, Classify, Policy, Retry, Verdict};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Payment {
    Declined,
    Reset,
    SlowDown(Duration),
}

impl Classify for Payment {
    fn verdict(&self) -> Verdict {
        match *self {
            Self::Declined => Verdict::Ignore,
            Self::Reset => Verdict::RETRYABLE,
            Self::SlowDown(after) => Verdict::Throttled { after: Some(after) },
        }
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let (runtime, ms) = (virtual_runtime(), Duration::from_millis);
    let clock = runtime.clock();
    let retry = Retry::exponential(ms(5), ms(40)).attempts(3).max_retry_after(ms(500)).build()?;
    // A payment is repeated only under a key that makes a second one harmless.
    let policy = Policy::builder("payments").idempotent_per_call().retry(retry).runtime(&runtime).build()?;
    let cx = CallContext::new().with_key("order-17/charge");

    // Runs a call whose attempts end as scripted; returns how it ended, and how many attempts it took.
    let run = async |script: &[Result<&'static str, Payment>]| {
        let keys = RefCell::new(Vec::new());
        let result = policy
            .call(&cx, |attempt| {
                keys.borrow_mut().push(attempt.key());
                std::future::ready(script[attempt.number() as usize - 1])
            })
            .await;
        assert!(keys.borrow().iter().all(|key| *key == Some("order-17/charge")), "one key for all attempts");
        (result, keys.into_inner().len())
    };

    let (stumble, attempts) = run(&[Err(Payment::Reset), Err(Payment::Reset), Ok("charged")]).await;
    ensure!(matches!(stumble, Ok("charged")) && attempts == 3);
    println!("two resets, then success: {attempts} attempts");

    let (declined, attempts) = run(&[Err(Payment::Declined)]).await;
    ensure!(matches!(declined, Err(CallError::Inner(Payment::Declined))) && attempts == 1);
    println!("a declined card is an answer: {attempts} attempt");

    let begun = clock.now();
    let (patient, _) = run(&[Err(Payment::SlowDown(ms(100))), Ok("charged")]).await;
    let waited = clock.now().saturating_duration_since(begun);
    ensure!(patient.is_ok() && waited >= ms(100));
    println!("told to come back in 100 ms: came back after {waited:?}");

    let (hour, _) = run(&[Err(Payment::SlowDown(ms(3_600_000)))]).await;
    let error = hour.err().and_then(|e| e.retry_after());
    ensure!(error == Some(ms(3_600_000)), "no call waits an hour: the caller hears when to come back");

    // Without a key the same failure is final.
    let once = policy.call(&CallContext::new(), |_| async { Err::<(), _>(Payment::Reset) }).await;
    ensure!(once.is_err_and(|e| e.attempts() == 1));
    Ok(())
}
