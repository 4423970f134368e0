//! The workload: what is ordered, and who will say no.

use std::time::Duration;

use mainstay_chaos::proxy::HttpFaults;
use mainstay_clock::{Rng as _, SeededRng};
use serde_json::{Value, json};

use super::Level;

/// The services, in the order of the saga's steps.
pub(super) const SERVICES: [Service; 3] = [
    Service { name: "inventory", step: "reserve", undo: "release" },
    Service { name: "payment", step: "charge", undo: "refund" },
    Service { name: "shipping", step: "ship", undo: "cancel" },
];

/// A service and its two operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) step: &'static str,
    pub(super) undo: &'static str,
}

/// Which business answer an order meets. The classes exclude each other: a quarter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// 75 %: nobody says no.
    Ships,
    /// 5 %: inventory says no.
    SoldOut,
    /// 15 %: payment says no.
    Declined,
    /// 5 %: shipping says no.
    Undeliverable,
}

/// One order.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) items: u64,
    pub(super) cents: u64,
    pub(super) fate: Fate,
}

impl Order {
    /// The saga's input: what the services decide by.
    pub(super) fn input(&self) -> Value {
        json!({
            "order": self.id,
            "items": self.items,
            "cents": self.cents,
            "article": if self.fate == Fate::SoldOut { "sold-out" } else { "apple" },
            "card": if self.fate == Fate::Declined { "declined" } else { "fine" },
            "address": if self.fate == Fate::Undeliverable { "nowhere" } else { "main street" },
            "account": "open",
        })
    }
}

/// The orders of a seed. With `one_ships` at least one is refused by nobody.
pub(super) fn orders(seed: u64, count: u32, one_ships: bool) -> Vec<Order> {
    let rng = SeededRng::new(seed);
    let mut orders: Vec<Order> = (1..=count)
        .map(|n| {
            let fate = match rng.below(100) {
                0..5 => Fate::SoldOut,
                5..20 => Fate::Declined,
                20..25 => Fate::Undeliverable,
                _ => Fate::Ships,
            };
            Order { id: format!("order-{n}"), items: 1 + rng.below(5), cents: 100 + rng.below(9_900), fate }
        })
        .collect();
    if one_ships
        && orders.iter().all(|o| o.fate != Fate::Ships)
        && let Some(first) = orders.first_mut()
    {
        first.fate = Fate::Ships;
    }
    orders
}

/// Shares of faults of a level. Each class meets at least 20 of the requests of 1,000 orders.
pub(super) fn faults(level: Level) -> HttpFaults {
    let (share, late, longest) = match level {
        Level::None => return HttpFaults::none(),
        Level::Mild => (0.02, 0.05, 50),
        Level::Harsh => (0.08, 0.20, 200),
    };
    HttpFaults::builder()
        .drop(share)
        .error(share)
        .lost(share)
        .duplicate(share)
        .delay(late, Duration::from_millis(5)..=Duration::from_millis(longest))
        .build()
        .expect("invariant: the shares add up to less than 1")
}

/// A kill, due when this many orders have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kill {
    pub(super) after: u32,
    /// A service by its place, or the node.
    pub(super) service: Option<usize>,
}

/// The kills of a level, in order, spread over the work.
pub(super) fn kills(seed: u64, level: Level, orders: u32) -> Vec<Kill> {
    let (services, nodes) = match level {
        Level::None => (0, 0),
        Level::Mild => (3, 3),
        Level::Harsh => (9, 10),
    };
    let rng = SeededRng::new(seed ^ 0x6b69_6c6c);
    // Within the first nine tenths: there must be work left to survive.
    let when = |i: u32, of: u32| {
        let slot = u64::from(orders) * 9 / 10 / u64::from(of);
        let at = u64::from(i) * slot + rng.below(slot.max(1));
        u32::try_from(at).unwrap_or(orders)
    };
    let mut kills: Vec<Kill> = (0..services)
        .map(|i| Kill { after: when(i, services), service: Some(i as usize % SERVICES.len()) })
        .chain((0..nodes).map(|i| Kill { after: when(i, nodes), service: None }))
        .collect();
    kills.sort();
    kills
}

/// The definition, for the addresses of the services. Without a barrier an order must get as far as its charge, on
/// however slow a machine: only then can it be charged twice.
pub(super) fn definition(origins: &[String], barrier: bool) -> String {
    let (deadline, timeout) = if barrier { ("20s", "500ms") } else { ("100s", "15s") };
    let mut text = format!(
        "name = \"order\"\nversion = 1\ndeadline = \"{deadline}\"\ntimeout = \"{timeout}\"\n\
         retry = {{ attempts = 5, base = \"50ms\", cap = \"500ms\" }}\n\
         undo_retry = {{ base = \"50ms\", cap = \"1s\" }}\n",
    );
    let mut after = String::new();
    for (service, origin) in SERVICES.iter().zip(origins) {
        let Service { step, undo, .. } = service;
        text.push_str(&format!("\n[[steps]]\nname = \"{step}\"\n"));
        if !after.is_empty() {
            text.push_str(&format!("after = [\"{after}\"]\n"));
        }
        text.push_str(&format!("action = \"{origin}/{step}\"\nundo = \"{origin}/{undo}\"\n"));
        (*step).clone_into(&mut after);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_d02_about_a_quarter_is_refused_each_class_as_often_as_promised() {
        let all = orders(7, 10_000, false);
        let share = |fate| all.iter().filter(|o| o.fate == fate).count();
        assert!((450..550).contains(&share(Fate::SoldOut)));
        assert!((1_400..1_600).contains(&share(Fate::Declined)));
        assert!((450..550).contains(&share(Fate::Undeliverable)));
        assert_eq!(format!("{:?}", orders(7, 50, false)), format!("{:?}", orders(7, 50, false)));
    }

    #[test]
    fn if_d03_each_request_fault_fires_at_least_twenty_times_per_thousand_orders() {
        // Three calls per order that ships; retries and undos only add to it.
        let requests = 750 * 3 + 200;
        for seed in 0..50 {
            for name in ["drop", "error", "lost", "duplicate", "delay"] {
                let met: usize = (0..3)
                    .map(|proxy| {
                        let nth = |n| faults(Level::Mild).nth(seed + proxy, n);
                        (1..=requests / 3).filter_map(nth).filter(|f| f.name() == name).count()
                    })
                    .sum();
                assert!(met >= 20, "seed {seed}: {name} {met} times");
            }
        }
    }

    #[test]
    fn if_d03_kills_are_spread_and_leave_work_to_survive() {
        for seed in 0..100 {
            let kills = kills(seed, Level::Harsh, 1_000);
            assert_eq!(kills.iter().filter(|k| k.service.is_none()).count(), 10);
            assert_eq!(kills.len(), 19);
            assert!(kills.iter().all(|k| k.after < 900));
        }
        assert!(super::kills(1, Level::None, 1_000).is_empty());
    }

    #[test]
    fn the_definition_is_the_one_that_is_promised() {
        let origins: Vec<String> = (1..=3).map(|n| format!("http://127.0.0.1:{n}")).collect();
        let definition =
            mainstay_saga::definition::Definition::from_toml(&definition(&origins, true)).unwrap();
        assert_eq!(definition.deadline(), Some(Duration::from_secs(20)));
        for step in definition.steps() {
            assert_eq!(step.timeout, Duration::from_millis(500));
            assert_eq!((step.retry.attempts, step.retry.base), (5, Duration::from_millis(50)));
            assert_eq!(
                (step.retry.cap, step.undo_retry.cap),
                (Duration::from_millis(500), Duration::from_secs(1))
            );
        }
    }
}
