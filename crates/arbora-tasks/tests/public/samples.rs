//! The bundled samples.

use arbora_tasks::images::{self, ImageSet};
use arbora_tasks::series::{self, SeriesSet};
use arbora_tasks::text::{self, Corpus};

#[test]
fn the_sample_is_large_enough_and_balanced() {
    let (train, test) = ImageSet::bundled();
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
    assert!(
        images::sample::LICENSE.contains("MIT"),
        "{}",
        images::sample::LICENSE
    );
}

#[test]
fn the_sample_is_complete_and_balanced() {
    let (train, test) = SeriesSet::bundled();
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
    assert!(
        series::sample::LICENSE.contains("BSD 3-Clause"),
        "{}",
        series::sample::LICENSE
    );
}

#[test]
fn the_book_is_whole() {
    let book = Corpus::moby_dick();
    let names: Vec<_> = book.documents().iter().map(|one| &one.name).collect();
    assert_eq!(names.len(), 138);
    assert_eq!(names[2], "CHAPTER 1. Loomings.");
    assert_eq!(names[136], "CHAPTER 135. The Chase.—Third Day.");
    let text = &book.documents()[2].text;
    assert!(text.contains("\n\nCall me Ishmael. Some years ago—never mind"));
    assert_eq!(book.bytes(), 1_216_278);
    assert!(
        text::sample::LICENSE.contains("Public Domain"),
        "{}",
        text::sample::LICENSE
    );
}
