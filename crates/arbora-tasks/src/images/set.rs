//! Images in memory.

use std::path::Path;

use super::PictureChanges;
use crate::{TaskError, files, shuffle::Shuffle};

/// Images of one size, 8 bits per channel, in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSet {
    /// `[count, height, width, channels]`, row-major.
    pub pixels: Vec<u8>,
    /// How many images there are.
    pub count: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// The class of each image, `[count]`, where known.
    pub labels: Option<Vec<u8>>,
}

impl ImageSet {
    /// Reads images, and labels where given, from IDX files, the format of MNIST and its relatives.
    /// Files may be gzip-compressed; their first bytes tell, not their names.
    ///
    /// Images are `[count, height, width]` unsigned bytes (type `0x08`) and become one grey channel.
    /// Labels are `[count]` unsigned bytes.
    ///
    /// # Errors
    /// [`TaskError`] for a missing, truncated or overlong file, a damaged gzip stream, another format,
    /// another element type or number of axes, an axis of length 0, or another number of labels than
    /// images.
    pub fn from_idx(
        images: impl AsRef<Path>,
        labels: Option<impl AsRef<Path>>,
    ) -> Result<Self, TaskError> {
        let path = images.as_ref();
        let set = super::idx::images(path, &files::read(path)?)?;
        match labels {
            None => Ok(set),
            Some(labels) => set.with_labels(labels.as_ref(), &files::read(labels.as_ref())?),
        }
    }

    /// Reads the PNG and JPEG files of a folder, sorted by name. Other files, sub-folders and hidden files (their
    /// names begin with a dot) are left out, and there are no labels.
    ///
    /// Pictures are as viewers show them: turned as their EXIF data say, with what is transparent on white, and 16
    /// bits rounded to 8. Of an animation it is the first picture. Colour profiles are not applied. The second
    /// result says how many pictures were changed, and how.
    ///
    /// - size: `[height, width]` that every image is resized to with a bicubic filter, ignoring its proportions.
    ///   Without, all images must have the size of the first
    /// - channels: 1 (grey) or 3 (red, green and blue). Without, those of the first file
    ///
    /// # Errors
    /// [`TaskError`] for a missing folder, a folder without such files, an image that is damaged or cut short (the
    /// content decides on the format, not the name), one that takes more than 256 MiB, images of different sizes
    /// without `size`, or a size or number of channels out of range.
    pub fn from_folder(
        folder: impl AsRef<Path>,
        size: Option<[usize; 2]>,
        channels: Option<usize>,
    ) -> Result<(Self, PictureChanges), TaskError> {
        super::folder::read(folder.as_ref(), size, channels)
    }

    /// The training and the test images of the bundled sample. See [`sample`](super::sample).
    #[cfg(feature = "sample")]
    pub fn bundled() -> (Self, Self) {
        super::sample::load()
    }

    /// How many pixels an image has: `height * width`.
    pub fn pixels_per_image(&self) -> usize {
        self.height * self.width
    }

    /// The bytes of one image: `[height, width, channels]`.
    ///
    /// # Errors
    /// [`TaskError::NoSuchImage`] if `index` is not below `count`.
    pub fn image(&self, index: usize) -> Result<&[u8], TaskError> {
        if index >= self.count {
            return Err(TaskError::NoSuchImage {
                index,
                count: self.count,
            });
        }
        let size = self.pixels_per_image() * self.channels;
        Ok(&self.pixels[index * size..(index + 1) * size])
    }

    /// Checks that the lengths of the lists fit the stated sizes and nothing is empty. The loaders
    /// yield only sets that pass; a set put together by hand may not.
    ///
    /// # Errors
    /// [`TaskError::Set`] with the first contradiction.
    pub fn check(&self) -> Result<(), TaskError> {
        let refuse =
            |what, expected: &str, got: usize| Err(TaskError::set("image", what, expected, got));
        for (what, size) in [
            ("count", self.count),
            ("height", self.height),
            ("width", self.width),
        ] {
            if size == 0 {
                return refuse(what, "at least 1", 0);
            }
        }
        if ![1, 3].contains(&self.channels) {
            return refuse("channels", "1 or 3", self.channels);
        }
        let expected = [self.height, self.width, self.channels]
            .into_iter()
            .try_fold(self.count, usize::checked_mul);
        if expected != Some(self.pixels.len()) {
            let expected = "count * height * width * channels bytes";
            return refuse("pixels", expected, self.pixels.len());
        }
        match &self.labels {
            Some(labels) if labels.len() != self.count => {
                refuse("labels", &self.count.to_string(), labels.len())
            }
            _ => Ok(()),
        }
    }

    /// Checks that another set has images of the same height, width and channels, as test images
    /// must have those of the training images.
    ///
    /// # Errors
    /// [`TaskError::Set`] with both sizes.
    pub fn check_same_size(&self, other: &Self) -> Result<(), TaskError> {
        let [expected, got] =
            [self, other].map(|set| format!("{:?}", [set.height, set.width, set.channels]));
        if expected == got {
            return Ok(());
        }
        let what = "height, width and channels";
        Err(TaskError::set("image", what, expected, got))
    }

    /// The images at `indices`, in that order.
    ///
    /// # Errors
    /// [`TaskError::NoSuchImage`] if an index is not below `count`.
    pub fn select(&self, indices: &[usize]) -> Result<Self, TaskError> {
        let mut pixels =
            Vec::with_capacity(indices.len() * self.pixels_per_image() * self.channels);
        for &index in indices {
            pixels.extend_from_slice(self.image(index)?);
        }
        let labels = self.labels.as_ref();
        let labels = labels.map(|labels| indices.iter().map(|&index| labels[index]).collect());
        Ok(Self {
            pixels,
            count: indices.len(),
            labels,
            ..*self
        })
    }

    /// Splits into the images to train on and `held_out` images to test on, which `seed` picks.
    ///
    /// # Errors
    /// [`TaskError::Config`] unless at least one image goes to each side.
    pub fn split(&self, held_out: usize, seed: u64) -> Result<(Self, Self), TaskError> {
        if held_out == 0 || held_out >= self.count {
            let expected = format!("between 1 and one less than the {} images", self.count);
            return Err(TaskError::config("held_out", expected, held_out));
        }
        let shuffle = Shuffle::new(self.count, seed, 0);
        let mut order: Vec<usize> = (0..self.count).map(|at| shuffle.get(at)).collect();
        let (test, train) = order.split_at_mut(held_out);
        test.sort_unstable();
        train.sort_unstable();
        Ok((self.select(train)?, self.select(test)?))
    }

    /// The set with the labels in the bytes of an IDX file.
    pub(super) fn with_labels(mut self, path: &Path, bytes: &[u8]) -> Result<Self, TaskError> {
        let labels = super::idx::labels(path, bytes)?;
        let (expected, got) = (self.count, labels.len());
        if got != expected {
            let problem = format!("expected {expected} labels, one for each image, got {got}");
            return Err(TaskError::file(path, problem));
        }
        self.labels = Some(labels);
        Ok(self)
    }
}
