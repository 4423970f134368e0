//! One deadline for queueing, attempts and backoff, here and in the service below; what hangs is cut off.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use example_policies::virtual_runtime;
use mainstay::clock::{Clock, Deadline};
use mainstay::resilience::timeout::wire;
use mainstay::resilience::{CallContext, Policy, Retry};

type Answer = Result<&'static str, std::io::Error>;
type Headers = Vec<(&'static str, String)>;

/// A service below: reads the time that is left and does not start work that nobody waits for any more.
async fn serve(clock: &dyn Clock, headers: &Headers, queued: Duration) -> Answer {
    let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str());
    let deadline: Deadline = wire::read(find, clock.now()).map_err(std::io::Error::other)?;
    clock.sleep(queued).await;
    if deadline.is_over(clock) {
        return Ok("dropped unstarted");
    }
    Ok("served")
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let (runtime, ms) = (virtual_runtime(), Duration::from_millis);
    let clock = &**runtime.clock();
    let retry = Retry::constant(ms(10)).attempts(10).build()?;
    let policy = Policy::builder("search")
        .idempotent()
        .deadline(ms(250))
        .attempt_timeout(ms(100))
        .retry(retry)
        .runtime(&runtime)
        .build()?;

    // Everything hangs: two attempts are cut off after 100 ms each, the third by what is left of the whole.
    let begun = clock.now();
    let hung = policy.call(&CallContext::new(), |_| std::future::pending::<Answer>()).await;
    let took = clock.now().saturating_duration_since(begun);
    let error = hung.err().context("a call that hangs cannot succeed")?;
    println!(
        "hung: {} attempts in {took:?}, cut off by {:?}",
        error.attempts(),
        error.timeout().map(|t| t.kind())
    );
    ensure!(error.attempts() == 3 && took >= ms(250) && took < ms(300));
    ensure!(error.timeout().is_some(), "what it did before it was cut off is unknown");

    // The caller above has less time than this policy would give: the earlier deadline holds, also on the wire.
    let cx = CallContext::new().within(ms(150), clock);
    for (queued, expected) in [(ms(1), "served"), (ms(2_000), "cut off")] {
        let answer = policy
            .call(&cx, |attempt| async move {
                let headers = wire::headers(&attempt);
                assert!(attempt.remaining().is_some_and(|left| left <= ms(150)));
                serve(clock, &headers, queued).await
            })
            .await;
        let answer = answer.unwrap_or("cut off");
        println!("queued for {queued:?} below: {answer}");
        ensure!(answer == expected);
    }

    // What the server below did with the request that came too late.
    let late = serve(clock, &vec![(wire::TIMEOUT_MS, "5".to_owned())], ms(10)).await?;
    ensure!(late == "dropped unstarted");
    Ok(())
}
