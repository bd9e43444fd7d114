//! Files of the IDX format.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use arbora_tasks::TaskError;
use arbora_tasks::images::ImageSet;

const UNSIGNED_BYTE: u8 = 0x08;

fn encode(axes: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, UNSIGNED_BYTE, axes.len() as u8];
    axes.iter()
        .for_each(|axis| bytes.extend_from_slice(&axis.to_be_bytes()));
    bytes.extend_from_slice(elements);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parse_images(bytes: Vec<u8>) -> Result<ImageSet, TaskError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images");
    fs::write(&path, bytes).unwrap();
    ImageSet::from_idx(&path, None::<&Path>)
}

/// What is said of a file, without its folder.
fn message(bytes: Vec<u8>) -> String {
    let message = parse_images(bytes).unwrap_err().to_string();
    let at = message.find("images: ").expect("the file is named");
    message[at..].to_owned()
}

prop_compose! {
    fn files()(count in 1u32..4, height in 1u32..6, width in 1u32..6)(
        elements in prop::collection::vec(any::<u8>(), (count * height * width) as usize),
        axes in Just([count, height, width]),
    ) -> ([u32; 3], Vec<u8>) {
        (axes, elements)
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read_back((axes, elements) in files()) {
        let bytes = encode(&axes, &elements);
        let set = parse_images(bytes.clone()).unwrap();
        prop_assert_eq!(&set.pixels, &elements);
        prop_assert_eq!([set.count, set.height, set.width], axes.map(|axis| axis as usize));
        prop_assert_eq!(parse_images(gzip(&bytes)).unwrap(), set);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused((axes, elements) in files()) {
        let bytes = encode(&axes, &elements);
        let packed = gzip(&bytes);
        for length in 0..bytes.len() {
            prop_assert!(parse_images(bytes[..length].to_vec()).is_err());
        }
        for length in 0..packed.len() {
            prop_assert!(parse_images(packed[..length].to_vec()).is_err());
        }
    }

    #[test]
    fn any_bytes_give_a_result_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        plausible: bool,
    ) {
        let mut bytes = bytes;
        if plausible && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[0, 0, UNSIGNED_BYTE, 3]);
        }
        let _ = parse_images(bytes.clone());
        bytes.splice(0..0, [0x1f, 0x8b]);
        prop_assert!(parse_images(bytes).is_err());
    }
}

#[test]
fn each_kind_of_damage_has_its_message() {
    let good = encode(&[2, 2, 2], &[7; 8]);
    let wrong_type = [&[0, 0, 0x0d, 3], &good[4..]].concat();
    let too_long = [good.as_slice(), &[0]].concat();
    let mut damaged = gzip(&good);
    let at = damaged.len() - 6;
    damaged[at] ^= 0xff;
    let messages = [
        message(b"\x89PNG....".to_vec()),
        message(wrong_type),
        message(encode(&[8], &[7; 8])),
        message(good[..20].to_vec()),
        message(good[..9].to_vec()),
        message(too_long),
        message(Vec::new()),
        message(encode(&[u32::MAX; 3], &[])),
        message(encode(&[2, 0, 2], &[])),
        message(damaged),
    ];
    let expected = [
        "not an IDX file: expected it to begin with the bytes 00 00, got 89 50 4e 47",
        "expected IDX element type 0x08 (unsigned byte), got 0x0d",
        "expected 3 axes (count, height, width), got 1",
        "expected 24 bytes, got 20",
        "expected 16 bytes, got 9",
        "expected 24 bytes, got 25",
        "expected 16 bytes, got 0",
        "expected 79228162458924105385300197391 bytes, got 16",
        "the axis height has length 0",
        "the gzip stream is damaged: corrupt gzip stream does not have a matching checksum",
    ];
    assert_eq!(
        messages,
        expected.map(|message| format!("images: {message}"))
    );
}

fn files_in(folder: &Path, images: &[u8], labels: &[u8]) -> (PathBuf, PathBuf) {
    let paths = (folder.join("images"), folder.join("labels"));
    fs::write(&paths.0, images).unwrap();
    fs::write(&paths.1, labels).unwrap();
    paths
}

#[test]
fn images_and_labels_come_from_plain_and_packed_files() {
    let folder = tempfile::tempdir().unwrap();
    let (images, labels) = files_in(
        folder.path(),
        &gzip(&encode(&[2, 1, 2], &[1, 2, 3, 4])),
        &encode(&[2], &[8, 9]),
    );
    let set = ImageSet::from_idx(&images, Some(&labels)).unwrap();
    assert_eq!(set.labels.as_deref(), Some(&[8, 9][..]));
    assert_eq!(set.image(1).unwrap(), [3, 4]);
    set.check().unwrap();
    let unlabelled = ImageSet::from_idx(&images, None::<&Path>).unwrap();
    assert_eq!(
        unlabelled,
        ImageSet {
            labels: None,
            ..set
        }
    );
}

#[test]
fn another_number_of_labels_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let images = encode(&[2, 1, 2], &[0; 4]);
    let (images, labels) = files_in(folder.path(), &images, &encode(&[3], &[0; 3]));
    // The second are images where labels belong.
    let cases = [
        (&labels, "expected 2 labels, one for each image, got 3"),
        (&images, "expected 1 axes (count), got 3"),
    ];
    for (path, message) in cases {
        let error = ImageSet::from_idx(&images, Some(path)).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: {message}", path.display()));
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere.gz");
    let error = ImageSet::from_idx(&path, None::<&Path>).unwrap_err();
    assert!(matches!(&error, TaskError::Read { path: named, .. } if *named == path));
    let message = error.to_string();
    assert!(message.contains("nowhere.gz: cannot be read"), "{message}");
}
