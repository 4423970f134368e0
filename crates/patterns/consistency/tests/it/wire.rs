//! L20: one encoding per value, and decoders that survive everything.

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::crdt::{
    Any, AwMap, AwSet, BoundedCounter, Causal, Document, DotFun, DotMap, DotSet, DotStore, GCounter, LwwMap,
    RwMap, RwSet, Tally,
};
use mainstay_consistency::version::{Context, VersionVector};
use mainstay_consistency::wire::{MAX_DEPTH, Wire, decode, decode_from, encode, encode_for};
use mainstay_consistency::{ErrorKind, Join as _};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use crate::{actor, clock};

fn samples() -> Vec<Vec<u8>> {
    let (hlc, _) = clock(1_000);
    let mut set = AwSet::<u64>::new();
    let mut rw = RwSet::<String>::new();
    let mut map: RwMap<String, DotFun<Tally>> = RwMap::new();
    let mut lww = LwwMap::<u64, String>::new();
    let mut bounded = BoundedCounter::new(-1);
    let (mut a, mut b, mut c, mut d, mut e) = (actor(1), actor(2), actor(3), actor(4), actor(5));
    for n in 0..20_u64 {
        let _ = set.add(&mut a, n * 7 % 20).unwrap();
        let _ = rw.add(&mut b, format!("{n}")).unwrap();
        let _ = map.update(&mut c, format!("{}", n % 3), |s, m| s.count(m, n, 1)).unwrap();
        let _ = lww.set(&mut d, &hlc, n % 5, "x".into()).unwrap();
    }
    let _ = set.remove(&mut a, &3).unwrap();
    let _ = rw.remove(&mut b, "3".into()).unwrap();
    let _ = bounded.inc(&mut e, 5).unwrap();
    let _ = bounded.transfer(&mut e, a.id(), 2).unwrap();
    vec![encode(&set), encode(&rw), encode(&map), encode(&lww), encode(&bounded), encode(set.context())]
}

fn decode_all(bytes: &[u8]) {
    let _ = decode::<AwSet<u64>>(bytes);
    let _ = decode::<RwSet<String>>(bytes);
    let _ = decode::<RwMap<String, DotFun<Tally>>>(bytes);
    let _ = decode::<LwwMap<u64, String>>(bytes);
    let _ = decode::<BoundedCounter>(bytes);
    let _ = decode::<Document>(bytes);
    let _ = decode::<GCounter>(bytes);
    let _ = decode::<Context>(bytes);
    let _ = decode::<VersionVector>(bytes);
    let _ = decode::<Vec<()>>(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn l20_numbers_and_texts_come_back(n in any::<u64>(), i in any::<i64>(), text in any::<String>(), list in any::<Vec<Option<bool>>>()) {
        prop_assert_eq!(decode::<u64>(&encode(&n)).unwrap(), n);
        prop_assert_eq!(decode::<i64>(&encode(&i)).unwrap(), i);
        prop_assert_eq!(decode::<String>(&encode(&text)).unwrap(), text);
        prop_assert_eq!(decode::<Vec<Option<bool>>>(&encode(&list)).unwrap(), list);
    }

    #[test]
    fn c22_garbage_is_an_error(bytes in any::<Vec<u8>>()) {
        decode_all(&bytes);
        let mut with_version = vec![1, 0];
        with_version.extend(&bytes);
        decode_all(&with_version);
    }

    #[test]
    fn l20_what_is_read_is_written_alike(which in 0_usize..6, at in any::<u16>(), flip in any::<u8>()) {
        let mut bytes = samples().swap_remove(which);
        let at = usize::from(at) % bytes.len();
        bytes[at] ^= flip;
        // If a changed encoding is still one, it is the only one of its value.
        if let Ok(set) = decode::<AwSet<u64>>(&bytes) {
            prop_assert!(encode(&set) == bytes);
        }
        if let Ok(context) = decode::<Context>(&bytes) {
            prop_assert!(encode(&context) == bytes);
        }
        decode_all(&bytes);
    }
}

#[test]
fn c22_memory_and_depth_are_bounded_by_the_input() {
    // Announces more than there is: counts, texts, dictionaries.
    for bytes in [
        &[1, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[1, 0, 0xff, 0xff, 0xff, 0x7f, 0],
    ] {
        let info = allocation_counter::measure(|| decode_all(bytes));
        assert!(info.bytes_max < 4_096, "{} bytes for {bytes:?}", info.bytes_max);
    }
    // Every prefix and every single changed byte of real data.
    for sample in samples() {
        for end in 0..sample.len() {
            decode_all(&sample[..end]);
        }
        let info = allocation_counter::measure(|| decode_all(&sample));
        assert!(info.bytes_max < 200 * sample.len() as u64 + 4_096, "{} of {}", info.bytes_max, sample.len());
    }
}

/// A document nested `depth` levels below its own map.
fn nested(depth: usize) -> Result<Document, mainstay_consistency::Error> {
    fn inner(
        any: &Any,
        mint: &mut mainstay_consistency::crdt::Mint<'_>,
        depth: usize,
    ) -> mainstay_consistency::Result<Any> {
        if depth == 0 {
            return any.flag(mint, |flag, mint| flag.turn_on(mint));
        }
        any.map(mint, |map, mint| map.update_value(mint, "x".into(), |any, mint| inner(any, mint, depth - 1)))
    }
    let mut document = Document::new();
    document.update(&mut actor(1), "x".into(), |any, mint| inner(any, mint, depth))?;
    Ok(document)
}

#[test]
fn c22_nesting_ends_where_readers_end() {
    let deepest = usize::from(MAX_DEPTH) - 1;
    let document = nested(deepest).unwrap();
    assert_eq!(decode::<Document>(&encode(&document)).unwrap(), document);
    assert_eq!(nested(deepest + 1).unwrap_err().kind(), ErrorKind::TooDeep);
    // Bytes that nest a thousand levels, which nobody can write through the API.
    let mut bytes = vec![1, 0];
    for _ in 0..1_000 {
        bytes.extend([1, 1, b'x', 3]);
    }
    assert_eq!(decode::<Document>(&bytes).unwrap_err().kind(), ErrorKind::TooDeep);
}

#[test]
fn c18_equal_values_are_equal_bytes_whatever_their_history() {
    let rng = SeededRng::new(2);
    for _ in 0..50 {
        let mut at = [actor(1), actor(2)];
        let (mut a, mut b) = (AwSet::<u64>::new(), AwSet::<u64>::new());
        let mut deltas = Vec::new();
        for _ in 0..40 {
            let n = rng.below(30);
            let (set, at) = if rng.below(2) == 0 { (&mut a, &mut at[0]) } else { (&mut b, &mut at[1]) };
            deltas.push(if rng.below(4) == 0 { set.remove(at, &n) } else { set.add(at, n) }.unwrap());
        }
        let (mut x, mut y) = (AwSet::new(), AwSet::new());
        for delta in &deltas {
            let _ = x.join(delta).unwrap();
        }
        for delta in deltas.iter().rev() {
            let _ = y.join(delta).unwrap();
        }
        assert_eq!(encode(&x), encode(&y));
    }
}

#[test]
fn a_store_that_its_context_does_not_know_is_refused() {
    let mut set = AwSet::<u64>::new();
    let _ = set.add(&mut actor(1), 5).unwrap();
    let good = encode(&set);
    // The last bytes are the context; without what it knows, the dot would be news for ever.
    for cut in 1..4 {
        assert!(decode::<AwSet<u64>>(&good[..good.len() - cut]).is_err());
    }
    let mut trailing = good.clone();
    trailing.push(0);
    assert_eq!(decode::<AwSet<u64>>(&trailing).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn one_change_is_a_few_bytes_for_whoever_knows_its_actor() {
    let mut at = actor(1);
    let mut set = AwSet::<u64>::new();
    for n in 0..100_000_u64 {
        let delta = set.add(&mut at, n).unwrap();
        let bytes = encode_for(&delta, &[at.id()]);
        assert!(bytes.len() <= 16, "{} bytes", bytes.len());
        if n % 10_000 == 0 {
            assert_eq!(decode_from::<AwSet<u64>>(&bytes, &[at.id()]).unwrap(), delta);
        }
    }
    let whole = encode(&set);
    assert!(whole.len() <= 12 * 100_000, "{} bytes", whole.len());
}

#[test]
fn c21_decoding_is_not_quadratic() {
    // Twice the size takes about twice the allocations, validation included.
    let cost = |n: u64| {
        let mut at = actor(1);
        let mut set = AwSet::<u64>::new();
        for e in 0..n {
            let _ = set.add(&mut at, e).unwrap();
        }
        let bytes = encode(&set);
        allocation_counter::measure(|| drop(decode::<AwSet<u64>>(&bytes).unwrap())).count_total
    };
    let (small, large) = (cost(2_000), cost(8_000));
    assert!(large < 5 * small, "{small} and {large}");
}

#[test]
fn an_indexed_map_reads_as_the_small_one_does() {
    fn same<S: DotStore>(state: &Causal<S>) {
        assert_eq!(&decode::<Causal<S>>(&encode(state)).unwrap(), state);
    }
    let mut at = actor(1);
    let mut map: AwMap<u64, DotMap<u64, DotSet>> = AwMap::new();
    for n in 0..60 {
        let _ = map.update(&mut at, n % 20, |s, m| s.insert(m, n)).unwrap();
        same(&map);
    }
    for n in 0..20 {
        let _ = map.remove(&mut at, &n).unwrap();
        same(&map);
    }
    assert!(map.is_empty());
}

#[test]
fn wire_values_of_users_work_inside() {
    #[derive(Clone, Debug, PartialEq)]
    struct Price(u64, String);
    impl Wire for Price {
        fn write(&self, out: &mut mainstay_consistency::wire::Writer) {
            self.0.write(out);
            self.1.write(out);
        }
        fn read(input: &mut mainstay_consistency::wire::Reader<'_>) -> mainstay_consistency::Result<Self> {
            Ok(Self(u64::read(input)?, String::read(input)?))
        }
    }
    let mut map: AwMap<u64, DotFun<Price>> = AwMap::new();
    let _ = map.update(&mut actor(1), 1, |r, m| r.write_value(m, Price(5, "EUR".into()))).unwrap();
    assert_eq!(decode::<AwMap<u64, DotFun<Price>>>(&encode(&map)).unwrap(), map);
}
