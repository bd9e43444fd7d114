//! What can be wrong with text and tokenizers.

use std::path::PathBuf;

/// Why text or a tokenizer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file is not UTF-8.
    #[error("{}: expected UTF-8 text, got the byte 0x{got:02x} at position {byte}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The first byte that is not part of a character, from 0.
        byte: usize,
        /// Its value.
        got: u8,
    },
    /// A file is UTF-16, as its byte order mark says.
    #[error("{}: expected UTF-8 text, got UTF-16; save it as UTF-8", path.display())]
    Utf16 {
        /// The file.
        path: PathBuf,
    },
    /// A folder holds no text files.
    #[error("{}: expected files that end with .txt or .md in this folder or below, found none", path.display())]
    NoTextFiles {
        /// The folder.
        path: PathBuf,
    },
    /// There is no text at all.
    #[error("{origin}: expected text, got {documents} documents without a character")]
    Empty {
        /// The file or folder, or what else the documents came from.
        origin: String,
        /// How many documents there are, all of them empty.
        documents: usize,
    },
    /// A corpus is too small for its split.
    #[error(
        "validation = {share}: the {part} part of {bytes} bytes in {documents} documents is empty; give more text or another share"
    )]
    EmptyPart {
        /// `training` or `validation`.
        part: &'static str,
        /// The share asked for.
        share: f64,
        /// The bytes of the corpus.
        bytes: usize,
        /// The documents of the corpus.
        documents: usize,
    },
    /// A tokenizer makes no token of any document of a part.
    #[error("the tokenizer gives no token for any document of the {part} text")]
    NoTokens {
        /// `training` or `validation`.
        part: &'static str,
    },
    /// A file holds no tokenizer, or a damaged one.
    #[error("{}: not a tokenizer: {problem}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Text that should be a tokenizer is none, or a damaged one.
    #[error("not a tokenizer: {problem}")]
    TokenizerJson {
        /// What is wrong.
        problem: String,
    },
    /// A tokenizer refused a text or tokens.
    #[error("the tokenizer cannot {action}: {problem}")]
    Tokenize {
        /// `encode this text`, `decode these tokens` or `be trained`.
        action: &'static str,
        /// What it said.
        problem: String,
    },
}
