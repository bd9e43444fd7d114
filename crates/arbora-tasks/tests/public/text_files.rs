//! Files of text that may be compressed, begin with a byte order mark or be UTF-16.

use std::io::Write as _;

use arbora_tasks::text::read_text;
use flate2::{Compression, write::GzEncoder};

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        read_text(&path)
    };
    let marked = "\u{feff}one\u{feff}".as_bytes();
    // Only the first: behind another character it is one of the text.
    assert_eq!(read(marked).unwrap(), "one\u{feff}");
    assert_eq!(read(&packed(marked)).unwrap(), "one\u{feff}");
    assert_eq!(read(b"\xef\xbb\xbf").unwrap(), "");
    let error = read(b"\xef\xbb\xbfab\xff").unwrap_err().to_string();
    assert!(
        error.ends_with("got the byte 0xff at position 5"),
        "{error}"
    );
}

#[test]
fn utf_16_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    for bytes in [&b"\xff\xfeh\0i\0"[..], b"\xfe\xff\0h\0i"] {
        std::fs::write(&path, bytes).unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        let expected = "a.txt: expected UTF-8 text, got UTF-16; save it as UTF-8";
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn a_small_stream_that_unpacks_to_very_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zeros.gz");
    let zeros = vec![0; 1 << 28];
    std::fs::write(&path, packed(&zeros)).unwrap();
    assert_eq!(read_text(&path).unwrap().len(), zeros.len());
    // It is not read to its end, which is none.
    let more = [packed(&zeros), packed(b"12"), b"no stream".to_vec()].concat();
    std::fs::write(&path, more).unwrap();
    let error = read_text(&path).unwrap_err().to_string();
    assert!(
        error.contains("zeros.gz: the gzip stream unpacks to more"),
        "{error}"
    );
}
