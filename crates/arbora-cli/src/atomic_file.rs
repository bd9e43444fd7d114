//! Files that are whole or absent.

use anyhow::{Context as _, Result};
use std::io::Write as _;
use std::path::Path;
use tempfile::Builder;

/// Writes a file beside its place, puts it on the disk and renames it. What was there before stays until the new one is
/// whole.
pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let mut builder = Builder::new();
    // Without more, nobody but their owner may read temporary files.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let written = || {
        let mut file = builder.tempfile_in(folder_of(path))?;
        file.write_all(contents.as_ref())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        // So is its name, where a folder can be opened.
        #[cfg(unix)]
        std::fs::File::open(folder_of(path))?.sync_all()?;
        Ok::<_, std::io::Error>(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
