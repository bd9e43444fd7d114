//! Folders of PNG and JPEG files.

use std::path::{Path, PathBuf};

use image::imageops::FilterType;

use super::{ImageSet, PictureChanges, picture};
use crate::{TaskError, files};

/// Reads a folder. `channels` is 1, 3 or, if not given, what the first file has.
pub(super) fn read(
    folder: &Path,
    size: Option<[usize; 2]>,
    channels: Option<usize>,
) -> Result<(ImageSet, PictureChanges), TaskError> {
    check_options(size, channels)?;
    let paths = list(folder)?;
    let (mut size, mut channels, first_size) = (size, channels, size.is_none());
    let mut pixels = Vec::new();
    let mut changes = PictureChanges {
        pictures: paths.len(),
        ..Default::default()
    };
    for path in &paths {
        let picture = picture::open(path)?;
        let image = picture.image;
        let got = [image.height() as usize, image.width() as usize];
        let [height, width] = *size.get_or_insert(got);
        let own_channels = if image.color().has_color() { 3 } else { 1 };
        let channels = *channels.get_or_insert(own_channels);
        for (count, is_changed) in [
            (&mut changes.rotated, picture.rotated),
            (&mut changes.transparent, picture.transparent),
            (&mut changes.from_16_bit, picture.from_16_bit),
            (&mut changes.from_cmyk, picture.from_cmyk),
            (&mut changes.made_grey, channels < own_channels),
            (&mut changes.made_colour, channels > own_channels),
            (&mut changes.resized, [height, width] != got),
        ] {
            *count += usize::from(is_changed);
        }
        let image = if [height, width] == got {
            image
        } else if first_size {
            let problem = format!(
                "expected {height}x{width} pixels (height x width) as in the first file, got {}x{}; give a size to resize to",
                got[0], got[1]
            );
            return Err(TaskError::file(path, problem));
        } else {
            // The bicubic filter widens when it shrinks an image, so nothing is skipped over.
            image.resize_exact(width as u32, height as u32, FilterType::CatmullRom)
        };
        match channels {
            1 => pixels.extend_from_slice(image.to_luma8().as_raw()),
            _ => pixels.extend_from_slice(image.to_rgb8().as_raw()),
        }
    }
    let found = size.zip(channels).filter(|_| !paths.is_empty());
    let no_images = "expected PNG or JPEG files in this folder, found none";
    let ([height, width], channels) = found.ok_or_else(|| TaskError::file(folder, no_images))?;
    let set = ImageSet {
        pixels,
        count: paths.len(),
        height,
        width,
        channels,
        labels: None,
    };
    Ok((set, changes))
}

fn check_options(size: Option<[usize; 2]>, channels: Option<usize>) -> Result<(), TaskError> {
    // Far above any image that attention over pixels can use, and below what overflows.
    let wrong = |side: &&usize| !(1..=1 << 14).contains(*side);
    if let Some(&got) = size.iter().flatten().find(wrong) {
        return Err(TaskError::config("size", "1 to 16384", got));
    }
    match channels {
        Some(got) if ![1, 3].contains(&got) => Err(TaskError::config("channels", "1 or 3", got)),
        _ => Ok(()),
    }
}

/// The image files of a folder, sorted by name.
fn list(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let unreadable = TaskError::read(folder);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(&unreadable)? {
        let path = entry.map_err(&unreadable)?.path();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let is_image = ["png", "jpg", "jpeg"]
            .iter()
            .any(|known| extension == *known);
        if is_image && !files::is_hidden(&path) && files::is_file(&path)? {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
