//! Sets of a caller's own series.

use arbora_tasks::series::{Series, SeriesSet};

fn error(series: Vec<Series>, channels: usize, classes: &[&str]) -> String {
    let classes = classes.iter().map(ToString::to_string).collect();
    SeriesSet::from_series(series, channels, classes)
        .unwrap_err()
        .to_string()
}

fn series(values: &[f32], class: usize) -> Series {
    Series {
        values: values.to_vec(),
        class,
    }
}

#[test]
fn contradictory_series_are_refused() {
    let good = || series(&[1.0, 2.0], 0);
    let errors = [
        error(vec![], 2, &["a"]),
        error(vec![good()], 0, &["a"]),
        error(vec![good()], 2, &[]),
        error(vec![good(), series(&[1.0], 0)], 2, &["a"]),
        error(vec![series(&[], 0)], 2, &["a"]),
        error(vec![series(&[1.0, 2.0], 1)], 2, &["a"]),
        error(vec![series(&[1.0, 2.0, 3.0, f32::NAN], 0)], 2, &["a"]),
    ];
    let expected = [
        "series: expected at least 1, got 0",
        "channels: expected at least 1, got 0",
        "classes: expected at least 1, got 0",
        "values of series 1: expected a multiple of 2, at least one step, got 1",
        "values of series 0: expected a multiple of 2, at least one step, got 0",
        "class of series 0: expected below 1, got 1",
        "series 0, step 1, channel 1: expected a finite value, got NaN",
    ];
    assert_eq!(
        errors,
        expected.map(|message| format!("series set: {message}"))
    );
}
