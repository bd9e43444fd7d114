//! Damaged files for every reader.
//!
//! A try damages one file of a folder that is otherwise whole, and reads it as Arbora does. The reader takes it, or says what
//! is wrong with the name of the file or of its folder. Checksums are mended after most damage, so that what is behind
//! them is read.

mod data;
mod models;
mod mutate;
mod runs;

use crate::frame::{Target, Tries};
use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::path::Path;

/// Makes a reader, with a folder to make its files in.
type Make = fn(&Path) -> Result<Reader>;

/// What is tried.
pub fn targets() -> Vec<Target> {
    let readers: [(&'static str, Make); 16] = [
        ("idx", data::idx),
        ("images", data::images),
        ("ts", data::series),
        ("text", data::text),
        ("tokenizer", data::tokenizer),
        ("config", runs::settings),
        ("config-begun", runs::begun),
        ("config-layer", runs::layer),
        ("metrics", runs::log),
        ("records", runs::records),
        ("checkpoint", runs::checkpoint),
        ("burnpack", models::burnpack),
        ("safetensors", models::safetensors),
        ("index", models::index),
        ("placement", runs::placement),
        ("experiment", runs::experiment),
    ];
    let target = |(name, make)| Target::new(name, move |folder| begin(folder, make));
    readers.map(target).into()
}

/// A reader, and what it reads.
struct Reader {
    /// Files by their names in the reader's folder, whole.
    files: Vec<(String, Vec<u8>)>,
    /// Words of the format.
    words: &'static [&'static str],
    /// Mends checksums after damage to a file of this name.
    mend: Option<Mend>,
    /// Reads what is in the folder.
    read: Read,
}

/// Reads the file of a name in a folder.
type Read = Box<dyn FnMut(&Path, &str) -> Result<()>>;
/// The bytes of a damaged file with checksums that agree, and further files that change with it.
type Mend = fn(&Path, &str, Vec<u8>) -> Result<Vec<(String, Vec<u8>)>>;

impl Reader {
    fn new(
        files: impl IntoIterator<Item = (impl Into<String>, impl Into<Vec<u8>>)>,
        words: &'static [&'static str],
        read: impl FnMut(&Path, &str) -> Result<()> + 'static,
    ) -> Self {
        let files = files.into_iter();
        Self {
            files: files
                .map(|(name, bytes)| (name.into(), bytes.into()))
                .collect(),
            words,
            mend: None,
            read: Box::new(read),
        }
    }
}

fn begin(folder: &Path, make: Make) -> Result<Tries> {
    let made = folder.join("made");
    fs::create_dir(&made)?;
    let mut reader = make(&made)?;
    let folder = folder.join("input");
    write(&folder, &reader.files)?;
    for (name, _) in &reader.files {
        let whole = (reader.read)(&folder, name);
        whole.with_context(|| format!("{name} is whole and is refused"))?;
    }
    Ok(Tries::drawn(move |rng| {
        let failed = "the harness fails";
        // The try before has left its damage.
        write(&folder, &reader.files).context(failed)?;
        let (name, whole) = &reader.files[rng.random_range(0..reader.files.len())];
        let (_, other) = &reader.files[rng.random_range(0..reader.files.len())];
        let bytes = damage(whole, other, reader.words, rng);
        let changed = match reader.mend.filter(|_| rng.random_range(0..8) > 0) {
            None => vec![(name.clone(), bytes)],
            Some(mend) => mend(&folder, name, bytes).context(failed)?,
        };
        write(&folder, &changed).context(failed)?;
        match (reader.read)(&folder, name) {
            Ok(()) => Ok(()),
            Err(error) => told(&error, &folder, name),
        }
    }))
}

/// Files by their names in a folder.
fn write(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().context("it is in a folder")?)?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

fn damage(whole: &[u8], other: &[u8], words: &[&str], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let is_json = matches!(whole.first(), Some(b'{' | b'['));
    if is_json && rng.random_range(0..4) > 0 {
        mutate::json(whole, rng)
    } else {
        mutate::bytes(whole, other, words, rng)
    }
}

/// Whether an error says which file it is about. That it is one line, the command line sees to.
fn told(error: &anyhow::Error, folder: &Path, name: &str) -> Result<()> {
    let message = format!("{error:#}");
    let is_named = message.contains(&*folder.to_string_lossy()) || message.contains(name);
    ensure!(is_named, "is refused without its name: {message}");
    Ok(())
}
