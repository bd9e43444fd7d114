//! Files of data.

use super::Reader;
use anyhow::Result;
use arbora::tasks::images::ImageSet;
use arbora::tasks::series::SeriesSet;
use arbora::tasks::text::{Corpus, Tokenizer};
use flate2::write::GzEncoder;
use flate2::{Compression, Crc};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use serde_json::json;
use std::io::{Cursor, Write as _};
use std::path::Path;

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Images and labels, plain and packed.
pub fn idx(_: &Path) -> Result<Reader> {
    let images = [
        &[0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5],
        &[7; 60][..],
    ]
    .concat();
    let labels = vec![0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3];
    let files = [
        ("images.gz", gzip(&images)?),
        ("labels.gz", gzip(&labels)?),
        // Packed after it was damaged.
        ("packed-images", images.clone()),
        ("images", images),
        ("labels", labels),
    ];
    let read = |folder: &Path, name: &str| {
        let (images, labels) = if name.ends_with(".gz") {
            ("images.gz", "labels.gz")
        } else if name == "packed-images" {
            ("packed-images", "labels")
        } else {
            ("images", "labels")
        };
        let set = ImageSet::from_idx(folder.join(images), Some(folder.join(labels)))?;
        set.check()?;
        set.image(set.count - 1)?;
        Ok(())
    };
    let mut reader = Reader::new(files, &["\u{1f}\u{8b}"], read);
    reader.mend = Some(|_, name, bytes| {
        let bytes = match name {
            "packed-images" => gzip(&bytes)?,
            _ => bytes,
        };
        Ok(vec![(name.into(), bytes)])
    });
    Ok(reader)
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// One picture in each folder: grey and coloured, with more depth and with alpha, as PNG and as JPEG.
pub fn images(_: &Path) -> Result<Reader> {
    let grey = GrayImage::from_fn(5, 4, |x, y| Luma([(40 * x + 7 * y) as u8]));
    let colour = RgbImage::from_fn(9, 8, |x, y| Rgb([(20 * x) as u8, (30 * y) as u8, 90]));
    let (grey, colour) = (DynamicImage::from(grey), DynamicImage::from(colour));
    let deep = DynamicImage::from(colour.to_rgba16());
    let files = [
        ("grey/a.png", encoded(&grey, ImageFormat::Png)?),
        ("colour/a.png", encoded(&colour, ImageFormat::Png)?),
        ("deep/a.png", encoded(&deep, ImageFormat::Png)?),
        ("photo/a.jpg", encoded(&colour, ImageFormat::Jpeg)?),
        ("scan/a.jpeg", encoded(&grey, ImageFormat::Jpeg)?),
    ];
    let words = &["IHDR", "PLTE", "IDAT", "tRNS", "IEND", "Exif", "JFIF"];
    let read = |folder: &Path, name: &str| {
        let folder = folder.join(name).with_file_name("");
        let (set, _) = ImageSet::from_folder(&folder, Some([4, 3]), None)?;
        set.check()?;
        Ok(())
    };
    let mut reader = Reader::new(files, words, read);
    reader.mend = Some(|_, name, mut bytes| {
        mend_chunks(&mut bytes);
        Ok(vec![(name.into(), bytes)])
    });
    Ok(reader)
}

/// Makes the checksums of a PNG's chunks agree with what is in them.
fn mend_chunks(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some([a, b, c, d]) = bytes.get(at..at + 4) {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let Some(end) = (at + 8)
            .checked_add(length)
            .filter(|end| end + 4 <= bytes.len())
        else {
            return;
        };
        let mut crc = Crc::new();
        crc.update(&bytes[at + 4..end]);
        let sum = crc.sum().to_be_bytes();
        bytes[end..end + 4].copy_from_slice(&sum);
        at = end + 4;
    }
}

/// Time series.
pub fn series(_: &Path) -> Result<Reader> {
    let text = "# about\n@problemName x\n@timestamps false\n@missing false\n@univariate false\n@dimensions 2\n\
        @equalLength false\n@classLabel true up down 3\n@data\n1,2,3:4.5,-5e-1,6:up\n7,8:9,10:down\n1:2:3\n";
    let one = "@univariate true\n@classLabel true a b\n@data\n1,2,3:a\n4,5,6:b\n";
    let files = [
        ("two.ts", text.as_bytes().to_vec()),
        ("one.ts", one.into()),
        ("packed.ts.gz", gzip(text.as_bytes())?),
    ];
    let words = &[
        "@data",
        "@classLabel",
        "@dimensions",
        "@timestamps true",
        "@missing",
        "?",
        ":",
        ",",
        "(",
        "inf",
        "1e39",
    ];
    Ok(Reader::new(files, words, |folder, name| {
        let set = SeriesSet::from_ts(folder.join(name))?;
        let _ = (set.steps(set.len() - 1), set.classes());
        Ok(())
    }))
}

/// A folder of text, cut into parts and encoded.
pub fn text(_: &Path) -> Result<Reader> {
    let long = "Call me Ishmael. Some years ago, never mind how long precisely.\r\n".repeat(3);
    let files = [
        ("texts/a.txt", long.as_bytes().to_vec()),
        ("texts/below/b.md", "# Überschrift\n\nein Wort 😀\n".into()),
        ("texts/c.txt", gzip(long.as_bytes())?),
    ];
    Ok(Reader::new(files, &["\u{2028}", "\u{301}"], |folder, _| {
        let corpus = Corpus::open(folder.join("texts"))?;
        let _ = corpus.sha256();
        // Too little text for two parts is refused by the sizes, which name no file.
        if let Ok((training, _)) = corpus.split(0.3) {
            for text in training.texts() {
                let tokenizer = Tokenizer::bytes();
                let tokens = tokenizer.encode(text)?;
                tokenizer.decode(&tokens.ids)?;
            }
        }
        Ok(())
    }))
}

/// A tokenizer of each kind of model, which encodes and decodes.
pub fn tokenizer(_: &Path) -> Result<Reader> {
    let text = "Call me Ishmael. Some years ago, never mind how long.";
    let trained = Tokenizer::train_bpe(300, [text, text].into_iter())?.to_json();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let symbols = ["<unk>", "▁", "a", "l", "▁a", "al"].map(String::from);
    let vocab = symbols.into_iter().chain(bytes);
    let vocab: serde_json::Map<_, _> = (vocab.enumerate())
        .map(|(at, symbol)| (symbol, json!(at)))
        .collect();
    let added = json!([{
        "id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    }]);
    let whole = |model, rest: serde_json::Value| {
        let mut whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": model
        });
        for (key, value) in rest.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        whole.to_string()
    };
    let fallback = whole(
        json!({
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocab, "merges": [["▁", "a"], ["a", "l"]]
        }),
        json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
            ]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            ]}
        }),
    );
    let words = whole(
        json!({"type": "WordLevel", "vocab": {"<unk>": 0, "call": 1, "me": 2}, "unk_token": "<unk>"}),
        json!({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}}),
    );
    let pieces = whole(
        json!({
            "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"<unk>": 0, "call": 1, "me": 2, "i": 3, "##s": 4, "##h": 5}
        }),
        json!({
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}
        }),
    );
    let metaspace = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true
    });
    let unigram = whole(
        json!({
            "type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["▁", -2.0], ["a", -3.0], ["ll", -4.5], ["▁me", -5.0]]
        }),
        json!({"pre_tokenizer": metaspace, "decoder": metaspace}),
    );
    let files = [
        ("bytes.json", Tokenizer::bytes().to_json()),
        ("trained.json", trained),
        ("fallback.json", fallback),
        ("words.json", words),
        ("pieces.json", pieces),
        ("unigram.json", unigram),
    ];
    let words = &[
        "\"type\"",
        "\"Regex\"",
        "(?=",
        "(a*)*b",
        "ByteLevel",
        "Precompiled",
    ];
    Ok(Reader::new(files, words, move |folder, name| {
        let tokenizer = Tokenizer::from_file(folder.join(name))?;
        // What a tokenizer refuses of a text is not about its file.
        if let Ok(tokens) = tokenizer.encode(text) {
            let _ = tokenizer.decode(&tokens.ids);
        }
        let most = tokenizer.vocabulary() as u32;
        let _ = tokenizer.decode(&[0, most / 2, most - 1]);
        Ok(())
    }))
}
