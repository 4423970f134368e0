//! What the types promise without running: auto traits, object safety, sizes of bounds.

use mainstay_resilience::breaker::{OwnedTicket, Registry, Ticket, Transitions};
use mainstay_resilience::bulkhead::{OwnedPermit, Partitions, Permit};
use mainstay_resilience::limit::{SendRate, SendTicket};
use mainstay_resilience::policy::{HedgePlan, Limiter, PolicyBuilder, ProbeGate};
use mainstay_resilience::{
    Breaker, Budget, Bulkhead, CallContext, CallError, Classify, Listener, Policy, Rejected, Retry,
};

use crate::world::{Oops, world};

fn shared<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
fn sendable<T: Send + Sync + std::fmt::Debug>() {}
fn is_send<T: Send>(t: T) -> T {
    t
}

#[test]
fn what_users_share_is_clone_send_sync_debug() {
    shared::<Breaker>();
    shared::<Bulkhead>();
    shared::<Budget>();
    shared::<Policy>();
    shared::<PolicyBuilder>();
    shared::<Retry>();
    shared::<SendRate>();
    shared::<Registry>();
    shared::<Partitions>();
    shared::<CallContext>();
    shared::<Rejected>();
    sendable::<Ticket<'_>>();
    sendable::<OwnedTicket>();
    sendable::<Permit<'_>>();
    sendable::<OwnedPermit>();
    sendable::<SendTicket<'_>>();
    sendable::<Transitions>();
    sendable::<CallError<Oops>>();
    let _: [Option<&dyn Listener>; 0] = [];
    let _: [Option<&dyn Limiter>; 0] = [];
    let _: [Option<&dyn HedgePlan>; 0] = [];
    let _: [Option<&dyn ProbeGate>; 0] = [];
    let _: [Option<&dyn Classify>; 0] = [];
}

#[test]
fn the_future_of_a_call_is_send_when_the_operation_is() {
    world(|w| async move {
        let p = Policy::builder("p").runtime(&w.runtime).build().unwrap();
        let b = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        let k = Bulkhead::builder("k", 1).runtime(&w.runtime).build().unwrap();
        let cx = CallContext::new();
        is_send(p.call(&cx, |_| async { Ok::<_, Oops>(()) })).await.unwrap();
        is_send(b.call(|| async { Ok::<_, Oops>(()) })).await.unwrap();
        is_send(k.call(&cx, || async { Ok::<_, Oops>(()) })).await.unwrap();
        // An operation that is not Send is allowed too: no bound is added.
        let local = std::rc::Rc::new(());
        p.call(&cx, |_| {
            let local = local.clone();
            async move {
                drop(local);
                Ok::<_, Oops>(())
            }
        })
        .await
        .unwrap();
    });
}

/// Every guarded call returns a `Result` with room for a refusal: what it grows by, each of them carries around.
#[test]
fn a_refusal_does_not_grow() {
    assert!(size_of::<mainstay_resilience::Rejected>() <= 72);
    assert!(size_of::<CallError<()>>() <= 72, "{}", size_of::<CallError<()>>());
}

#[test]
fn errors_keep_their_type_and_their_chain() {
    use std::error::Error as _;
    let error: CallError<Oops> = CallError::Inner(Oops::Broken);
    assert_eq!(error.to_string(), "the operation failed");
    assert_eq!(error.source().unwrap().to_string(), "Broken");
    assert_eq!(error.into_inner(), Some(Oops::Broken));
}
