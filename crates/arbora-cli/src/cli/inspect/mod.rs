//! `arbora inspect`: from a run to its pictures.

mod language;
mod retrieval;
mod walk;

use super::{InspectArgs, show};
use crate::alone::alone;
use crate::atomic_file;
use crate::families::AnyTask;
use crate::picture::curves::{self, Panel};
use crate::picture::retrieval::{self as path, RetrievalPicture};
use crate::picture::shares::{self, SharesPicture};
use crate::run::{refuse_others, task_of};
use anyhow::{Context as _, Result};
use arbora::rl::train::is_folder;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// The numbers of what was looked at, beside its pictures.
const NUMBERS: &str = "inspect.json";

pub fn run(args: InspectArgs) -> Result<ExitCode> {
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| args.run.join("inspect"));
    let task = task_of(&args.run);
    if !matches!(task, AnyTask::Language(_)) {
        refuse_others("inspect", &args.run)?;
    }
    is_folder(&out)?;
    let mut seen = match task {
        AnyTask::Language(_) => language::inspect(&args, &out)?,
        _ => retrieval::inspect(&args, &out)?,
    };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    alone(&out, || seen.write(&args.run, &out))?;
    show(&match (args.json, seen.is_bare) {
        (true, _) => seen.numbers.to_string(),
        (false, true) => format!("{} in {}", seen.text, out.display()),
        (false, false) => format!("{}\npictures and numbers: {}", seen.text, out.display()),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What there is to see of a run.
struct Seen {
    /// By name.
    pictures: Vec<(&'static str, Picture)>,
    /// For a program.
    numbers: Value,
    /// For a person.
    text: String,
    /// Whether the pictures say all, and no file of numbers is to stand beside them.
    is_bare: bool,
}

enum Picture {
    Curves(Vec<Panel>),
    Path(Box<RetrievalPicture>),
    Shares(SharesPicture),
}

impl Seen {
    /// Writes pictures and numbers into a folder; the numbers say where.
    fn write(&mut self, run: &Path, out: &Path) -> Result<()> {
        for (name, picture) in &self.pictures {
            let name = out.join(name);
            match picture {
                Picture::Curves(panels) => curves::draw(panels, &name)?,
                Picture::Path(picture) => path::draw(picture, &name)?,
                Picture::Shares(picture) => shares::draw(picture, &name)?,
            }
        }
        let names = || self.pictures.iter().map(|(name, _)| name);
        let files = ["svg", "png"]
            .iter()
            .flat_map(|format| names().map(move |name| format!("{name}.{format}")));
        let listed = (!self.is_bare).then(|| NUMBERS.to_owned());
        let files: Vec<String> = files.chain(listed).collect();
        self.numbers["run"] = json!(run.to_string_lossy());
        self.numbers["folder"] = json!(out.to_string_lossy());
        self.numbers["files"] = json!(files);
        if self.is_bare {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&self.numbers)? + "\n";
        atomic_file::write(&out.join(NUMBERS), text)
    }
}
