//! The audit: the services' ledgers against each other, then the node's verdicts against the ledgers.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_store::journal::SagaStatus;
use rusqlite::{Connection, OpenFlags};

use super::children::Places;
use super::orders::{Fate, Order, SERVICES, Service};
use crate::error::{Code, Error, Result};

/// Most violations that are listed; all are counted.
const MAX_LISTED: usize = 50;

/// An order that the node accepted, and what the node says became of it.
#[derive(Clone, Debug)]
pub(super) struct Accepted<'o> {
    pub(super) order: &'o Order,
    pub(super) uid: String,
    /// `None` when the node does not know it.
    pub(super) verdict: Option<SagaStatus>,
}

/// What the ledgers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) shipped: u64,
    pub(super) compensated: u64,
    pub(super) half_done: u64,
    pub(super) charged_twice: u64,
    pub(super) duplicates_refused: u64,
    pub(super) violations: Vec<String>,
    pub(super) violation_count: u64,
}

impl Findings {
    fn violation(&mut self, text: String) {
        self.violation_count += 1;
        if self.violations.len() < MAX_LISTED {
            self.violations.push(text);
        }
    }
}

/// One effect in a ledger, in the order of writing.
struct Effect {
    is_undo: bool,
    amount: i64,
    token: i64,
}

/// A ledger, read whole.
struct Ledger {
    effects: BTreeMap<String, Vec<Effect>>,
    total: i64,
    refused: u64,
}

impl Ledger {
    fn read(places: &Places, service: Service) -> Result<Self> {
        opened(places, service, Self::of)
    }

    fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let mut effects: BTreeMap<String, Vec<Effect>> = BTreeMap::new();
        let mut statement = conn.prepare("select saga, kind, amount, token from effect order by n")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let effect = Effect {
                is_undo: row.get::<_, String>(1)? == "undo",
                amount: row.get(2)?,
                token: row.get(3)?,
            };
            effects.entry(row.get(0)?).or_default().push(effect);
        }
        let total = conn.query_row("select value from total", [], |r| r.get(0))?;
        Ok(Self { effects, total, refused: refused(conn)? })
    }
}

fn opened<T>(
    places: &Places,
    service: Service,
    read: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> Result<T> {
    let file = places.ledger(service.name);
    let failed = |e| Error::with(Code::Internal, format!("cannot read {}", file.display()), e);
    // Only read: the last writer to close a ledger moves its log, under a lock that a service which comes up meets.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&file, flags).map_err(failed)?;
    read(&conn).map_err(failed)
}

fn refused(conn: &Connection) -> rusqlite::Result<u64> {
    let count = "select ifnull(sum(count), 0) from tally where name in ('duplicate', 'late', 'null_undo')";
    conn.query_row(count, [], |r| r.get(0))
}

/// Duplicates that the services refused so far, for the screen.
pub(super) fn refused_so_far(places: &Places) -> u64 {
    SERVICES.iter().filter_map(|s| opened(places, *s, refused).ok()).sum()
}

/// Reads the ledgers and compares. Every process is stopped by now.
pub(super) fn audit(places: &Places, accepted: &[Accepted<'_>]) -> Result<Findings> {
    let mut ledgers = Vec::with_capacity(SERVICES.len());
    for service in SERVICES {
        ledgers.push((service, Ledger::read(places, service)?));
    }
    Ok(compare(&ledgers, accepted))
}

fn compare(ledgers: &[(Service, Ledger)], accepted: &[Accepted<'_>]) -> Findings {
    let mut found =
        Findings { duplicates_refused: ledgers.iter().map(|(_, l)| l.refused).sum(), ..Findings::default() };
    let known: BTreeSet<&str> = accepted.iter().map(|a| a.uid.as_str()).collect();
    for one in accepted {
        order(&mut found, ledgers, one);
    }
    for (service, ledger) in ledgers {
        for uid in ledger.effects.keys().filter(|uid| !known.contains(uid.as_str())) {
            found.violation(format!("{}: an effect of saga {uid}, which nobody started", service.name));
        }
        let sum: i64 =
            ledger.effects.values().flatten().map(|e| if e.is_undo { -e.amount } else { e.amount }).sum();
        if sum != ledger.total {
            found.violation(format!(
                "{}: the entries add up to {sum}, the total says {}",
                service.name, ledger.total
            ));
        }
    }
    found
}

/// One order over all ledgers.
fn order(found: &mut Findings, ledgers: &[(Service, Ledger)], one: &Accepted<'_>) {
    let id = &one.order.id;
    let mut done = [0_u32; SERVICES.len()];
    let mut undone = [0_u32; SERVICES.len()];
    for (i, (service, ledger)) in ledgers.iter().enumerate() {
        let effects = ledger.effects.get(&one.uid).map_or(&[][..], Vec::as_slice);
        let mut highest = 0;
        for effect in effects {
            if effect.token < highest {
                found.violation(format!(
                    "{id}: {} under token {} after {highest}",
                    service.step, effect.token
                ));
            }
            highest = highest.max(effect.token);
            if !effect.is_undo && undone[i] > 0 {
                found.violation(format!("{id}: {} after its {}", service.step, service.undo));
            }
            if effect.is_undo { undone[i] += 1 } else { done[i] += 1 }
        }
        if done[i] > 1 {
            found.violation(format!("{id}: {} took effect {} times", service.step, done[i]));
        }
        if undone[i] > done[i].min(1) {
            found.violation(format!(
                "{id}: {} {} times for {} {}",
                service.undo, undone[i], done[i], service.step
            ));
        }
    }
    found.charged_twice += u64::from(done[1] > 1);
    let shipped = done[2] > undone[2];
    let all_or_nothing =
        if shipped { done.iter().all(|n| *n == 1) && undone.iter().all(|n| *n == 0) } else { done == undone };
    match (all_or_nothing, shipped) {
        (true, true) => found.shipped += 1,
        (true, false) => found.compensated += 1,
        (false, _) => {
            found.half_done += 1;
            found.violation(format!("{id}: half done: done {done:?}, undone {undone:?} in {}", names()));
        }
    }
    if shipped && one.order.fate != Fate::Ships {
        found.violation(format!("{id}: shipped although it was refused ({:?})", one.order.fate));
    }
    let expected = if shipped { SagaStatus::Completed } else { SagaStatus::Compensated };
    match one.verdict {
        None => found.violation(format!("{id}: accepted, and unknown to the node")),
        Some(verdict) if !verdict.is_final() => {
            found.violation(format!("{id}: the node left it `{verdict}`"));
        }
        Some(verdict) if verdict != expected => {
            found.violation(format!("{id}: the node says `{verdict}`, the ledgers say `{expected}`"));
        }
        Some(_) => {}
    }
}

fn names() -> String {
    SERVICES.map(|s| s.name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledgers(entries: [&[(bool, i64)]; 3]) -> Vec<(Service, Ledger)> {
        SERVICES
            .into_iter()
            .zip(entries)
            .map(|(service, entries)| {
                let effects: Vec<Effect> = entries
                    .iter()
                    .map(|(is_undo, token)| Effect { is_undo: *is_undo, amount: 5, token: *token })
                    .collect();
                let total = effects.iter().map(|e| if e.is_undo { -5 } else { 5 }).sum();
                let effects = BTreeMap::from([("u".to_owned(), effects)]);
                (service, Ledger { effects, total, refused: 0 })
            })
            .collect()
    }

    const DO: (bool, i64) = (false, 1);
    const UNDO: (bool, i64) = (true, 1);

    #[track_caller]
    fn check(entries: [&[(bool, i64)]; 3], verdict: SagaStatus, expected: &str) {
        let order = Order { id: "order-1".to_owned(), items: 1, cents: 1, fate: Fate::Ships };
        let accepted = [Accepted { order: &order, uid: "u".to_owned(), verdict: Some(verdict) }];
        let found = compare(&ledgers(entries), &accepted);
        let text = found.violations.join("; ");
        assert!(if expected.is_empty() { text.is_empty() } else { text.contains(expected) }, "{text}");
    }

    #[test]
    fn if_d05_each_invariant_can_be_violated() {
        use SagaStatus::{Compensated, Completed, Running};
        check([&[DO], &[DO], &[DO]], Completed, "");
        check([&[DO, UNDO], &[DO, UNDO], &[]], Compensated, "");
        check([&[], &[], &[]], Compensated, "");
        check([&[DO], &[DO, DO], &[DO]], Completed, "charge took effect 2 times");
        check([&[DO], &[DO], &[]], Compensated, "half done");
        check([&[DO], &[DO, UNDO], &[DO]], Completed, "half done");
        check([&[DO, UNDO], &[UNDO], &[]], Compensated, "refund 1 times for 0 charge");
        check([&[DO, UNDO, DO, UNDO], &[], &[]], Compensated, "reserve after its release");
        check([&[DO], &[DO], &[(false, 2), (true, 1)]], Compensated, "under token 1 after 2");
        check([&[DO], &[DO], &[DO]], Compensated, "the node says `compensated`");
        check([&[DO], &[DO], &[DO]], Running, "the node left it `running`");
    }

    #[test]
    fn if_d05_lost_orders_strange_effects_and_wrong_totals_are_found() {
        let order = Order { id: "order-1".to_owned(), items: 1, cents: 1, fate: Fate::Declined };
        let mut books = ledgers([&[DO], &[DO], &[DO]]);
        books[0].1.total = 7;
        let one = |uid: &str| Accepted { order: &order, uid: uid.to_owned(), verdict: None };
        let text = compare(&books, &[one("u")]).violations.join("; ");
        for part in ["unknown to the node", "although it was refused", "add up to 5, the total says 7"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = compare(&books, &[one("other")]).violations.join("; ");
        assert!(text.contains("which nobody started"), "{text}");
    }
}
