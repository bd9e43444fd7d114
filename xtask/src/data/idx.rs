//! Reading and writing gzipped IDX files, the format of the MNIST family.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder, read::GzDecoder};

use crate::atomic_file;

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
    pub fn read(folder: &Path, part: &str) -> Result<Self> {
        let pixels = gunzip(&images_of(folder, part))?;
        let ([count, height, width], pixels) = split_header::<3>(&pixels)
            .with_context(|| format!("{part} images of {}", folder.display()))?;
        let labels = gunzip(&labels_of(folder, part))?;
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
    pub fn write(&self, folder: &Path, part: &str) -> Result<()> {
        let count = self.images.len();
        let mut pixels = header([count, self.size[0], self.size[1]]);
        pixels.extend(self.images.iter().flatten());
        let mut labels = header([count]);
        labels.extend(&self.labels);
        gzip(&images_of(folder, part), &pixels)?;
        gzip(&labels_of(folder, part), &labels)
    }

    /// The first `per_class` images of each class in their order, interleaved by class, so that
    /// every prefix of the result is balanced too. Fails when a class from 0 to the largest has fewer.
    pub fn balanced(&self, per_class: usize) -> Result<Self> {
        let largest = self.labels.iter().max();
        let mut members = vec![Vec::new(); largest.map_or(0, |&label| usize::from(label) + 1)];
        for (&label, image) in self.labels.iter().zip(&self.images) {
            members[usize::from(label)].push(image);
        }
        for (class, members) in members.iter_mut().enumerate() {
            let has = members.len();
            ensure!(
                has >= per_class,
                "class {class} has {has} images, wanted {per_class}"
            );
            members.truncate(per_class);
        }
        let (labels, images) = interleaved(&members)
            .into_iter()
            .map(|(_, label, image)| (label, (*image).clone()))
            .unzip();
        Ok(Self {
            size: self.size,
            images,
            labels,
        })
    }
}

/// (position in its class, class, image): the first of each class, then the second of each, ...
pub fn interleaved<T>(classes: &[Vec<T>]) -> Vec<(usize, u8, &T)> {
    let mut all = Vec::new();
    for (label, images) in (0..).zip(classes) {
        all.extend((0..).zip(images).map(|(nth, image)| (nth, label, image)));
    }
    all.sort_by_key(|&(nth, label, _)| (nth, label));
    all
}

fn images_of(folder: &Path, part: &str) -> PathBuf {
    folder.join(format!("{part}-images-idx3-ubyte.gz"))
}

fn labels_of(folder: &Path, part: &str) -> PathBuf {
    folder.join(format!("{part}-labels-idx1-ubyte.gz"))
}

/// The uncompressed bytes of a gzip file.
pub fn gunzip(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| GzDecoder::new(file).read_to_end(&mut bytes));
    read.with_context(|| path.display().to_string())?;
    Ok(bytes)
}

/// Writes at level 9 and without a time stamp or a name.
pub fn gzip(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    atomic_file::write(path, encoder.finish()?)
}

/// Unsigned bytes (0x08) in D axes, then each axis as a big-endian u32.
fn header<const D: usize>(axes: [usize; D]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0x08, D as u8];
    for axis in axes {
        let axis = u32::try_from(axis).expect("IDX axes are 32-bit");
        bytes.extend(axis.to_be_bytes());
    }
    bytes
}

fn split_header<const D: usize>(bytes: &[u8]) -> Result<([usize; D], &[u8])> {
    let length = 4 + 4 * D;
    ensure!(
        bytes.len() >= length && bytes[..4] == [0, 0, 0x08, D as u8],
        "not an IDX file of bytes in {D} axes"
    );
    let (words, _) = bytes[4..].as_chunks::<4>();
    let axes = std::array::from_fn(|axis| u32::from_be_bytes(words[axis]) as usize);
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
        let refused = split_header::<1>(&bytes).unwrap_err().to_string();
        assert!(refused.contains("promises 3"), "{refused}");
        assert!(split_header::<3>(&bytes).is_err());
    }
}
