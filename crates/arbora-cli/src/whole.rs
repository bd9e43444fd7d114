//! Files that are whole or absent.

use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// Writes a file beside its place and renames it. What was there before stays until the new one is whole.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let mut beside = OsString::from(path);
    // Processes that share a grid write one table.
    beside.push(format!(".{}.unfinished", std::process::id()));
    let written = fs::write(&beside, contents).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Best effort: the error that matters is the one of the writing.
        let _ = fs::remove_file(&beside);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.json");
        write(&path, "first").unwrap();
        write(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        // A folder cannot be replaced by a file.
        fs::create_dir(folder.path().join("taken")).unwrap();
        let error = write(&folder.path().join("taken"), "x").unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
