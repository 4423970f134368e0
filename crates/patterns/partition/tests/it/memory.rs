//! L10: a lookup allocates nothing.

use mainstay_partition::{Bounded, Load, Node, Spread};

use crate::fleet::{every, key, mixed, nodes, ring};

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

#[test]
fn l10_the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8; 100]))), 1);
}

#[test]
fn l10_lookups_allocate_nothing() {
    for (name, place) in every(&mixed(64)) {
        let keys: Vec<Vec<u8>> = (0..50).map(key).collect();
        let count = allocations(|| {
            for key in &keys {
                let owner = place.owner(key);
                assert!(owner.is_some());
                assert_eq!(place.owners(key).take(16).count(), 16);
                assert_eq!(place.owners(key).pick(16).unwrap().len(), 16);
                let up = |n| Some(n) != owner;
                // Profiles of other systems know no zones.
                let spread =
                    if place.nodes().zones().len() == 3 { Spread::Hard { min: 3 } } else { Spread::Any };
                assert_eq!(place.owners(key).spread(spread).healthy(up).pick(5).unwrap().len(), 5);
            }
        });
        assert_eq!(count, 0, "{name}");
    }
}

#[test]
fn l10_b13_weights_and_wide_fleets_allocate_nothing() {
    let wide = ring(nodes(1_000));
    let count = allocations(|| {
        for i in 0..1_000_u32 {
            assert!(wide.owner(&i.to_le_bytes()).is_some());
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn l10_a_lease_allocates_nothing() {
    let bounded = Bounded::new(ring(nodes(10)), Load::default()).unwrap();
    let count = allocations(|| {
        for i in 0..100_u32 {
            drop(bounded.acquire(&i.to_le_bytes()).unwrap());
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn b9_s2_tables_stay_small() {
    let list: Vec<Node> = nodes(1_000);
    let maglev = mainstay_partition::Maglev::builder().nodes(list.clone()).build().unwrap();
    assert_eq!(maglev.table_bytes(), 2 * 65_537);
    let made = allocation_counter::measure(|| {
        drop(mainstay_partition::Maglev::builder().nodes(list.clone()).build().unwrap());
    });
    assert!(made.bytes_max < 1 << 20, "building a table took {} bytes", made.bytes_max);
    let ring = mainstay_partition::Ring::builder().textbook().nodes(list).build().unwrap();
    assert_eq!(ring.points(), 150_000);
    assert!(ring.table_bytes() <= 20 * ring.points(), "{} bytes", ring.table_bytes());
}
