//! Documents, and where they come from.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{TaskError, files};

/// Endings of the files that a folder is read for.
const ENDINGS: [&str; 2] = ["txt", "md"];
/// From this many documents on, validation takes whole documents.
const WHOLE_DOCUMENTS: usize = 10;
/// How many characters a cut may move to come before white space.
const CUT_SLACK: usize = 64;

/// A text and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// For people: the path within a folder (with `/`), the name of a file, the title of a chapter.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Documents in order, none of them empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    documents: Vec<Document>,
}

impl Corpus {
    /// The documents, as they are. Those without a character are left out.
    ///
    /// # Errors
    /// [`TaskError::Text`] if no document has a character.
    pub fn from_documents(documents: Vec<Document>) -> Result<Self, TaskError> {
        Self::nonempty(documents, "documents")
    }

    /// A text file as one document, or the text files of a folder and the folders below, one document
    /// each, in the order of their paths.
    ///
    /// Of a folder, files that end with `.txt` or `.md` are read, in capitals or not. Paths are compared
    /// folder by folder, as text: `chapter_10` comes before `chapter_2`. Links to folders are not
    /// followed; files and folders whose names begin with a dot are left out. Any file may be compressed with
    /// gzip; its name does not tell. `\r\n` becomes `\n`, and a byte order mark at the start is dropped; nothing
    /// else of the text is changed.
    ///
    /// # Errors
    /// [`TaskError::Read`] for a path that is missing or cannot be read; [`TaskError::File`] for a file that is
    /// not UTF-8 and for a folder without text files; [`TaskError::Text`] if there is no character in all of them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TaskError> {
        let path = path.as_ref();
        let origin = path.display().to_string();
        let metadata = fs::metadata(path).map_err(TaskError::read(path))?;
        if !metadata.is_dir() {
            let name = path.file_name().unwrap_or(path.as_os_str());
            let document = Document {
                name: name.to_string_lossy().into_owned(),
                text: read(path)?,
            };
            return Self::nonempty(vec![document], &origin);
        }
        let mut found = Vec::new();
        find(path, &mut found)?;
        if found.is_empty() {
            let problem =
                "expected files that end with .txt or .md in this folder or below, found none";
            return Err(TaskError::file(path, problem));
        }
        found.sort();
        let documents = found.iter().map(|file| {
            let within = file.strip_prefix(path).unwrap_or(file);
            let parts = within.iter().map(|part| part.to_string_lossy());
            Ok(Document {
                name: parts.collect::<Vec<_>>().join("/"),
                text: read(file)?,
            })
        });
        Self::nonempty(documents.collect::<Result<_, TaskError>>()?, &origin)
    }

    /// Moby-Dick by Herman Melville (1851): etymology, extracts, 135 chapters and the epilogue, each a
    /// document, 1.2 MB in all.
    #[cfg(feature = "sample")]
    pub fn moby_dick() -> Self {
        super::sample::load()
    }

    fn nonempty(mut documents: Vec<Document>, origin: &str) -> Result<Self, TaskError> {
        let count = documents.len();
        documents.retain(|document| !document.text.is_empty());
        if documents.is_empty() {
            return Err(TaskError::Text(format!(
                "{origin}: expected text, got {count} documents without a character"
            )));
        }
        Ok(Self { documents })
    }

    /// The documents in order, at least one.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// The texts in order.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = &str> {
        self.documents.iter().map(|document| document.text.as_str())
    }

    /// Bytes of all texts together.
    pub fn bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }

    /// A SHA-256 of the texts in order, in hexadecimal. It changes with every character and every border
    /// between documents, and not with their names.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for text in self.texts() {
            // The length says where a document ends.
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        format!("{:x}", hasher.finalize())
    }

    /// The training and the validation part, which has about the share `validation` of the bytes.
    ///
    /// From ten documents on, whole documents are taken for validation from the end, until they have at
    /// least the share; at least one document is left for training. Of fewer documents, the end of each is
    /// taken: it is cut where the share begins, or before the next white space if there is one within 64
    /// characters. Every character is in exactly one part. The split depends on the text alone, so that
    /// bits per byte can be compared between tokenizers.
    ///
    /// # Errors
    /// [`TaskError::Config`] if the share is not between 0 and 1, both excluded; [`TaskError::Text`] if there
    /// is too little text for two parts.
    pub fn split(&self, validation: f64) -> Result<(Self, Self), TaskError> {
        check_share(validation)?;
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        if self.documents.len() >= WHOLE_DOCUMENTS {
            let wanted = self.bytes() as f64 * validation;
            let (mut at, mut taken) = (self.documents.len(), 0);
            while at > 1 && (taken as f64) < wanted {
                at -= 1;
                taken += self.documents[at].text.len();
            }
            head.extend_from_slice(&self.documents[..at]);
            tail.extend_from_slice(&self.documents[at..]);
        } else {
            for document in &self.documents {
                let (begin, end) = document.text.split_at(cut(&document.text, validation));
                for (part, text) in [(&mut head, begin), (&mut tail, end)] {
                    part.push(Document {
                        name: document.name.clone(),
                        text: text.into(),
                    });
                }
            }
        }
        let part = |documents, part| {
            Self::nonempty(documents, part).map_err(|_| {
                let (bytes, documents) = (self.bytes(), self.documents.len());
                TaskError::Text(format!(
                    "validation = {validation}: the {part} part of {bytes} bytes in {documents} documents is empty; \
                     give more text or another share"
                ))
            })
        };
        Ok((part(head, "training")?, part(tail, "validation")?))
    }
}

/// Refuses a share of validation that leaves nothing to one of the parts.
pub(super) fn check_share(validation: f64) -> Result<(), TaskError> {
    if validation > 0.0 && validation < 1.0 {
        return Ok(());
    }
    let expected = "more than 0 and less than 1";
    Err(TaskError::config("validation", expected, validation))
}

/// Where the validation part of a text begins.
fn cut(text: &str, validation: f64) -> usize {
    let at = text.ceil_char_boundary((text.len() as f64 * (1.0 - validation)) as usize);
    text[at..]
        .char_indices()
        .take(CUT_SLACK)
        .find(|(_, character)| character.is_whitespace())
        .map_or(at, |(further, _)| at + further)
}

/// The text files in the folder and below.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), TaskError> {
    let error = TaskError::read(folder);
    for entry in fs::read_dir(folder).map_err(&error)? {
        let entry = entry.map_err(&error)?;
        let path = entry.path();
        if files::is_hidden(&path) {
            continue;
        }
        // The type of the entry itself: a link to a folder above would never end.
        if entry.file_type().map_err(&error)?.is_dir() {
            find(&path, found)?;
            continue;
        }
        let ending = path.extension().unwrap_or_default();
        if ENDINGS.iter().any(|one| ending.eq_ignore_ascii_case(one)) && files::is_file(&path)? {
            found.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, TaskError> {
    text(path, files::read(path)?)
}

/// The text of a file with `\n` at the ends of lines.
pub(super) fn text(path: &Path, bytes: Vec<u8>) -> Result<String, TaskError> {
    let text = files::text(path, bytes)?;
    Ok(text.replace("\r\n", "\n"))
}
