//! Files of the `.ts` format.

use std::io::Write;

use arbora_tasks::TaskError;
use arbora_tasks::series::SeriesSet;

const HEADER: &str = "# a comment\n@problemName Toy\n@timestamps false\n@missing false\n\
                      @univariate false\n@dimensions 2\n@equalLength false\n\
                      @classLabel true left right\n@data\n";

fn read(text: &[u8]) -> Result<SeriesSet, TaskError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.ts");
    std::fs::write(&path, text).unwrap();
    SeriesSet::from_ts(&path)
}

fn rows(rows: &str) -> Result<SeriesSet, TaskError> {
    read(format!("{HEADER}{rows}").as_bytes())
}

/// What is said, without the folder of the file.
fn message(result: Result<SeriesSet, TaskError>) -> String {
    let message = result.unwrap_err().to_string();
    let at = message.find("toy.ts").expect("the file is named");
    message[at..].to_owned()
}

/// What is read and what is said of it, a line each.
fn table(cases: &str) -> impl Iterator<Item = (&str, &str)> {
    cases
        .lines()
        .map(|case| case.trim().split_once(" => ").unwrap())
}

#[test]
fn series_of_different_lengths_are_read_step_by_step() {
    let set = rows("1, 2,3:4,5,-6.5e-1:right\r\n\n7:8: left \n").unwrap();
    assert_eq!((set.len(), set.channels()), (2, 2));
    assert_eq!(set.classes(), ["left", "right"]);
    assert_eq!(set.series()[0].values, [1.0, 4.0, 2.0, 5.0, 3.0, -0.65]);
    assert_eq!(set.series()[0].class, 1);
    assert_eq!(set.series()[1].values, [7.0, 8.0]);
    assert_eq!(set.series()[1].class, 0);
    assert_eq!((set.steps(0), set.steps(1)), (3, 1));
}

#[test]
fn files_with_and_without_gzip_read_alike_and_missing_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{HEADER}1,2:3,4:left\n");
    let (plain, packed) = (folder.path().join("a.ts"), folder.path().join("a.ts.gz"));
    std::fs::write(&plain, &text).unwrap();
    let file = std::fs::File::create(&packed).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
    let set = SeriesSet::from_ts(&plain).unwrap();
    assert_eq!(set, SeriesSet::from_ts(&packed).unwrap());
    let absent = folder.path().join("absent.ts");
    assert!(matches!(
        SeriesSet::from_ts(&absent).unwrap_err(),
        TaskError::Read { path, .. } if path == absent
    ));
}

#[test]
fn comments_need_not_be_text_but_rows_do() {
    let header = HEADER.replace("a comment", "caf");
    let text = |row: &[u8]| [b"#caf\xe9\n", header.as_bytes(), row].concat();
    assert_eq!(read(&text(b"1:2:left")).unwrap().len(), 1);
    assert_eq!(
        message(read(&text(b"1:2:lef\xe9"))),
        "toy.ts:11: not text: the line is not UTF-8"
    );
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_header() {
    let text = "@classLabel true left\n@data\n1:2:left\n";
    let marked = format!("\u{feff}{text}");
    assert_eq!(
        read(marked.as_bytes()).unwrap(),
        read(text.as_bytes()).unwrap()
    );
    assert_eq!(
        message(read("\u{feff}1:2:left".as_bytes())),
        "toy.ts:1: expected `@data` before the first series"
    );
    assert!(message(read(b"\xff\xfe@\0")).contains("toy.ts: expected UTF-8 text, got UTF-16"));
}

#[test]
fn a_header_without_dimensions_takes_them_from_the_first_row() {
    let header = "@classLabel true a\n@data\n";
    let set = read(format!("{header}1:2:3:a").as_bytes()).unwrap();
    assert_eq!(set.channels(), 3);
    assert_eq!(
        message(read(format!("{header}1:2:3:a\n1:2:a").as_bytes())),
        "toy.ts:4: expected 3 channels and a class, got 2 channels"
    );
    assert_eq!(
        message(read(format!("@univariate true\n{header}1:2:a").as_bytes())),
        "toy.ts:4: expected 1 channels and a class, got 2 channels"
    );
}

#[test]
fn damaged_rows_are_refused_with_their_line() {
    let good = "1,2:3,4:left\n";
    let cases = "\
        1,?:3,4:left => channel 0, step 1: the value is missing (`?`)
        1,2:NaN,4:left => channel 1, step 0: the value is missing (`NaN`)
        1,inf:3,4:left => channel 0, step 1: `inf` is not finite in 32 bits
        1,2:3,1e39:left => channel 1, step 1: `1e39` is not finite in 32 bits
        1,two:3,4:left => channel 0, step 1: expected a number, got `two`
        1,:3,4:left => channel 0, step 1: expected a number, got ``
        1,2:3:left => channel 1: expected 2 steps as in channel 0, got 1
        1,2:left => expected 2 channels and a class, got 1 channels
        1,2:3,4:5,6:left => expected 2 channels and a class, got 3 channels
        left => expected 2 channels and a class, got 0 channels
        1,2:3,4:up => expected one of the classes left, right, got `up`
        1,2:3,4: => expected one of the classes left, right, got ``
        @data => expected a series after `@data`, got the header line `@data`";
    for (row, expected) in table(cases) {
        assert_eq!(
            message(rows(&format!("{good}{row}\n{good}"))),
            format!("toy.ts:11: {expected}"),
        );
    }
}

#[test]
fn sets_without_classes_or_series_are_refused() {
    let none = "there are no classes: expected a header line `@classLabel true` and their names";
    for header in ["@targetlabel true", "@classLabel false", "@classLabel true"] {
        assert_eq!(
            message(read(format!("{header}\n@data\n1:2\n").as_bytes())),
            format!("toy.ts:2: {none}")
        );
    }
    let empty = "there are no series: expected `@data` and at least one row";
    assert_eq!(message(read(b"")), format!("toy.ts:1: {empty}"));
    assert_eq!(message(rows("")), format!("toy.ts:9: {empty}"));
    assert_eq!(
        message(read(b"@classLabel true a\n1:a\n")),
        "toy.ts:2: expected `@data` before the first series"
    );
}

#[test]
fn headers_that_mean_something_else_are_refused() {
    let cases = "\
        @timeStamps true => @timeStamps: expected false: values without time stamps, got `true`
        @dimensions 0 => @dimensions: expected a number above 0, got `0`
        @univariate maybe => @univariate: expected true or false, got `maybe`
        @classLabel true a b a => @classLabel: expected each class once, got `a`";
    for (header, expected) in table(cases) {
        let got = message(read(header.as_bytes()));
        assert_eq!(got, format!("toy.ts:1: {expected}"));
    }
}
