//! Servers whose clocks count from another start than the machine's.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::find;

/// What gives a program a boot time and a monotonic clock that are a day ahead of the machine's, as they are on another
/// machine: a time namespace of its own, which nobody needs to be root for. The wall clock stays.
const AHEAD: [&str; 6] = ["--map-root-user", "--time", "--monotonic", "86400", "--boottime", "86400"];

/// A program that is `program` a day after its machine was started; it is written to `dir`. None where the kernel does not
/// give a process clocks of its own.
///
/// ```
/// use std::path::Path;
/// use mainstay_sim::servers::a_day_ahead;
///
/// let dir = tempfile::tempdir().unwrap();
/// let Some(cat) = a_day_ahead(Path::new("/bin/cat"), dir.path()).unwrap() else { return };
/// let uptime = std::process::Command::new(cat).arg("/proc/uptime").output().unwrap().stdout;
/// let uptime = String::from_utf8(uptime).unwrap();
/// assert!(uptime.split('.').next().unwrap().parse::<u64>().unwrap() >= 86_400);
/// ```
///
/// # Errors
/// The program cannot be written.
pub fn a_day_ahead(program: &Path, dir: &Path) -> io::Result<Option<PathBuf>> {
    let Some(unshare) = find("unshare") else { return Ok(None) };
    let tried = Command::new(&unshare).args(AHEAD).arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return Ok(None);
    }
    let file = dir.join("a-day-ahead");
    let text = format!(
        "#!/bin/sh\nexec '{}' {} '{}' \"$@\"\n",
        unshare.display(),
        AHEAD.join(" "),
        program.display()
    );
    std::fs::write(&file, text)?;
    // Servers run as somebody else.
    std::fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o755))?;
    Ok(Some(file))
}
