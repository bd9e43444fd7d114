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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_complete_and_balanced() {
        let (train, test) = load();
        for set in [&train, &test] {
            assert_eq!((set.len(), set.channels()), (40, 6));
            assert_eq!(
                set.classes(),
                ["Standing", "Running", "Walking", "Badminton"]
            );
            for class in 0..4 {
                let series = set.series().iter().filter(|series| series.class == class);
                assert_eq!(series.count(), 10);
            }
            assert!(set.series().iter().all(|series| series.values.len() == 600));
        }
        // The first steps of the first two channels of the training file.
        let first = &train.series()[0].values;
        assert_eq!(
            [first[0], first[6], first[12]],
            [0.079106, 0.079106, -0.903497]
        );
        assert!(LICENSE.contains("BSD 3-Clause"), "{LICENSE}");
    }
}
