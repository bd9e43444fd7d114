//! Files that may be gzip-compressed or begin with a byte order mark, and files that nobody sees.

use std::{io::Read, path::Path};

use flate2::read::MultiGzDecoder;

use crate::TaskError;

const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What a small stream may unpack to.
const LEAST_UNPACKED: u64 = 1 << 28;
/// How many times its own size a larger one may unpack to. Text has about 4, sparse images 50, the format at most 1032.
const MOST_RATIO: u64 = 200;
/// The byte order mark as UTF-8. Editors and spreadsheets write it; it is no part of the text.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// The bytes of a file, decompressed if it is gzip.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TaskError> {
    decompress(path, std::fs::read(path).map_err(TaskError::read(path))?)
}

/// The text of a file of any kind: decompressed if it is gzip, without a byte order mark, otherwise unchanged.
///
/// # Errors
/// [`TaskError::Read`] if the file cannot be read; [`TaskError::File`] if it is damaged or not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String, TaskError> {
    let path = path.as_ref();
    text(path, read(path)?)
}

/// `bytes`, decompressed if they are gzip. `path` is for messages.
pub(crate) fn decompress(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, TaskError> {
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let most = LEAST_UNPACKED.max(bytes.len() as u64 * MOST_RATIO);
    let mut raw = Vec::new();
    MultiGzDecoder::new(bytes.as_slice())
        .take(most + 1)
        .read_to_end(&mut raw)
        .map_err(|error| TaskError::file(path, format!("the gzip stream is damaged: {error}")))?;
    if raw.len() as u64 <= most {
        return Ok(raw);
    }
    let problem = format!(
        "the gzip stream unpacks to more than {most} bytes; unpack the file by hand if that is meant"
    );
    Err(TaskError::file(path, problem))
}

/// `bytes` as text without a byte order mark. `path` is for messages.
pub(crate) fn text(path: &Path, mut bytes: Vec<u8>) -> Result<String, TaskError> {
    let mark = bytes.len() - without_mark(path, &bytes)?.len();
    bytes.drain(..mark);
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let (got, at) = (error.as_bytes()[at], at + mark);
        let problem = format!("expected UTF-8 text, got the byte 0x{got:02x} at position {at}");
        TaskError::file(path, problem)
    })
}

/// The bytes of a text without a byte order mark. `path` is for messages.
pub(crate) fn without_mark<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], TaskError> {
    // The same mark in UTF-16, of both byte orders.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let problem = "expected UTF-8 text, got UTF-16; save it as UTF-8";
        return Err(TaskError::file(path, problem));
    }
    Ok(bytes.strip_prefix(MARK).unwrap_or(bytes))
}

/// Whether the name of a file or folder begins with a dot. Systems leave such files beside those of people: `.DS_Store`,
/// `._photo.png`, `.git`.
pub(crate) fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether what a folder lists is a file and no folder. What is neither is refused, for else it would be missing without a
/// word: a link to nothing, for one, as tools leave that fetch large files later.
pub(crate) fn is_file(path: &Path) -> Result<bool, TaskError> {
    let refuse = TaskError::read(path);
    let found = std::fs::metadata(path).map_err(&refuse)?;
    if found.is_file() || found.is_dir() {
        Ok(found.is_file())
    } else {
        Err(refuse(std::io::Error::other(
            "it is neither a file nor a folder",
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_begin_with_a_dot_are_hidden() {
        for (path, expected) in [
            ("a/.DS_Store", true),
            ("._a.png", true),
            (".a/b.png", false),
            ("a.png", false),
        ] {
            assert_eq!(is_hidden(Path::new(path)), expected, "{path}");
        }
    }
}
