//! The servers that tests run against: installed when we may, named when we may not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Program and Debian package of each server that some test target starts.
const SERVERS: [(&str, &str); 11] = [
    // The browser of the console's tests.
    ("chromedriver", "chromium-driver"),
    ("chromium", "chromium"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    // Shifts the clock of a Redis by a preload.
    ("faketime", "faketime"),
    ("haproxy", "haproxy"),
    ("mariadbd", "mariadb-server"),
    ("nginx", "nginx"),
    ("postgres", "postgresql"),
    ("redis-server", "redis-server"),
    // Not a server: it gives them a parent-death signal.
    ("setpriv", "util-linux"),
];

/// Folders where Debian puts servers, `PATH` or not.
const ALSO: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Set for the tests: an absent server is a failure. The name is `mainstay_sim::servers::REQUIRE`.
pub(crate) const REQUIRE: &str = "MAINSTAY_REQUIRE_SERVERS";

/// Installs what is missing, as root.
///
/// # Errors
/// Something is missing and cannot be installed; the text says by which command a person can.
pub(crate) fn bring() -> anyhow::Result<()> {
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
    use super::{REQUIRE, is_there};

    #[test]
    fn programs_are_looked_for_on_the_path() {
        assert!(is_there("sh"));
        assert!(!is_there("no-such-server"));
    }

    #[test]
    fn the_variable_is_the_one_that_tests_read() {
        let report = include_str!("../../crates/proof/sim/src/servers/report.rs");
        assert!(report.contains(&format!("\"{REQUIRE}\"")));
    }
}
