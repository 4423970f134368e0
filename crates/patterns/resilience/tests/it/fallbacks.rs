//! The second-best answer.

use std::error::Error as _;

use mainstay_resilience::fallback::{Fallback, When};
use mainstay_resilience::{CallError, Classify, Reason, Rejected, Verdict};

#[derive(Debug, PartialEq, thiserror::Error)]
enum Failure {
    #[error("down")]
    Down,
    #[error("not found")]
    NotFound,
}

impl Classify for Failure {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Down => Verdict::RETRYABLE,
            Self::NotFound => Verdict::Ignore,
        }
    }
}

fn refused() -> CallError<Failure> {
    Rejected::new("x".into(), Reason::Open).into()
}

#[tokio::test]
async fn it_runs_once_after_everything_else_and_sees_the_error() {
    let fallback = Fallback::new("x").unwrap();
    let ok =
        fallback.call(std::future::ready(Ok(1)), |_: &CallError<Failure>| async { unreachable!() }).await;
    assert_eq!(ok.unwrap(), 1);
    for (error, code) in [(CallError::Inner(Failure::Down), "inner"), (refused(), "open")] {
        let answer = fallback
            .call(std::future::ready(Err(error)), |error| {
                let seen = error.code();
                async move { Ok(seen) }
            })
            .await;
        assert_eq!(answer.unwrap(), code);
    }
    assert_eq!((fallback.used(), fallback.failed()), (2, 0));
}

#[tokio::test]
async fn its_own_failure_reports_both() {
    let fallback = Fallback::new("x").unwrap();
    let call = std::future::ready(Err::<u32, _>(refused()));
    let error = fallback.call(call, |_| async { Err(Failure::NotFound) }).await.unwrap_err();
    assert_eq!((error.primary().code(), error.fallback()), ("open", Some(&Failure::NotFound)));
    assert_eq!(error.source().unwrap().to_string(), "`x` rejected the call: the breaker is open");
    assert_eq!((fallback.used(), fallback.failed()), (1, 1));
}

#[tokio::test]
async fn it_answers_only_what_it_covers() {
    let covers = async |when, error: CallError<Failure>| {
        let fallback = Fallback::when("x", when).unwrap();
        fallback.call(std::future::ready(Err::<(), _>(error)), |_| async { Ok(()) }).await.is_ok()
    };
    let cases = [
        (When::Outage, true, true, false),
        (When::Refused, true, false, false),
        (When::Always, true, true, true),
    ];
    for (when, open, down, not_found) in cases {
        assert_eq!(covers(when, refused()).await, open, "{when:?}");
        assert_eq!(covers(when, CallError::Inner(Failure::Down)).await, down, "{when:?}");
        assert_eq!(covers(when, CallError::Inner(Failure::NotFound)).await, not_found, "{when:?}");
    }
    assert_eq!(Fallback::new("").unwrap_err().field(), "name");
}

#[tokio::test]
async fn an_open_breaker_one_policy_further_in_is_an_outage() {
    type Nested = CallError<CallError<Failure>>;
    let covers = async |when, error: Nested| {
        let fallback = Fallback::when("x", when).unwrap();
        fallback.call(std::future::ready(Err::<(), _>(error)), |_| async { Ok(()) }).await.is_ok()
    };
    let open = || CallError::Inner(refused());
    assert!(covers(When::Outage, open()).await);
    assert!(!covers(When::Outage, CallError::Inner(CallError::Inner(Failure::NotFound))).await);
    // The outer operation ran; what it did before the inner refusal nobody knows here.
    assert!(!covers(When::Refused, open()).await);
    // Through boxes and references too, and to any depth.
    let deep: CallError<Box<CallError<Failure>>> = CallError::Inner(Box::new(refused()));
    assert!(deep.is_refusal() && Classify::is_refusal(&&deep) && !Failure::Down.is_refusal());
    assert_eq!(deep.verdict(), Verdict::Ignore, "and still no evidence");
}
