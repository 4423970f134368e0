//! Tools of others that some commands need: those that are installed, else built into `target/tools`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::{cargo, run};

/// A subcommand of cargo in a version whose options are known here.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// The program. It is built when it is not there.
    ///
    /// # Errors
    /// When it cannot be had; says what to install.
    pub(crate) fn program(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let folder = root.join("target/tools");
        let own = folder.join("bin").join(self.name);
        for program in [PathBuf::from(self.name), own.clone()] {
            // As cargo itself calls it.
            let verb = self.name.trim_start_matches("cargo-");
            let asked = Command::new(&program).args([verb, "--help"]).output();
            if asked.is_ok_and(|o| o.status.success()) {
                return Ok(program);
            }
        }
        let spec = format!("{}@{}", self.name, self.version);
        run(cargo().args(["install", "--locked", &spec, "--root"]).arg(&folder))
            .with_context(|| format!("`cargo install --locked {spec}` is needed and cannot be had"))?;
        Ok(own)
    }
}
