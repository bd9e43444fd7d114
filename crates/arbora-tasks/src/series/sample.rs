//! The bundled sample: BasicMotions of the UEA archive, 40 training and 40 test series of 6 channels
//! and 100 steps, four activities recorded with a smart watch.
//!
//! From the package aeon, under the BSD 3-clause licence ([`LICENSE`]). See Bagnall and others,
//! [The UEA multivariate time series classification archive](https://arxiv.org/abs/1811.00075), 2018.

use std::path::Path;

use super::{SeriesSet, ts};
use crate::files;

/// The licence and origin of the sample, to show wherever it is redistributed.
pub const LICENSE: &str = include_str!("../../sample/basic-motions/NOTICE");

/// The training and the test series.
pub(super) fn load() -> (SeriesSet, SeriesSet) {
    (
        read(include_bytes!(
            "../../sample/basic-motions/BasicMotions_TRAIN.ts.gz"
        )),
        read(include_bytes!(
            "../../sample/basic-motions/BasicMotions_TEST.ts.gz"
        )),
    )
}

fn read(bytes: &[u8]) -> SeriesSet {
    let path = Path::new("bundled sample");
    // The bytes are part of the binary, so only a damaged build could fail here.
    files::decompress(path, bytes.to_vec())
        .and_then(|bytes| ts::parse(path, &bytes))
        .expect("the bundled sample is intact")
}
