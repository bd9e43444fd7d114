//! Files that may be gzip-compressed.

use std::{io::Read, path::Path};

use flate2::read::MultiGzDecoder;

use crate::TaskError;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The bytes of a file, decompressed if it is gzip.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TaskError> {
    decompress(path, std::fs::read(path).map_err(TaskError::read(path))?)
}

/// `bytes`, decompressed if they are gzip. `path` is for messages.
pub(crate) fn decompress(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, TaskError> {
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let mut raw = Vec::new();
    MultiGzDecoder::new(bytes.as_slice())
        .read_to_end(&mut raw)
        .map_err(|source| TaskError::Gzip {
            path: path.into(),
            source,
        })?;
    Ok(raw)
}
