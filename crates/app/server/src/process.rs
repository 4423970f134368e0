//! Processes of this program that must not outlive the one that started them.

use crate::error::{Code, Error, Result};

/// Asks the kernel to end this process with its parent, which must be `parent` still.
pub(crate) fn die_with_parent(parent: u32) -> Result<()> {
    let failed = |e| Error::with(Code::Internal, "cannot ask to end with the parent", e);
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(failed)?;
    // It may have died before we asked.
    let found = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get().cast_unsigned());
    if found != parent {
        return Err(Error::new(Code::Internal, format!("the parent {parent} is gone")));
    }
    Ok(())
}
