//! The bundled sample: a class-balanced part of Fashion-MNIST, 28 x 28 pixels, grey, ten classes.
//!
//! Fashion-MNIST is by Zalando SE, under the MIT licence ([`LICENSE`]). See Xiao, Rasul and
//! Vollgraf, [Fashion-MNIST](https://arxiv.org/abs/1708.07747), 2017.

use std::path::Path;

use super::{ImageSet, idx};
use crate::files;

/// The licence and origin of the sample, to show wherever it is redistributed.
pub const LICENSE: &str = include_str!("../../sample/NOTICE");

/// The classes, by label.
pub const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// The training and the test images.
pub(super) fn load() -> (ImageSet, ImageSet) {
    let train = read(
        include_bytes!("../../sample/train-images-idx3-ubyte.gz"),
        include_bytes!("../../sample/train-labels-idx1-ubyte.gz"),
    );
    let test = read(
        include_bytes!("../../sample/t10k-images-idx3-ubyte.gz"),
        include_bytes!("../../sample/t10k-labels-idx1-ubyte.gz"),
    );
    (train, test)
}

fn read(images: &[u8], labels: &[u8]) -> ImageSet {
    let path = Path::new("bundled sample");
    let set = files::decompress(path, images.to_vec()).and_then(|bytes| idx::images(path, &bytes));
    let labels =
        files::decompress(path, labels.to_vec()).and_then(|bytes| idx::labels(path, &bytes));
    // The bytes are part of the binary, so only a damaged build could fail here.
    set.and_then(|set| set.with_labels(path, labels?))
        .expect("the bundled sample is intact")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_large_enough_and_balanced() {
        let (train, test) = load();
        for (set, least) in [(&train, 5_000), (&test, 1_000)] {
            set.check().unwrap();
            assert!(set.count >= least, "{} images", set.count);
            assert_eq!([set.height, set.width, set.channels], [28, 28, 1]);
            let labels = set.labels.as_ref().unwrap();
            let count = |class| labels.iter().filter(|&&label| label == class).count();
            let counts: Vec<_> = (0..10).map(count).collect();
            assert_eq!(counts, [set.count / 10; 10]);
        }
        train.check_same_size(&test).unwrap();
        assert!(LICENSE.contains("MIT"), "{LICENSE}");
    }
}
