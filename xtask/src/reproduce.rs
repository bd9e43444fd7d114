//! `cargo xtask reproduce`: the tables of `docs/results`, by the experiments of `arbora compare`.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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

/// Fails when there is no such experiment, `arbora` does not compile, or a run fails.
pub fn run(args: &Args) -> Result<()> {
    let experiment = shell::root().join(experiment(&args.name));
    ensure!(experiment.is_file(), "{} is missing", experiment.display());
    let mut command = comparison(args);
    println!("{}", shell::shown(&command));
    let status = command.status().context("cannot start cargo")?;
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

/// The comparison that trains what is missing and writes the page, compiled in release.
fn comparison(args: &Args) -> Command {
    let Args { name, more } = args;
    let page = match name.as_str() {
        "lm" => "tree-coders",
        name => name,
    };
    let mut command = shell::cargo();
    command.args(["run", "--release", "--package", "arbora-cli"]);
    command.args(["--bin", "arbora", "--", "compare", &experiment(name)]);
    command.args(["--made-by", &format!("cargo xtask reproduce {name}")]);
    command.args(["--page", &format!("docs/results/{page}.md")]);
    command.args(["--readme", "README.md"]);
    if !more
        .iter()
        .any(|word| word.split('=').next() == Some("--out"))
    {
        command.args(["--out", &format!("runs/reproduce/{name}")]);
    }
    command.args(more);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_in_the_command_and_later_settings_win() {
        let shown = |name: &str, more: &str| {
            let more = more.split_whitespace().map(String::from).collect();
            let name = name.into();
            shell::shown(&comparison(&Args { name, more }))
        };
        let text = shown("lm", "--steps 7 --set batch_size=2 --out elsewhere");
        assert!(
            text.ends_with(
                "--page docs/results/tree-coders.md --readme README.md --steps 7 --set batch_size=2 --out elsewhere"
            ),
            "{text}"
        );
        let text = shown("images", "");
        let experiment = "arbora -- compare crates/arbora-cli/experiments/images.json --made-by";
        assert!(text.contains(experiment), "{text}");
        assert!(text.ends_with("--out runs/reproduce/images"), "{text}");
    }
}
