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
    let whole = |bytes: &[u8]| files::decompress(path, bytes.to_vec());
    // The bytes are part of the binary, so only a damaged build could fail here.
    whole(images)
        .and_then(|bytes| idx::images(path, &bytes))
        .and_then(|set| set.with_labels(path, &whole(labels)?))
        .expect("the bundled sample is intact")
}
