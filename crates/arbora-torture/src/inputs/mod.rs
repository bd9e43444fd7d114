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
use anyhow::{Context as _, Result};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::path::Path;

/// What is tried.
pub const TARGETS: [Target; 16] = [
    target("idx", |folder| begin(folder, data::idx)),
    target("images", |folder| begin(folder, data::images)),
    target("ts", |folder| begin(folder, data::series)),
    target("text", |folder| begin(folder, data::text)),
    target("tokenizer", |folder| begin(folder, data::tokenizer)),
    target("config", |folder| begin(folder, runs::settings)),
    target("config-begun", |folder| begin(folder, runs::begun)),
    target("config-layer", |folder| begin(folder, runs::layer)),
    target("metrics", |folder| begin(folder, runs::log)),
    target("records", |folder| begin(folder, runs::records)),
    target("checkpoint", |folder| begin(folder, runs::checkpoint)),
    target("burnpack", |folder| begin(folder, models::burnpack)),
    target("safetensors", |folder| begin(folder, models::safetensors)),
    target("index", |folder| begin(folder, models::index)),
    target("placement", |folder| begin(folder, runs::placement)),
    target("experiment", |folder| begin(folder, runs::experiment)),
];

const fn target(name: &'static str, begin: fn(&Path) -> Result<Tries>) -> Target {
    Target { name, begin }
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

fn begin(folder: &Path, reader: fn(&Path) -> Result<Reader>) -> Result<Tries> {
    let made = folder.join("made");
    fs::create_dir(&made)?;
    let mut reader = reader(&made)?;
    let folder = folder.join("input");
    let write = |(name, bytes): &(String, Vec<u8>)| -> Result<()> {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().context("it is in a folder")?)?;
        Ok(fs::write(path, bytes)?)
    };
    reader.files.iter().try_for_each(write)?;
    for (name, _) in &reader.files {
        let whole = (reader.read)(&folder, name);
        whole.with_context(|| format!("{name} is whole and is refused"))?;
    }
    reader.files.iter().try_for_each(write)?;
    let mut damaged: Vec<String> = Vec::new();
    Ok(Tries::drawn(move |rng| {
        let failed = |error: anyhow::Error| format!("the harness fails: {error:#}");
        // A try that panicked has left its files.
        for name in damaged.drain(..) {
            let whole = reader.files.iter().find(|(whole, _)| *whole == name);
            whole.map_or(Ok(()), |whole| {
                fs::write(folder.join(&whole.0), &whole.1).map_err(|error| failed(error.into()))
            })?;
        }
        let (name, whole) = &reader.files[rng.random_range(0..reader.files.len())];
        let (_, other) = &reader.files[rng.random_range(0..reader.files.len())];
        let bytes = damage(whole, other, reader.words, rng);
        let changed = match reader.mend.filter(|_| rng.random_range(0..8) > 0) {
            None => vec![(name.clone(), bytes)],
            Some(mend) => mend(&folder, name, bytes).map_err(failed)?,
        };
        for (name, bytes) in &changed {
            fs::write(folder.join(name), bytes).map_err(|error| failed(error.into()))?;
        }
        damaged = changed.into_iter().map(|(name, _)| name).collect();
        match (reader.read)(&folder, name) {
            Ok(()) => Ok(()),
            Err(error) => told(&format!("{error:#}"), &folder, name),
        }
    }))
}

fn damage(whole: &[u8], other: &[u8], words: &[&str], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let is_json = matches!(whole.first(), Some(b'{' | b'['));
    if is_json && rng.random_range(0..4) > 0 {
        mutate::json(whole, rng)
    } else {
        mutate::bytes(whole, other, words, rng)
    }
}

/// Whether a message says which file it is about. That it is one line, the command line sees to.
fn told(message: &str, folder: &Path, name: &str) -> Result<(), String> {
    if message.contains(&*folder.to_string_lossy()) || message.contains(name) {
        Ok(())
    } else {
        Err(format!("is refused without its name: {message}"))
    }
}
