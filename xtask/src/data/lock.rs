//! Checksums of everything that a task downloads.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use md5::Digest;

use crate::atomic_file;

/// A committed file of checksums. The first fetch of an artefact records its checksum, every later
/// one must match it.
pub struct Lock {
    path: PathBuf,
    digests: BTreeMap<String, String>,
}

impl Lock {
    /// Reads the lock file. A missing file is an empty one.
    pub fn open(path: &Path) -> Result<Self> {
        let digests = match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is no lock file", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let path = path.into();
        Ok(Self { path, digests })
    }

    /// Compares the digest of `artefact` with the recorded one, or records it where there is none.
    pub fn check(&mut self, artefact: &str, digest: &str) -> Result<()> {
        match self.digests.get(artefact) {
            Some(expected) if expected == digest => Ok(()),
            Some(expected) => bail!(
                "{artefact} has the checksum {digest}, but {} says {expected}",
                self.path.display()
            ),
            None => {
                println!("recorded {artefact} {digest}");
                self.digests.insert(artefact.into(), digest.into());
                let text = serde_json::to_string_pretty(&self.digests)? + "\n";
                atomic_file::write(&self.path, text)
            }
        }
    }
}

/// `sha256:` and the digest in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{:x}", sha2::Sha256::digest(bytes))
}

/// [`sha256`] of all that a reader gives, for what is too large for memory.
pub fn sha256_of(reader: &mut impl io::Read) -> io::Result<String> {
    let mut hasher = sha2::Sha256::new();
    io::copy(reader, &mut hasher)?;
    Ok(format!("sha256:{:x}", hasher.finalize()))
}

/// `md5:` and the digest in hexadecimal: for data whose publishers state md5 sums.
pub fn md5(bytes: &[u8]) -> String {
    format!("md5:{:x}", md5::Md5::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_check_records_and_later_ones_compare() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock.json");
        let (one, two) = (sha256(b"one"), sha256(b"two"));
        Lock::open(&path).unwrap().check("a", &one).unwrap();

        let mut again = Lock::open(&path).unwrap();
        again.check("a", &one).unwrap();
        let refused = again.check("a", &two).unwrap_err().to_string();
        assert!(
            refused.contains(&one) && refused.contains(&two),
            "{refused}"
        );
    }

    #[test]
    fn a_stream_has_the_digest_of_its_bytes() {
        assert_eq!(sha256_of(&mut b"one".as_slice()).unwrap(), sha256(b"one"));
    }

    #[test]
    fn digests_are_the_published_ones_of_the_empty_input() {
        assert_eq!(md5(b""), "md5:d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(
            sha256(b""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
