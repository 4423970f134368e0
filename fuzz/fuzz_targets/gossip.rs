//! Datagrams of gossip: what is not sealed by a member is refused, and what a member seals is read or refused.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mainstay_clock::{Instant, SeededRng};
use mainstay_consistency::crdt::AwSet;
use mainstay_consistency::replicate::{AntiEntropy, AntiEntropyConfig, DigestKey};

#[allow(dead_code, unreachable_pub, reason = "a part of the backend")]
#[path = "../../crates/backends/gossip/src/error.rs"]
mod error;
#[allow(dead_code, unreachable_pub, reason = "a part of the backend")]
#[path = "../../crates/backends/gossip/src/member.rs"]
mod member;
#[allow(dead_code, unreachable_pub, reason = "a part of the backend")]
#[path = "../../crates/backends/gossip/src/seal.rs"]
mod seal;

fn node() -> AntiEntropy<AwSet<String>> {
    let config = AntiEntropyConfig::builder(1, 101, DigestKey::new([7; 16])).members([1, 2]);
    config.build(AwSet::new()).unwrap()
}

fuzz_target!(|data: &[u8]| {
    static SEAL: OnceLock<seal::Seal> = OnceLock::new();
    let seal = SEAL.get_or_init(|| seal::Seal::new(seal::Keys::new(1, [7; 32]), "c", 1));
    assert!(seal.open(data).is_err(), "nobody but a member seals");
    let rng = SeededRng::new(1);
    let mut packet = seal.seal(seal::Kind::State, 2, data, &rng);
    assert_eq!(seal.open(&packet).unwrap().payload, data);
    let at = data.first().map_or(0, |b| usize::from(*b) % packet.len());
    packet[at] ^= 1;
    assert!(seal.open(&packet).is_err(), "a changed packet is refused");
    // The contents, from a member that is mad.
    let mut node = node();
    let step = node.on_msg(2, data, Instant::ZERO);
    assert!(step.send.len() < 64, "one message has few answers");
    let _ = node.on_tick(Instant::ZERO);
});
