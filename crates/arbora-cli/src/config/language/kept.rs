//! What the folder of a run keeps of its text: the tokenizer, and which text it was.

use super::LanguageData;
use crate::whole;
use anyhow::{Context as _, Result, bail};
use arbora::tasks::text::{Corpus, Tokenizer};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const TOKENIZER: &str = "tokenizer.json";
const TEXT: &str = "text.json";

/// Why the text at hand is not taken for the one of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptTextError {
    /// The file that describes the text of the run cannot be read.
    #[error("{}: cannot read what the run keeps of its text", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file that describes the text of the run is damaged.
    #[error("{}: not the description of a text", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The run began with another text.
    #[error("{}: its text has changed: the {part} part had {had}, and has {has}", folder.display())]
    Changed {
        /// The run folder.
        folder: PathBuf,
        /// `training` or `held-out`.
        part: &'static str,
        /// What the run began with.
        had: PartFacts,
        /// What there is.
        has: PartFacts,
    },
}

/// A part of a text, told from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    /// [`Corpus::sha256`].
    pub sha256: String,
    /// All bytes.
    pub bytes: usize,
    /// All documents.
    pub documents: usize,
}

impl PartFacts {
    fn of(corpus: &Corpus) -> Self {
        Self {
            sha256: corpus.sha256(),
            bytes: corpus.bytes(),
            documents: corpus.documents().len(),
        }
    }
}

impl std::fmt::Display for PartFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            sha256,
            bytes,
            documents,
        } = self;
        let start: String = sha256.chars().take(12).collect();
        write!(
            f,
            "{bytes} bytes in {documents} documents with SHA-256 {start}…"
        )
    }
}

#[derive(Serialize, Deserialize)]
struct TextFacts {
    training: PartFacts,
    validation: PartFacts,
}

impl TextFacts {
    fn of(data: &LanguageData) -> Self {
        Self {
            training: PartFacts::of(&data.training),
            validation: PartFacts::of(&data.validation),
        }
    }
}

/// Writes into a new run's folder what is kept.
///
/// # Errors
/// If it cannot be written, or files of these names hold something else: nothing is written then.
pub(super) fn keep(data: &LanguageData, folder: &Path) -> Result<()> {
    let facts = serde_json::to_string_pretty(&TextFacts::of(data))? + "\n";
    let kept = [(TOKENIZER, data.text.tokenizer().to_json()), (TEXT, facts)];
    let kept = kept.map(|(name, text)| (folder.join(name), text));
    for (path, text) in &kept {
        // A start that was cut short has left the same.
        match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(found) if found == text.as_bytes() => {}
            _ => bail!(
                "{}: is there, and is not of this run; choose another folder for it",
                path.display()
            ),
        }
    }
    kept.iter()
        .try_for_each(|(path, text)| whole::write(path, text))
}

/// The tokenizer that a run's folder keeps.
///
/// # Errors
/// If it is missing or damaged.
pub fn kept_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join(TOKENIZER);
    Tokenizer::from_file(&path).context("the tokenizer of the run")
}

/// Refuses a text that is not the one that the run in a folder began with. Folders of earlier versions do not say
/// which one it was: they are believed.
///
/// # Errors
/// If the text has changed, or what is kept cannot be read.
pub fn expect_kept_text(data: &LanguageData, folder: &Path) -> Result<(), KeptTextError> {
    let path = folder.join(TEXT);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(KeptTextError::Unreadable { path, source }),
        Ok(text) => text,
    };
    let had: TextFacts =
        serde_json::from_str(&text).map_err(|source| KeptTextError::Damaged { path, source })?;
    let has = TextFacts::of(data);
    for (part, had, has) in [
        ("training", had.training, has.training),
        ("held-out", had.validation, has.validation),
    ] {
        if had != has {
            return Err(KeptTextError::Changed {
                folder: folder.into(),
                part,
                had,
                has,
            });
        }
    }
    Ok(())
}
