//! What the folder of a run keeps of its data, so that other data are refused.

use crate::{atomic_file, settings};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::Path;

/// A file in the folder of a run that keeps something of its data.
#[derive(Clone, Debug)]
pub struct Kept {
    name: &'static str,
    contents: String,
    check: Option<Check>,
}

/// Refuses other data than those of a run's folder: the folder, what it has, what there is.
type Check = fn(&Path, &str, &str) -> Result<()>;

/// What tells the data of a run from others.
pub trait Provenance: Serialize + DeserializeOwned {
    /// The name of their file.
    const FILE: &'static str;
    /// What the data are.
    const WHAT: &'static str;

    /// Says how other data differ; `None` where they are the same.
    fn change(&self, now: &Self) -> Option<String>;
}

impl Kept {
    /// A file that nothing is compared with.
    pub fn file(name: &'static str, contents: String) -> Self {
        Self {
            name,
            contents,
            check: None,
        }
    }

    /// A file that says which data they are, which must stay the same.
    pub fn provenance<F: Provenance>(provenance: &F) -> Result<Self> {
        Ok(Self {
            name: F::FILE,
            contents: serde_json::to_string_pretty(provenance)? + "\n",
            check: Some(expect_same::<F>),
        })
    }

    /// Refuses a folder whose file says that its run began with other data. Whether there was a file to say so.
    pub fn check(&self, folder: &Path) -> Result<bool> {
        let Some(check) = self.check else {
            return Ok(false);
        };
        let path = folder.join(self.name);
        let found = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            found => found.with_context(|| format!("cannot read {}", path.display()))?,
        };
        check(folder, settings::without_mark(&found), &self.contents)?;
        Ok(true)
    }

    /// Refuses a folder that has another file of this name. A start that was cut short has left the same.
    pub fn refuse_another(&self, folder: &Path) -> Result<()> {
        let path = folder.join(self.name);
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Ok(found) if found == self.contents.as_bytes() => Ok(()),
            _ => bail!(
                "{}: exists and belongs to another run; choose another folder",
                path.display()
            ),
        }
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        atomic_file::write(&folder.join(self.name), &self.contents)
    }
}

fn expect_same<F: Provenance>(folder: &Path, had: &str, has: &str) -> Result<()> {
    let what = || {
        let path = folder.join(F::FILE);
        format!("{}: not the description of {}", path.display(), F::WHAT)
    };
    let had: F = serde_json::from_str(had).with_context(what)?;
    let has: F = serde_json::from_str(has)?;
    match had.change(&has) {
        None => Ok(()),
        Some(change) => bail!("{}: its {change}", folder.display()),
    }
}
