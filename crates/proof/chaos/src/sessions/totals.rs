//! What a campaign counted.

use std::fmt;
use std::io;
use std::path::Path;

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was counted, in this run or in several.
        ///
        /// ```
        /// use mainstay_chaos::sessions::Totals;
        ///
        /// let mut totals = Totals { reads: 7, ..Totals::default() };
        /// totals.add(&Totals { reads: 3, stale: 1, ..Totals::default() });
        /// assert_eq!((totals.reads, totals.violations()), (10, 1));
        /// ```
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[allow(clippy::exhaustive_structs, reason = "counters, to be made and compared in tests")]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Totals {
            /// Adds another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            fn lines(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            fn set(&mut self, name: &str, value: u64) {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    // A counter of another version of this program.
                    _ => {}
                }
            }
        }
    };
}

totals! {
    /// Session reads that answered.
    reads,
    /// Of them from replicas.
    replica_reads,
    /// Session writes that were acknowledged.
    writes,
    /// Sessions handed over as sealed text.
    handovers,
    /// Kills with a failover after them.
    failovers,
    /// Of them such that lost writes.
    lossy,
    /// Writes that were acknowledged and then lost on purpose.
    doomed,
    /// Of them those whose session was told.
    doomed_told,
    /// Writes that were acknowledged and certainly replicated before a kill.
    kept,
    /// Of them those found again.
    kept_found,
    /// Of them those called lost: not provably present, although it was there. Allowed, and to be rare.
    kept_called_lost,
    /// Sessions told that something was lost, all in all.
    told_lost,
    /// Sessions told that what they had read is not proven.
    told_unproven,
    /// Calls that failed because a server was gone.
    unavailable,
    /// Events judged by the checker of the four guarantees.
    judged,
    /// Reads that saw less than their session knew.
    stale,
    /// Positions that were lost, and that a node called satisfied.
    false_satisfied,
    /// Lost writes whose session was not told.
    silent,
    /// Counterexamples of the checker.
    refuted,
}

impl Totals {
    /// What must be 0.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.stale + self.false_satisfied + self.silent + self.refuted
    }

    /// Reads totals from a file; none there means none yet.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(file: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let mut totals = Self::default();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(' ') {
                totals.set(name, value.trim().parse().unwrap_or(0));
            }
        }
        Ok(totals)
    }

    /// Writes totals to a file, so that a run that is killed leaves whole ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        let beside = file.with_extension("new");
        let text: String = self.lines().iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        std::fs::write(&beside, text)?;
        std::fs::rename(beside, file)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.lines() {
            writeln!(f, "{name:<17} {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn totals_come_back_from_their_file() {
        let file = std::env::temp_dir().join(format!("mainstay-totals-{}", std::process::id()));
        // In a container another run may have had this number, and have been killed.
        let _ = std::fs::remove_file(&file);
        assert_eq!(Totals::load(&file).unwrap(), Totals::default());
        let totals = Totals { reads: 7, kept: 3, ..Totals::default() };
        totals.save(&file).unwrap();
        assert_eq!(Totals::load(&file).unwrap(), totals);
        std::fs::remove_file(&file).unwrap();
    }
}
