//! Folders of PNG and JPEG files.

use std::fs;
use std::path::PathBuf;

use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba};

use arbora_tasks::TaskError;
use arbora_tasks::images::{ImageSet, PictureChanges};

use crate::picture::png_turned;

const NONE: &str = "expected PNG or JPEG files in this folder, found none";

fn grey(path: PathBuf, width: u32, height: u32, value: u8) {
    GrayImage::from_fn(width, height, |x, _| Luma([value + x as u8]))
        .save(path)
        .unwrap();
}

fn colour(path: PathBuf, width: u32, height: u32, value: [u8; 3]) {
    RgbImage::from_pixel(width, height, Rgb(value))
        .save(path)
        .unwrap();
}

#[test]
fn files_are_read_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path().join("b.png"), 3, 2, 20);
    grey(folder.path().join("a.PNG"), 3, 2, 10);
    fs::write(folder.path().join("notes.txt"), "not an image").unwrap();
    fs::create_dir(folder.path().join("c.png")).unwrap();
    let (set, _) = ImageSet::from_folder(folder.path(), None, None).unwrap();
    assert_eq!(
        [set.count, set.height, set.width, set.channels],
        [2, 2, 3, 1]
    );
    assert_eq!(set.pixels, [10, 11, 12, 10, 11, 12, 20, 21, 22, 20, 21, 22]);
    set.check().unwrap();
}

#[test]
fn hidden_files_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    // What a Mac leaves beside a file on a disk of another system: it has no picture.
    fs::write(folder.path().join("._a.png"), b"\0\x05\x16\x07").unwrap();
    let none = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    assert!(none.to_string().ends_with(NONE), "{none}");
    grey(folder.path().join("a.png"), 3, 2, 10);
    let (set, changes) = ImageSet::from_folder(folder.path(), None, None).unwrap();
    assert_eq!((set.count, changes.pictures), (1, 1));
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path().join("a.png"), 3, 2, 10);
    let link = folder.path().join("b.png");
    std::os::unix::fs::symlink("content-that-was-not-fetched", &link).unwrap();
    let error = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    assert!(
        matches!(&error, TaskError::Read { path, .. } if *path == link),
        "{error:?}"
    );
}

#[test]
fn pictures_of_other_formats_are_refused_by_format() {
    let folder = tempfile::tempdir().unwrap();
    let webp = [&b"RIFF"[..], &[26, 0, 0, 0], b"WEBPVP8L", &[13, 0, 0, 0]].concat();
    fs::write(folder.path().join("a.jpg"), webp).unwrap();
    let error = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("a.jpg") && message.contains("WebP"),
        "{message}"
    );
}

#[test]
fn changes_are_counted_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    colour(path("a.png"), 2, 2, [10, 20, 30]);
    grey(path("b.png"), 2, 2, 7);
    let clear = Rgba([0u16, 0, 0, 0]);
    let deep = ImageBuffer::from_pixel(4, 4, clear);
    DynamicImage::ImageRgba16(deep).save(path("c.png")).unwrap();
    let changes = |size, channels| {
        let (_, changes) = ImageSet::from_folder(folder.path(), size, channels).unwrap();
        changes
    };
    let found = changes(Some([2, 2]), None);
    let expected = PictureChanges {
        pictures: 3,
        transparent: 1,
        from_16_bit: 1,
        made_colour: 1,
        resized: 1,
        ..Default::default()
    };
    assert_eq!(found, expected);
    let found = changes(Some([4, 4]), Some(1));
    assert_eq!(
        (found.made_grey, found.made_colour, found.resized),
        (2, 0, 2)
    );
    assert_eq!(
        found.to_string(),
        "3 pictures, of them 1 with transparency put on white, 1 rounded from 16 bits to 8, 2 made grey, 2 resized"
    );
    fs::remove_file(path("b.png")).unwrap();
    fs::remove_file(path("c.png")).unwrap();
    assert_eq!(changes(None, None).to_string(), "1 pictures");
}

#[test]
fn pictures_are_turned_before_their_sizes_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path().join("a.png"), 2, 3, 10);
    grey(folder.path().join("b.png"), 3, 2, 20);
    let error = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    assert!(
        error.to_string().contains("as in the first file"),
        "{error}"
    );
    let b = folder.path().join("b.png");
    let turned = png_turned(&fs::read(&b).unwrap(), 6, b"IDAT");
    fs::write(b, turned).unwrap();
    let (set, changes) = ImageSet::from_folder(folder.path(), None, None).unwrap();
    assert_eq!(set.image(1).unwrap(), [20, 20, 21, 21, 22, 22]);
    assert_eq!(changes.rotated, 1);
}

#[test]
fn the_first_file_or_the_caller_decides_on_colour() {
    let folder = tempfile::tempdir().unwrap();
    colour(folder.path().join("a.png"), 2, 1, [10, 20, 30]);
    grey(folder.path().join("b.png"), 2, 1, 7);
    let (set, _) = ImageSet::from_folder(folder.path(), None, None).unwrap();
    assert_eq!(set.channels, 3);
    assert_eq!(set.pixels, [10, 20, 30, 10, 20, 30, 7, 7, 7, 8, 8, 8]);
    let (grey, _) = ImageSet::from_folder(folder.path(), None, Some(1)).unwrap();
    assert_eq!((grey.channels, &grey.pixels[2..]), (1, &[7, 8][..]));
}

#[test]
fn jpeg_files_are_read_and_images_resized() {
    let folder = tempfile::tempdir().unwrap();
    colour(folder.path().join("a.jpg"), 16, 16, [200, 100, 50]);
    colour(folder.path().join("b.jpeg"), 8, 24, [10, 10, 10]);
    let (set, _) = ImageSet::from_folder(folder.path(), Some([4, 6]), None).unwrap();
    assert_eq!(
        [set.count, set.height, set.width, set.channels],
        [2, 4, 6, 3]
    );
    let expected = [200u8, 100, 50].into_iter().cycle();
    for (pixel, expected) in set.image(0).unwrap().iter().zip(expected) {
        assert!(
            pixel.abs_diff(expected) <= 3,
            "{pixel} is far from {expected}"
        );
    }
}

#[test]
fn images_of_different_sizes_need_a_size() {
    let folder = tempfile::tempdir().unwrap();
    grey(folder.path().join("a.png"), 3, 2, 0);
    grey(folder.path().join("b.png"), 2, 3, 0);
    let error = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: expected 2x3 pixels (height x width) as in the first file, got 3x2; give a size to resize to",
            folder.path().join("b.png").display()
        )
    );
}

#[test]
fn unreadable_images_are_refused_by_name() {
    let whole = tempfile::tempdir().unwrap();
    grey(whole.path().join("a.png"), 30, 20, 0);
    let png = fs::read(whole.path().join("a.png")).unwrap();
    for content in [&b"plain text"[..], &[], &png[..png.len() / 2]] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bad.png"), content).unwrap();
        let error = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
        assert!(matches!(error, TaskError::File { .. }), "{error:?}");
        let message = error.to_string();
        assert!(
            message.contains("bad.png: not a readable PNG or JPEG"),
            "{message}"
        );
    }
}

#[test]
fn folders_without_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let none = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    assert!(none.to_string().ends_with(NONE), "{none}");
    fs::write(folder.path().join("notes.txt"), "").unwrap();
    let none = ImageSet::from_folder(folder.path(), None, None).unwrap_err();
    assert!(none.to_string().ends_with(NONE), "{none}");
    let missing = ImageSet::from_folder(folder.path().join("gone"), None, None).unwrap_err();
    assert!(matches!(missing, TaskError::Read { .. }), "{missing:?}");
    let file = ImageSet::from_folder(folder.path().join("notes.txt"), None, None).unwrap_err();
    assert!(matches!(file, TaskError::Read { .. }), "{file:?}");
}

#[test]
fn sizes_and_channels_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let size = ImageSet::from_folder(folder.path(), Some([0, 5]), None).unwrap_err();
    assert_eq!(size.to_string(), "size: expected 1 to 16384, got 0");
    let channels = ImageSet::from_folder(folder.path(), None, Some(4)).unwrap_err();
    assert_eq!(channels.to_string(), "channels: expected 1 or 3, got 4");
}
