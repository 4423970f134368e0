//! Files that people name: read whole, up to a size, whatever they are.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The text of a file of at most `most` bytes. A device or a pipe has no size to look at: what comes is counted.
///
/// # Errors
/// When it cannot be read, is larger, or is not UTF-8.
pub(crate) fn text(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(most.saturating_add(1)).read_to_string(&mut text)?;
    if read as u64 > most {
        let why = format!("it is larger than {} KiB", most / 1024);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_only_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "\u{e9}1234").unwrap();
        assert_eq!(text(&path, 6).unwrap(), "\u{e9}1234");
        assert_eq!(text(&path, 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(&path, [0x6e, 0xe9]).unwrap();
        assert_eq!(text(&path, 6).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // It has no size, and no end.
        let endless = text(Path::new("/dev/zero"), 1_024).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::FileTooLarge);
    }
}
