//! Tables of shares.

use super::{Colour, Drawn, refused};
use arbora_cli::picture::shares::{SharesPicture, SharesRow, draw};

/// The colours of shares of 0, a quarter, three quarters and 1.
const SHARES: [Colour; 4] = [[243; 3], [182, 205, 221], [61, 128, 178], [0, 90, 156]];

fn row(name: &str, shares: &[f64]) -> SharesRow {
    SharesRow {
        name: name.into(),
        shares: shares.to_vec(),
    }
}

fn picture(rows: Vec<SharesRow>) -> SharesPicture {
    SharesPicture {
        title: "documents".into(),
        columns: vec!["0".into(), "1".into()],
        rows,
    }
}

fn drawn(rows: Vec<SharesRow>) -> Drawn {
    Drawn::by(|name| draw(&picture(rows), name))
}

#[test]
fn every_share_has_a_cell_and_headings_have_none() {
    let rows = vec![
        row("held out", &[]),
        row("one", &[0.25, 0.75]),
        row("two", &[1.0, 0.0]),
    ];
    let drawn = drawn(rows);
    drawn.check("shares");
    let cells = SHARES.map(|colour| drawn.count("rect", colour));
    assert_eq!(cells, [1; 4]);
    for text in ["documents", "held out", "one", "25", "75", "100"] {
        assert!(drawn.says(text), "{text}");
    }
}

#[test]
fn larger_shares_are_darker() {
    let brightness = SHARES.map(|colour| colour.map(u32::from).iter().sum::<u32>());
    assert!(brightness.is_sorted_by(|one, other| one > other));
}

#[test]
fn rows_that_do_not_fit_are_refused_by_name() {
    for (shares, words) in [
        (vec![0.5], "row \"one\": expected 2 shares, got 1"),
        (
            vec![0.5, 1.5],
            "row \"one\": share: expected 0 to 1, got 1.5",
        ),
        (vec![f64::NAN, 1.0], "got NaN"),
    ] {
        let error = refused(|name| draw(&picture(vec![row("one", &shares)]), name));
        assert!(error.contains(words), "{error}");
    }
    refused(|name| draw(&SharesPicture::default(), name));
}
