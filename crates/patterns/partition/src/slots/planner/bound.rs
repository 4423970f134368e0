//! A lower bound on moves from prices, computed from the input alone.
//!
//! Put any price `p` on holding a replica at each node. A plan that moves `m` replicas pays at least what
//! every slot would pay if it chose its cheapest set at these prices, minus the most that the counts can
//! give back: Lagrangian duality. With the right prices the bound equals the moves of the best plan, so it is
//! a certificate that anybody can check; with wrong ones it is only weak, never wrong.

use super::{Lists, Shape};

/// The bound that `price` proves: no assignment that keeps the rules, with `low..=high` replicas per node,
/// moves less.
pub(super) fn of_prices(shape: &Shape, current: &Lists, low: &[u64], high: &[u64], price: &[i64]) -> i64 {
    let mut order: Vec<u32> =
        (0_u32..).zip(&shape.weights).filter(|(_, w)| **w > 0).map(|(n, _)| n).collect();
    order.sort_by_key(|n| (price[*n as usize], *n));
    let mut paid = 0;
    for slot in 0..shape.slots {
        paid += cheapest(shape, current.of(slot), &order, price);
    }
    // The counts give back most when the spare replicas are where prices are highest.
    let total = (shape.slots * shape.rf) as u64;
    let mut spare = total.saturating_sub(low.iter().sum());
    let mut back: i64 = low.iter().zip(price).map(|(q, p)| signed(*q) * p).sum();
    for n in order.iter().rev() {
        let n = *n as usize;
        let more = spare.min(high[n] - low[n]);
        back += signed(more) * price[n];
        spare -= more;
    }
    paid - back
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The cheapest allowed set: sets that keep the rules are the bases of a matroid, so taking the cheapest
/// node that still fits, again and again, is best.
fn cheapest(shape: &Shape, current: &[u32], order: &[u32], price: &[i64]) -> i64 {
    let mut mine: Vec<u32> = current.to_vec();
    mine.sort_by_key(|n| (price[*n as usize], *n));
    let mut mine = mine.into_iter().peekable();
    let mut others = order.iter().copied().filter(|n| !current.contains(n)).peekable();
    let (mut set, mut zones): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut paid = 0;
    while set.len() < shape.rf {
        let a = mine.peek().map(|n| price[*n as usize]);
        let b = others.peek().map(|n| price[*n as usize] + 1);
        let (next, cost) = match (a, b) {
            (Some(a), Some(b)) if a <= b => (mine.next(), a),
            (Some(a), None) => (mine.next(), a),
            (_, Some(b)) => (others.next(), b),
            (None, None) => break,
        };
        let Some(node) = next else { break };
        let zone = shape.zone[node as usize];
        let new = !zones.contains(&zone);
        let repeats = set.len() - zones.len() + usize::from(!new);
        if repeats <= shape.rf - shape.min_zones && !set.contains(&node) {
            set.push(node);
            if new {
                zones.push(zone);
            }
            paid += cost;
        }
    }
    paid
}
