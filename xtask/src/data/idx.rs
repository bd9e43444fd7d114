//! Reading and writing gzipped IDX files, the format of the MNIST family.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder, read::GzDecoder};

/// Grey images of one size with a label each.
#[derive(Debug, PartialEq, Eq)]
pub struct Labelled {
    /// Height and width in pixels.
    pub size: [usize; 2],
    /// One byte per pixel, row-major.
    pub images: Vec<Vec<u8>>,
    /// One class per image.
    pub labels: Vec<u8>,
}

impl Labelled {
    /// Reads `{part}-images-idx3-ubyte.gz` and `{part}-labels-idx1-ubyte.gz` of a folder.
    ///
    /// # Errors
    /// When a file is missing, is not IDX, or the counts differ.
    pub fn read(folder: &Path, part: &str) -> Result<Self> {
        let pixels = gunzip(&folder.join(format!("{part}-images-idx3-ubyte.gz")))?;
        let ([count, height, width], pixels) = split_header::<3>(&pixels)
            .with_context(|| format!("{part} images of {}", folder.display()))?;
        let labels = gunzip(&folder.join(format!("{part}-labels-idx1-ubyte.gz")))?;
        let ([labelled], labels) = split_header::<1>(&labels)
            .with_context(|| format!("{part} labels of {}", folder.display()))?;
        ensure!(
            count == labelled,
            "{part}: {count} images but {labelled} labels"
        );
        let images = pixels
            .chunks_exact(height * width)
            .map(<[u8]>::to_vec)
            .collect();
        Ok(Self {
            size: [height, width],
            images,
            labels: labels.to_vec(),
        })
    }

    /// Writes the pair of files that [`Labelled::read`] reads. The same data gives the same bytes.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path, part: &str) -> Result<()> {
        let count = self.images.len();
        let mut pixels = header([count, self.size[0], self.size[1]]);
        pixels.extend(self.images.iter().flatten());
        gzip(
            &folder.join(format!("{part}-images-idx3-ubyte.gz")),
            &pixels,
        )?;
        let mut labels = header([count]);
        labels.extend(&self.labels);
        gzip(
            &folder.join(format!("{part}-labels-idx1-ubyte.gz")),
            &labels,
        )
    }

    /// The first `per_class` images of each class in their order, interleaved by class, so that
    /// every prefix of the result is balanced too.
    ///
    /// # Errors
    /// When a class from 0 to the largest has fewer images.
    pub fn balanced(&self, per_class: usize) -> Result<Self> {
        let classes = self
            .labels
            .iter()
            .max()
            .map_or(0, |&largest| usize::from(largest) + 1);
        let mut members = vec![Vec::new(); classes];
        for (index, &label) in self.labels.iter().enumerate() {
            members[usize::from(label)].push(index);
        }
        for (class, members) in members.iter().enumerate() {
            let has = members.len();
            ensure!(
                has >= per_class,
                "class {class} has {has} images, wanted {per_class}"
            );
        }
        let picked: Vec<usize> = (0..per_class)
            .flat_map(|nth| members.iter().map(move |of| of[nth]))
            .collect();
        Ok(Self {
            size: self.size,
            images: picked
                .iter()
                .map(|&index| self.images[index].clone())
                .collect(),
            labels: picked.iter().map(|&index| self.labels[index]).collect(),
        })
    }
}

/// The uncompressed bytes of a gzip file.
///
/// # Errors
/// When the file is missing or damaged.
pub fn gunzip(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut bytes = Vec::new();
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .with_context(|| path.display().to_string())?;
    Ok(bytes)
}

/// Writes at level 9 and without a time stamp or a name.
///
/// # Errors
/// When the file cannot be written.
pub fn gzip(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut encoder = GzBuilder::new().mtime(0).write(file, Compression::best());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .map(drop)
        .with_context(|| path.display().to_string())
}

/// Unsigned bytes (0x08) in D axes, then each axis as a big-endian u32.
fn header<const D: usize>(axes: [usize; D]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0x08, D as u8];
    for axis in axes {
        bytes.extend(
            u32::try_from(axis)
                .expect("IDX axes are 32-bit")
                .to_be_bytes(),
        );
    }
    bytes
}

fn split_header<const D: usize>(bytes: &[u8]) -> Result<([usize; D], &[u8])> {
    let length = 4 + 4 * D;
    ensure!(
        bytes.len() >= length && bytes[..4] == [0, 0, 0x08, D as u8],
        "not an IDX file of bytes in {D} axes"
    );
    let axis = |at: usize| {
        let word = &bytes[4 + 4 * at..8 + 4 * at];
        u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize
    };
    let axes = std::array::from_fn(axis);
    let (expected, got) = (axes.iter().product::<usize>(), bytes.len() - length);
    ensure!(
        expected == got,
        "the header promises {expected} bytes, the file has {got}"
    );
    Ok((axes, &bytes[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Labelled {
        Labelled {
            size: [1, 2],
            images: (0..6).map(|index| vec![index, index]).collect(),
            labels: vec![1, 0, 0, 1, 1, 0],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        example().write(folder.path(), "train").unwrap();
        assert_eq!(Labelled::read(folder.path(), "train").unwrap(), example());
    }

    #[test]
    fn balanced_takes_the_first_of_each_class_interleaved() {
        let sample = example().balanced(2).unwrap();
        assert_eq!(sample.labels, [0, 1, 0, 1]);
        let firsts: Vec<u8> = sample.images.iter().map(|image| image[0]).collect();
        assert_eq!(firsts, [1, 0, 2, 3]);
    }

    #[test]
    fn too_small_a_class_is_named() {
        let refused = example().balanced(4).unwrap_err().to_string();
        assert_eq!(refused, "class 0 has 3 images, wanted 4");
    }

    #[test]
    fn a_short_file_is_refused() {
        let bytes = [header([3]), vec![0, 1]].concat();
        assert!(
            split_header::<1>(&bytes)
                .unwrap_err()
                .to_string()
                .contains("promises 3")
        );
        assert!(split_header::<3>(&bytes).is_err());
    }
}
