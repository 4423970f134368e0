//! Where a server's program is.

use std::path::{Path, PathBuf};

/// The environment variable that names a folder of servers. `cargo xtask test` sets it for those that it unpacks
/// itself.
pub const SERVERS_DIR: &str = "MAINSTAY_SERVERS_DIR";

/// The library of Debian's package `faketime` that shifts the clocks of the process it is preloaded to.
pub const FAKETIME: &str = "faketime/libfaketime.so.1";

/// Folders beside `PATH`: servers are often installed where users do not look.
const ALSO: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/sbin"];

/// Where `cargo xtask test` unpacks servers that Debian has too old. Looked at first, for that reason.
const UNPACKED: &str = "/opt/mainstay-servers/bin";

/// Where Debian keeps the programs of each version of PostgreSQL.
const POSTGRES: &str = "/usr/lib/postgresql";

/// The program of this name: in the folder that [`SERVERS_DIR`] names, on `PATH`, in the usual folders of servers, or in the newest version's folder
/// of PostgreSQL.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::var_os(SERVERS_DIR).map(PathBuf::from).into_iter().chain([UNPACKED.into()]);
    let usual = std::env::split_paths(&path).chain(ALSO.map(PathBuf::from));
    let folders = own.chain(usual).chain(versions());
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The library of this name, as [`FAKETIME`], where Debian keeps those of the machine.
#[must_use]
pub fn library(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/lib", "/lib"].into_iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    folders.flatten().filter_map(|e| Some(e.ok()?.path().join(name))).find(|file| file.is_file())
}

fn versions() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(POSTGRES) else { return Vec::new() };
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    found.sort_by_key(|path| std::cmp::Reverse(number(path)));
    found.into_iter().map(|path| path.join("bin")).collect()
}
