//! The IDX format: two zero bytes, an element type, the number of axes, each axis as a big-endian
//! 32-bit number, then the elements in row-major order.

use std::path::Path;

use super::ImageSet;
use crate::TaskError;

const UNSIGNED_BYTE: u8 = 0x08;

/// Grey images, `[count, height, width]`.
pub(super) fn images(path: &Path, bytes: &[u8]) -> Result<ImageSet, TaskError> {
    let ([count, height, width], pixels) = parse(path, bytes, "count, height, width")?;
    for (axis, size) in [("count", count), ("height", height), ("width", width)] {
        if size == 0 {
            return Err(TaskError::file(
                path,
                format!("the axis {axis} has length 0"),
            ));
        }
    }
    Ok(ImageSet {
        pixels: pixels.to_vec(),
        count,
        height,
        width,
        channels: 1,
        labels: None,
    })
}

/// One label per image, `[count]`.
pub(super) fn labels(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, TaskError> {
    let ([_], labels) = parse(path, bytes, "count")?;
    Ok(labels.to_vec())
}

/// The axes and the elements.
fn parse<'a, const D: usize>(
    path: &Path,
    bytes: &'a [u8],
    axes: &str,
) -> Result<([usize; D], &'a [u8]), TaskError> {
    let refuse = |problem: String| Err(TaskError::file(path, problem));
    let wrong_length = |expected: u128| {
        let got = bytes.len();
        refuse(format!("expected {expected} bytes, got {got}"))
    };
    if !bytes.is_empty() && !bytes.starts_with(&[0, 0][..bytes.len().min(2)]) {
        let first = bytes.iter().take(4).map(|byte| format!("{byte:02x}"));
        let got = first.collect::<Vec<_>>().join(" ");
        return refuse(format!(
            "not an IDX file: expected it to begin with the bytes 00 00, got {got}"
        ));
    }
    let header = 4 + 4 * D;
    let [_, _, element, rank, ..] = *bytes else {
        return wrong_length(header as u128);
    };
    if element != UNSIGNED_BYTE {
        return refuse(format!(
            "expected IDX element type 0x08 (unsigned byte), got 0x{element:02x}"
        ));
    }
    if usize::from(rank) != D {
        return refuse(format!("expected {D} axes ({axes}), got {rank}"));
    }
    if bytes.len() < header {
        return wrong_length(header as u128);
    }
    let (head, elements) = bytes.split_at(header);
    let mut shape = [0; D];
    for (size, word) in shape.iter_mut().zip(head[4..].chunks_exact(4)) {
        *size = u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize;
    }
    // Three 32-bit axes overflow 64 bits, and a damaged header is where they would.
    let expected = shape.iter().map(|&size| size as u128).product::<u128>();
    if elements.len() as u128 != expected {
        return wrong_length(header as u128 + expected);
    }
    Ok((shape, elements))
}
