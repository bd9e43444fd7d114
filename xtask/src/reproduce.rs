//! `cargo xtask reproduce`: the tables of `docs/results`, by the experiments of `arbora compare`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::shell;

/// Train what is missing of a results table and write its page.
///
/// This is `arbora compare` with the file of an experiment, its page and a folder for its runs; what follows the name is
/// passed on (`arbora compare --help` lists it).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask reproduce images
  cargo xtask reproduce images --steps 2000 --set trainer.eval_every=500
  cargo xtask reproduce copy --plan
  cargo xtask reproduce copy --only-table
  cargo xtask reproduce lm --shard 1/2 --hours 3")]
pub struct Args {
    /// What to reproduce: the name of a file in crates/arbora-cli/experiments.
    name: String,
    /// More for `arbora compare`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

/// Runs the task.
///
/// # Errors
/// When there is no such experiment, `arbora` does not compile, or a run fails.
pub fn run(args: &Args) -> Result<()> {
    let experiment = shell::root().join(experiment(&args.name));
    ensure!(experiment.is_file(), "{} is missing", experiment.display());
    let mut command = comparison(&build()?, args);
    println!("{}", shell::shown(&command));
    let status = command.status().context("cannot start arbora")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(130) => bail!("stopped; call the same command again to continue"),
        _ => bail!("`{}` failed ({status})", shell::shown(&command)),
    }
}

/// The file of an experiment, below the root of the workspace.
fn experiment(name: &str) -> String {
    format!("crates/arbora-cli/experiments/{name}.json")
}

/// The comparison that trains what is missing and writes the page.
fn comparison(program: &Path, args: &Args) -> Command {
    let Args { name, more } = args;
    let page = match name.as_str() {
        "lm" => "tree-coders",
        name => name,
    };
    let mut command = Command::new(program);
    command.current_dir(shell::root());
    command.args(["compare", &experiment(name)]);
    command.args(["--made-by", &format!("cargo xtask reproduce {name}")]);
    command.args(["--page", &format!("docs/results/{page}.md")]);
    command.args(["--readme", "README.md"]);
    let out = more
        .iter()
        .any(|word| word.split('=').next() == Some("--out"));
    if !out {
        command.args(["--out", &format!("runs/reproduce/{name}")]);
    }
    command.args(more);
    command
}

/// Compiles the command line in release and returns where it is.
fn build() -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "arbora-cli",
        "--bin",
        "arbora",
    ]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    println!("compiling arbora");
    let output = cargo.stderr(std::process::Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    ensure!(output.status.success(), "arbora does not compile");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "arbora")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no program `arbora`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_in_the_command_and_later_settings_win() {
        let more = [
            "--steps",
            "7",
            "--set",
            "batch_size=2",
            "--out",
            "elsewhere",
        ];
        let args = |name: &str, more: &[&str]| Args {
            name: name.into(),
            more: more.iter().map(|word| (*word).into()).collect(),
        };
        let shown = |args: &Args| shell::shown(&comparison(Path::new("arbora"), args));
        let text = shown(&args("lm", &more));
        assert!(
            text.ends_with(
                "--page docs/results/tree-coders.md --readme README.md --steps 7 --set batch_size=2 --out elsewhere"
            ),
            "{text}"
        );
        let text = shown(&args("images", &[]));
        assert!(
            text.starts_with("arbora compare crates/arbora-cli/experiments/images.json --made-by")
        );
        assert!(text.ends_with("--out runs/reproduce/images"), "{text}");
    }
}
