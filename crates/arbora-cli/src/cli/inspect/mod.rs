//! `arbora inspect`: from a run to its pictures.

mod language;
mod retrieval;
mod sequence;
mod walk;

use super::{InspectArgs, show};
use crate::atomic_file;
use crate::families::curves::panels;
use crate::families::{AnyTask, Family, Finished};
use crate::folder_lock::with_folder_lock;
use crate::picture::curves::{self, Panel};
use crate::run::{TrainedRun, config_of, task_of};
use crate::settings::refuse_within_data;
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
    let inspect = match task_of(&args.run) {
        AnyTask::Language(_) => language::inspect,
        AnyTask::Sequence(_) => sequence::inspect,
        AnyTask::Retrieval(_) => retrieval::inspect,
    };
    is_folder(&out)?;
    let mut seen = inspect(&args, &out)?;
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    with_folder_lock(&out, || seen.write(&args.run, &out))?;
    show(&match (args.json, seen.is_bare) {
        (true, _) => seen.numbers.to_string(),
        (false, true) => format!("{} in {}", seen.text, out.display()),
        (false, false) => format!("{}\npictures and numbers: {}", seen.text, out.display()),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Draws a picture into the files of a path without its ending.
type Draw = Box<dyn Fn(&Path) -> Result<()>>;
/// By name.
type Pictures = Vec<(&'static str, Draw)>;

/// The settings of a run, and its curves.
fn begin<F: Family>(args: &InspectArgs, out: &Path) -> Result<(F, Pictures)> {
    let config = config_of::<F>(&args.run)?;
    refuse_within_data(&config, out, "--out")?;
    let curves = panels(&[Finished {
        name: config.common().model,
        folder: &args.run,
        config: &config,
        model: None,
    }])?;
    Ok((config, vec![lines("curves", curves)]))
}

/// Panels as a picture.
fn lines(name: &'static str, panels: Vec<Panel>) -> (&'static str, Draw) {
    (name, Box::new(move |path| curves::draw(&panels, path)))
}

/// The run with its data, which may have moved.
fn load<F: Family>(args: &InspectArgs, out: &Path) -> Result<TrainedRun<F>> {
    let run = TrainedRun::<F>::load(&args.run, args.backend.as_deref(), &args.data.moved)?;
    refuse_within_data(&run.config, out, "--out")?;
    Ok(run)
}

/// What there is to see of a run.
struct Seen {
    pictures: Pictures,
    /// For a program.
    numbers: Value,
    /// For a person.
    text: String,
    /// Whether the pictures say all, and no file of numbers is to stand beside them.
    is_bare: bool,
}

impl Seen {
    /// Writes pictures and numbers into a folder; the numbers say where.
    fn write(&mut self, run: &Path, out: &Path) -> Result<()> {
        for (name, draw) in &self.pictures {
            draw(&out.join(name))?;
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
