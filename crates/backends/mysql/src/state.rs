//! What a server says about itself, and how positions are judged by it: plain decisions, without I/O.

use std::collections::BTreeMap;

use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role};

use crate::gtid::{self, State};

/// What a MariaDB says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MariaDb {
    /// All that is in its log: the last sequence per domain and server.
    pub(crate) state: State,
    /// What it has applied as a replica: per domain.
    pub(crate) applied: BTreeMap<u32, u64>,
    /// The last writer in its own domain, as its log has it.
    pub(crate) writer: Option<u32>,
    pub(crate) server: u32,
    pub(crate) role: Role,
    /// When it was started.
    pub(crate) life: u64,
}

impl MariaDb {
    /// Reads the columns of [`ASK`].
    pub(crate) fn read(
        (state, applied, last): (&str, &str, &str),
        (server, domain): (u32, u32),
        (role, life): (Role, u64),
    ) -> Option<Self> {
        let applied = gtid::mariadb(applied)?;
        let writer = gtid::mariadb(last)?.into_keys().find(|(d, _)| *d == domain).map(|(_, s)| s);
        let applied = applied.into_iter().map(|((domain, _), n)| (domain, n)).collect();
        Some(Self { state: gtid::mariadb(state)?, applied, writer, server, role, life })
    }

    /// What others wrote that is in the log and not applied yet: the log comes first, and readers see it a moment
    /// later. Nothing on a primary, whose readers are told of a commit when it is visible.
    pub(crate) fn unapplied(&self) -> State {
        let open = |(&(domain, server), &n): (&(u32, u32), &u64)| {
            self.role == Role::Replica
                && server != self.server
                && self.applied.get(&domain).is_none_or(|at| *at < n)
        };
        self.state.iter().filter(|entry| open(*entry)).map(|(key, n)| (*key, *n)).collect()
    }

    /// What sessions are to know. The history is that of its last writer: whoever is promoted begins another.
    pub(crate) fn observed(&self, system: &str) -> Observed {
        let timeline = match self.role {
            Role::Primary => self.server,
            Role::Replica => self.writer.unwrap_or(self.server),
        };
        let mark = Mark {
            system: system.to_owned(),
            timeline: timeline.to_string(),
            position: Position::MariaGtid(self.state.clone()),
        };
        Observed::new(mark, Vec::new())
            .with_role(self.role)
            .with_incarnation(self.life)
            .with_rule(judge_mariadb)
    }
}

/// The rule of MariaDB: a transaction is contained if its server's entry in the log's state has its sequence. The
/// sequence of the domain alone would count a fork's transactions as ours.
///
/// On a primary, entries of other servers are final: it will apply no more of them. So one that lacks is `Lost`, also
/// where the primary's own sequence has long passed it.
pub(crate) fn judge_mariadb(wanted: &Mark, observed: &Observed) -> Judgment {
    let (Position::MariaGtid(have), Position::MariaGtid(want)) = (&observed.mark.position, &wanted.position)
    else {
        return Judgment::Foreign;
    };
    if wanted.system != observed.mark.system {
        return Judgment::Foreign;
    }
    let lacks = |key: &(u32, u32), n: &u64| have.get(key).is_none_or(|held| held < n);
    let mut missing = want.iter().filter(|(key, n)| lacks(key, n)).map(|((_, server), _)| server.to_string());
    match missing.next() {
        None => Judgment::Satisfied,
        Some(first) => {
            let own = &observed.mark.timeline;
            let of_others = first != *own || missing.any(|server| server != *own);
            if observed.role == Role::Primary && of_others { Judgment::Lost } else { Judgment::Behind }
        }
    }
}

/// What a MySQL says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MySql {
    pub(crate) executed: BTreeMap<String, gtid::Executed>,
    /// The UUID of the server.
    pub(crate) server: String,
    pub(crate) role: Role,
    pub(crate) life: u64,
}

impl MySql {
    /// What sessions are to know: per server the transactions without a gap.
    pub(crate) fn observed(&self, system: &str) -> Observed {
        let set = self.executed.iter().map(|(server, e)| (server.clone(), e.without_gap)).collect();
        let mark =
            Mark { system: system.to_owned(), timeline: String::new(), position: Position::Gtid(set) };
        Observed::new(mark, Vec::new())
            .with_role(self.role)
            .with_incarnation(self.life)
            .with_rule(judge_mysql)
    }

    /// A position at or past whatever this server has committed by itself.
    pub(crate) fn committed(&self, system: &str) -> Mark {
        let own = |key: &String| key.split(':').next() == Some(self.server.as_str());
        let set =
            self.executed.iter().filter(|(key, _)| own(key)).map(|(key, e)| (key.clone(), e.last)).collect();
        Mark { system: system.to_owned(), timeline: String::new(), position: Position::Gtid(set) }
    }
}

/// The rule of MySQL: containment of sets, which no fork can fool, because the server's UUID is in every id.
pub(crate) fn judge_mysql(wanted: &Mark, observed: &Observed) -> Judgment {
    let (Position::Gtid(have), Position::Gtid(want)) = (&observed.mark.position, &wanted.position) else {
        return Judgment::Foreign;
    };
    if wanted.system != observed.mark.system {
        return Judgment::Foreign;
    }
    let held = |server: &String, n: &u64| have.get(server).is_some_and(|held| held >= n);
    if want.iter().all(|(server, n)| held(server, n)) { Judgment::Satisfied } else { Judgment::Behind }
}
