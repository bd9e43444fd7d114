//! Documents, and where they come from.

use std::fs;
use std::path::Path;

use arbora_tasks::text::{Corpus, Document};
use proptest::prelude::*;

fn corpus(texts: &[&str]) -> Corpus {
    let documents = texts.iter().enumerate().map(|(at, text)| Document {
        name: at.to_string(),
        text: text.to_string(),
    });
    Corpus::from_documents(documents.collect()).unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_folder_is_read_in_the_order_of_its_paths() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.txt", b"two\r\nlines\r");
    write(folder.path(), "a/z.MD", b"first");
    write(folder.path(), "a/deeper/x.txt", "é".as_bytes());
    write(folder.path(), "a/picture.png", b"\xff\xfe");
    write(folder.path(), "empty.txt", b"");
    write(folder.path(), "._b.txt", b"\0\x05\x16\x07\xff");
    write(folder.path(), ".git/notes.txt", b"hidden");
    let corpus = Corpus::open(folder.path()).unwrap();
    let pairs = |document: &Document| (document.name.clone(), document.text.clone());
    let found: Vec<_> = corpus.documents().iter().map(pairs).collect();
    let expected = [
        ("a/deeper/x.txt", "é"),
        ("a/z.MD", "first"),
        ("b.txt", "two\nlines\r"),
    ];
    assert_eq!(
        found,
        expected.map(|(name, text)| (name.to_string(), text.to_string()))
    );
    let one = Corpus::open(folder.path().join("b.txt")).unwrap();
    assert_eq!(one.documents(), &corpus.documents()[2..]);
}

#[test]
fn a_byte_order_mark_is_no_character_of_a_document() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.txt", "\u{feff}one".as_bytes());
    write(folder.path(), "b.txt", "\u{feff}".as_bytes());
    let corpus = Corpus::open(folder.path()).unwrap();
    assert_eq!(corpus.texts().collect::<Vec<_>>(), ["one"]);
    assert_eq!(corpus.sha256(), self::corpus(&["one"]).sha256());
}

#[test]
fn damaged_missing_and_empty_sources_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let error = |name: &str| Corpus::open(path.join(name)).unwrap_err().to_string();
    write(path, "bad.txt", b"ab\xc3\xa9\xffz");
    assert!(
        error("bad.txt").ends_with("bad.txt: expected UTF-8 text, got the byte 0xff at position 4"),
        "{}",
        error("bad.txt")
    );
    assert!(error("none").contains("none: cannot be read"));
    write(path, "other/data.bin", b"1");
    assert!(error("other").contains("expected files that end with .txt or .md"));
    write(path, "hidden/.a.txt", b"1");
    assert!(error("hidden").contains("hidden: expected files that end with .txt or .md"));
    write(path, "wide.txt", b"\xff\xfea\0");
    assert!(error("wide.txt").contains("wide.txt: expected UTF-8 text, got UTF-16"));
    write(path, "void/a.txt", b"");
    assert!(error("void").ends_with("void: expected text, got 1 documents without a character"));
}

#[test]
fn a_digest_tells_texts_and_borders_apart_and_no_names() {
    let digest = |texts: &[&str]| corpus(texts).sha256();
    assert_eq!(digest(&["ab", "c"]).len(), 64);
    for other in [&["abc"][..], &["a", "bc"], &["c", "ab"], &["ab", "d"]] {
        assert_ne!(digest(other), digest(&["ab", "c"]), "{other:?}");
    }
    let mut renamed = corpus(&["ab", "c"]).documents().to_vec();
    renamed[0].name = "another".into();
    let renamed = Corpus::from_documents(renamed).unwrap();
    assert_eq!(renamed.sha256(), digest(&["ab", "c"]));
}

#[test]
fn ten_documents_are_split_whole_from_the_end() {
    let texts: Vec<String> = (0..10).map(|at| at.to_string().repeat(10)).collect();
    let corpus = corpus(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let lengths = |share| {
        let (train, validation) = corpus.split(share).unwrap();
        assert_eq!(
            [train.documents(), validation.documents()].concat(),
            corpus.documents()
        );
        (train.documents().len(), validation.documents().len())
    };
    assert_eq!(lengths(0.1), (9, 1));
    assert_eq!(lengths(0.101), (8, 2));
    assert_eq!(lengths(0.999), (1, 9));
}

#[test]
fn few_documents_are_cut_before_white_space() {
    let (train, validation) = corpus(&["one two three four", "wörter"])
        .split(0.5)
        .unwrap();
    assert_eq!(train.texts().collect::<Vec<_>>(), ["one two three", "wö"]);
    assert_eq!(validation.texts().collect::<Vec<_>>(), [" four", "rter"]);
    for share in [0.0, 1.0, -0.1, f64::NAN] {
        let error = corpus(&["abc"]).split(share).unwrap_err().to_string();
        assert!(
            error.starts_with("validation: expected more than 0 and less than 1"),
            "{error}"
        );
    }
    let error = corpus(&["a"]).split(0.5).unwrap_err().to_string();
    assert!(
        error.contains("part of 1 bytes in 1 documents is empty"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_character_is_lost_or_doubled_by_a_cut(text in ".{2,80}", share in 0.01f64..0.99) {
        // A part may be left without a character.
        if let Ok((train, validation)) = corpus(&[&text]).split(share) {
            let parts: Vec<&str> = train.texts().chain(validation.texts()).collect();
            prop_assert!(parts[0].len() >= (text.len() as f64 * (1.0 - share)) as usize);
            prop_assert_eq!(parts.concat(), text);
        }
    }
}
