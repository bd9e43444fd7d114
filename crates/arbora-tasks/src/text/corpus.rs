//! Documents, and where they come from.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::TextError;
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
    /// [`TextError::Empty`] if no document has a character.
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
    /// [`TaskError::Read`] for a path that is missing or cannot be read; [`TextError::NotUtf8`] for a file
    /// that is not text, [`TextError::Utf16`] for one that says it is that; [`TextError::NoTextFiles`] for a folder without any; [`TextError::Empty`] if there
    /// is no character in all of them.
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
            return Err(TextError::NoTextFiles { path: path.into() }.into());
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
            return Err(TextError::Empty {
                origin: origin.into(),
                documents: count,
            }
            .into());
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
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
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
    /// [`TaskError::Number`] if the share is not between 0 and 1, both excluded; [`TextError::EmptyPart`]
    /// if there is too little text for two parts.
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
            Self::nonempty(documents, part).map_err(|_| TextError::EmptyPart {
                part,
                share: validation,
                bytes: self.bytes(),
                documents: self.documents.len(),
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
    Err(TaskError::Number {
        key: "validation",
        expected: "more than 0 and less than 1".into(),
        got: validation.to_string(),
    })
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
    Ok(if text.contains("\r\n") {
        text.replace("\r\n", "\n")
    } else {
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn corpus(texts: &[&str]) -> Corpus {
        let documents = texts.iter().enumerate().map(|(at, text)| Document {
            name: at.to_string(),
            text: text.to_string(),
        });
        Corpus::from_documents(documents.collect()).unwrap()
    }

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_paths() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "b.txt", b"two\r\nlines\r");
        write(folder.path(), "a/z.MD", b"first");
        write(folder.path(), "a/deeper/x.txt", "é".as_bytes());
        write(folder.path(), "a/picture.png", b"\xff\xfe");
        write(folder.path(), "empty.txt", b"");
        write(folder.path(), "._b.txt", b"\0\x05\x16\x07\xff");
        write(folder.path(), ".git/notes.txt", b"hidden");
        let corpus = Corpus::open(folder.path()).unwrap();
        let pairs = |document: &Document| (document.name.clone(), document.text.clone());
        let found: Vec<_> = corpus.documents().iter().map(pairs).collect();
        let expected = [
            ("a/deeper/x.txt", "é"),
            ("a/z.MD", "first"),
            ("b.txt", "two\nlines\r"),
        ];
        assert_eq!(
            found,
            expected.map(|(name, text)| (name.to_string(), text.to_string()))
        );
        let one = Corpus::open(folder.path().join("b.txt")).unwrap();
        assert_eq!(one.documents(), &corpus.documents()[2..]);
    }

    #[test]
    fn a_byte_order_mark_is_no_character_of_a_document() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.txt", "\u{feff}one".as_bytes());
        write(folder.path(), "b.txt", "\u{feff}".as_bytes());
        let corpus = Corpus::open(folder.path()).unwrap();
        assert_eq!(corpus.texts().collect::<Vec<_>>(), ["one"]);
        assert_eq!(corpus.sha256(), self::corpus(&["one"]).sha256());
    }

    #[test]
    fn damaged_missing_and_empty_sources_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let error = |name: &str| Corpus::open(path.join(name)).unwrap_err().to_string();
        write(path, "bad.txt", b"ab\xc3\xa9\xffz");
        assert!(
            error("bad.txt")
                .ends_with("bad.txt: expected UTF-8 text, got the byte 0xff at position 4"),
            "{}",
            error("bad.txt")
        );
        assert!(error("none").contains("none: cannot be read"));
        write(path, "other/data.bin", b"1");
        assert!(error("other").contains("expected files that end with .txt or .md"));
        write(path, "hidden/.a.txt", b"1");
        assert!(error("hidden").contains("hidden: expected files that end with .txt or .md"));
        write(path, "wide.txt", b"\xff\xfea\0");
        assert!(error("wide.txt").contains("wide.txt: expected UTF-8 text, got UTF-16"));
        write(path, "void/a.txt", b"");
        assert!(
            error("void").ends_with("void: expected text, got 1 documents without a character")
        );
    }

    #[test]
    fn a_digest_tells_texts_and_borders_apart_and_no_names() {
        let digest = |texts: &[&str]| corpus(texts).sha256();
        assert_eq!(digest(&["ab", "c"]).len(), 64);
        for other in [&["abc"][..], &["a", "bc"], &["c", "ab"], &["ab", "d"]] {
            assert_ne!(digest(other), digest(&["ab", "c"]), "{other:?}");
        }
        let mut renamed = corpus(&["ab", "c"]);
        renamed.documents[0].name = "another".into();
        assert_eq!(renamed.sha256(), digest(&["ab", "c"]));
    }

    #[test]
    fn ten_documents_are_split_whole_from_the_end() {
        let texts: Vec<String> = (0..10).map(|at| at.to_string().repeat(10)).collect();
        let corpus = corpus(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let lengths = |share| {
            let (train, validation) = corpus.split(share).unwrap();
            assert_eq!(
                [train.documents(), validation.documents()].concat(),
                corpus.documents()
            );
            (train.documents().len(), validation.documents().len())
        };
        assert_eq!(lengths(0.1), (9, 1));
        assert_eq!(lengths(0.101), (8, 2));
        assert_eq!(lengths(0.999), (1, 9));
    }

    #[test]
    fn few_documents_are_cut_before_white_space() {
        let (train, validation) = corpus(&["one two three four", "wörter"])
            .split(0.5)
            .unwrap();
        assert_eq!(train.texts().collect::<Vec<_>>(), ["one two three", "wö"]);
        assert_eq!(validation.texts().collect::<Vec<_>>(), [" four", "rter"]);
        for share in [0.0, 1.0, -0.1, f64::NAN] {
            let error = corpus(&["abc"]).split(share).unwrap_err().to_string();
            assert!(
                error.starts_with("validation: expected more than 0 and less than 1"),
                "{error}"
            );
        }
        let error = corpus(&["a"]).split(0.5).unwrap_err().to_string();
        assert!(
            error.contains("part of 1 bytes in 1 documents is empty"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_character_is_lost_or_doubled_by_a_cut(text in ".{2,80}", share in 0.01f64..0.99) {
            let at = cut(&text, share);
            prop_assert!(text.is_char_boundary(at));
            prop_assert!(at >= (text.len() as f64 * (1.0 - share)) as usize);
        }
    }
}
