//! Who may write into a run folder.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{TrainError, checkpoint};

const LOCK: &str = "lock";

/// Exclusive write access to a run folder, for as long as this value or a clone lives, against other processes and other
/// [`Trainer`](super::Trainer)s of this one.
///
/// It is the system's lock of a file `lock` in the folder, which ends with the process. A file system without locks
/// protects nothing. Where the folder or its `lock` is moved or replaced, the trainer stops at its next checkpoint with
/// [`TrainError::Replaced`].
#[derive(Clone, Debug)]
pub struct Claim {
    folder: PathBuf,
    lock: Arc<File>,
}

impl Claim {
    /// Claims a folder for a new run. It is made, with what is above it, if it is not there.
    ///
    /// # Errors
    /// [`TrainError::NotAFolder`], [`TrainError::RunExists`] if it has a run in it, [`TrainError::InUse`] if another
    /// process is about to begin one, or [`TrainError::Io`].
    pub fn begin(folder: impl AsRef<Path>) -> Result<Self, TrainError> {
        let folder = folder.as_ref();
        // Twice: a refusal makes nothing, and what is seen without the lock may have changed.
        refuse_taken(folder)?;
        make(folder)?;
        let claim = Self::lock(folder)?;
        refuse_taken(folder)?;
        Ok(claim)
    }

    /// Claims the folder of a run, to continue it.
    ///
    /// # Errors
    /// [`TrainError::NotAFolder`], [`TrainError::Missing`] without the folder, [`TrainError::InUse`], or
    /// [`TrainError::Io`].
    pub fn resume(folder: impl AsRef<Path>) -> Result<Self, TrainError> {
        let folder = folder.as_ref();
        if !is_folder(folder)? {
            return Err(TrainError::Missing {
                path: folder.into(),
                what: "run",
            });
        }
        Self::lock(folder)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Refuses to go on where the folder is not the one that was claimed.
    pub(super) fn expect_kept(&self) -> Result<(), TrainError> {
        let held = self.lock.metadata();
        let held = held.map_err(TrainError::io(&self.folder))?;
        match fs::metadata(self.folder.join(LOCK)) {
            Ok(found) if is_same(&held, &found) => Ok(()),
            _ => Err(TrainError::Replaced {
                path: self.folder.clone(),
            }),
        }
    }

    fn lock(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(LOCK);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(TrainError::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::InUse {
                    path: folder.into(),
                });
            }
            Err(TryLockError::Error(error)) if knows_no_locks(&error) => {}
            Err(TryLockError::Error(error)) => return Err(TrainError::io(path)(error)),
        }
        Ok(Self {
            folder: folder.into(),
            lock: Arc::new(file),
        })
    }
}

/// Whether both are of one file.
#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Whether both are of one file: elsewhere a file that is open can be neither moved nor replaced.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Whether a lock failed because the file system has none; over a network it may lack the service for them.
fn knows_no_locks(error: &std::io::Error) -> bool {
    let lacks_service = cfg!(unix) && error.raw_os_error() == Some(libc::ENOLCK);
    error.kind() == ErrorKind::Unsupported || lacks_service
}

/// Makes a folder, with what is above it, and puts their names on the disk.
fn make(folder: &Path) -> Result<(), TrainError> {
    let missing = folder
        .ancestors()
        .take_while(|above| !above.try_exists().unwrap_or(false));
    let missing: Vec<&Path> = missing.collect();
    fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
    missing
        .into_iter()
        .filter_map(Path::parent)
        .try_for_each(checkpoint::sync_folder)
}

/// Whether there is a folder. An error of the file system is no proof that it is missing, and is returned: what is taken for
/// missing would be written over.
///
/// # Errors
/// [`TrainError::NotAFolder`] where something else is there, or [`TrainError::Io`] if the file system returns an error.
pub fn is_folder(path: impl AsRef<Path>) -> Result<bool, TrainError> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => Err(TrainError::NotAFolder { path: path.into() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(TrainError::io(path)(error)),
    }
}

/// Whether one of the files or folders is there.
///
/// # Errors
/// [`TrainError::Io`] if the file system returns an error.
pub fn has_any(folder: impl AsRef<Path>, names: &[&str]) -> Result<bool, TrainError> {
    let mut paths = names.iter().map(|name| folder.as_ref().join(name));
    paths.try_fold(false, |is_there, path| {
        Ok(is_there || path.try_exists().map_err(TrainError::io(path))?)
    })
}

/// Refuses what cannot become the folder of a new run.
fn refuse_taken(folder: &Path) -> Result<(), TrainError> {
    is_folder(folder)?;
    if checkpoint::any(folder)? || has_any(folder, &[super::METRICS])? {
        return Err(TrainError::RunExists {
            path: folder.into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_moved_or_replaced_is_claimed_no_more() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let is_replaced = |claim: &Claim| {
            let kept = claim.expect_kept();
            matches!(kept, Err(TrainError::Replaced { path }) if path == run)
        };
        let claim = Claim::begin(&run).unwrap();
        claim.expect_kept().unwrap();
        fs::rename(&run, place.path().join("moved")).unwrap();
        assert!(is_replaced(&claim));
        let another = Claim::begin(&run).unwrap();
        assert!(is_replaced(&claim));
        another.expect_kept().unwrap();
        fs::remove_file(run.join(LOCK)).unwrap();
        assert!(is_replaced(&another));
        Claim::resume(&run).unwrap().expect_kept().unwrap();
        assert!(is_replaced(&another));
    }
}
