//! A mail server hangs. Whoever sends mail waits in a short line or is refused; whoever pays notices nothing.

use std::time::Duration;

use anyhow::ensure;
use example_policies::virtual_runtime;
use futures_util::future::join_all;
use mainstay::resilience::bulkhead::Partitions;
use mainstay::resilience::{Bulkhead, CallContext};

type Answer = Result<&'static str, std::io::Error>;

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let (runtime, cx) = (virtual_runtime(), CallContext::new());
    let (clock, ms) = (runtime.clock(), Duration::from_millis);
    let all = Partitions::new([
        Bulkhead::builder("mail", 5).queue(3, ms(150)).runtime(&runtime).build()?,
        Bulkhead::builder("payments", 10).runtime(&runtime).build()?,
    ])?;
    let (mail, payments) = (all.get("mail")?, all.get("payments")?);

    // Twenty mails: five hang inside, three wait in line until their patience ends, twelve are refused at once.
    let send = |_| {
        mail.call(&cx, || async {
            clock.sleep(ms(500)).await;
            Answer::Ok("sent")
        })
    };
    let mails = join_all((0..20).map(send));
    let pay = async {
        clock.sleep(ms(10)).await;
        ensure!(mail.snapshot().in_flight == 5 && mail.snapshot().queued == 3);
        let begun = clock.now();
        for _ in 0..100 {
            ensure!(payments.call(&cx, || async { Answer::Ok("paid") }).await? == "paid");
        }
        anyhow::Ok(clock.now().saturating_duration_since(begun))
    };
    let (mails, paid) = futures_util::future::join(mails, pay).await;

    let count = |code| mails.iter().filter(|m| m.as_ref().err().map_or("sent", |e| e.code()) == code).count();
    println!("mail: {} sent, {} gave up waiting, {} refused", count("sent"), count("waited"), count("full"));
    ensure!((count("sent"), count("waited"), count("full")) == (5, 3, 12));
    let paid = paid?;
    println!("meanwhile 100 payments took {paid:?}");
    ensure!(paid.is_zero(), "nobody who pays waits for mail");
    ensure!(mail.snapshot().in_flight == 0, "every permit is back");

    // A name that nobody configured is a mistake of the program, never "full".
    ensure!(all.get("parcels").err().is_some_and(|e| e.allowed() == "mail, payments"));
    Ok(())
}
