//! States and deltas of replicated types: read or refused, in one encoding only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mainstay_consistency::crdt::{
    AwMap, AwSet, BoundedCounter, Document, DotSet, EwFlag, GCounter, GSet, LwwMap, LwwRegister, MvRegister,
    PnCounter, RwSet, TwoPhaseSet,
};
use mainstay_consistency::version::{Context, VersionVector};
use mainstay_consistency::wire::{Wire, decode, encode};

fn one<T: Wire>(bytes: &[u8]) {
    if let Ok(value) = decode::<T>(bytes) {
        assert_eq!(encode(&value), bytes, "two texts of one value");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 15 {
        0 => one::<Document>(bytes),
        1 => one::<AwSet<String>>(bytes),
        2 => one::<GCounter>(bytes),
        3 => one::<PnCounter>(bytes),
        4 => one::<BoundedCounter>(bytes),
        5 => one::<EwFlag>(bytes),
        6 => one::<GSet<u64>>(bytes),
        7 => one::<TwoPhaseSet<String>>(bytes),
        8 => one::<LwwRegister<String>>(bytes),
        9 => one::<MvRegister<String>>(bytes),
        10 => one::<RwSet<String>>(bytes),
        11 => one::<LwwMap<String, u64>>(bytes),
        12 => one::<AwMap<String, DotSet>>(bytes),
        13 => one::<VersionVector>(bytes),
        _ => one::<Context>(bytes),
    }
});
