//! Where a server's program is.

use std::path::{Path, PathBuf};

/// Folders beside `PATH`: servers are often installed where users do not look.
const ALSO: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/sbin"];

/// Where Debian keeps the programs of each version of PostgreSQL.
const POSTGRES: &str = "/usr/lib/postgresql";

/// The program of this name: on `PATH`, in the usual folders of servers, or in the newest version's folder
/// of PostgreSQL.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ALSO.map(PathBuf::from)).chain(versions());
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn versions() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(POSTGRES) else { return Vec::new() };
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    found.sort_by_key(|path| std::cmp::Reverse(number(path)));
    found.into_iter().map(|path| path.join("bin")).collect()
}
