//! `cargo xtask reproduce lm`: the grid of `arbora compare lm`, as a results page.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Args, build, train};
use crate::page::{self, Machine};
use crate::shell;

/// Branching, height, blocks of a node and width. Up to 15 nodes: a tree of more needs a control of so many
/// parameters that it takes most of the time.
const TREES: [&str; 12] = [
    "2:1:1:16", "2:1:1:32", "2:1:2:32", "2:2:1:16", "2:2:1:32", "2:2:2:16", "2:3:1:16", "3:1:1:16",
    "3:1:1:32", "3:2:1:16", "4:1:1:16", "4:1:1:32",
];
const CORPORA: [&str; 2] = ["moby-dick", "data/sotu"];
const SEEDS: [u64; 3] = [0, 1, 2];
/// Settings of all runs. The page says how the learning rate was chosen.
pub const SETTINGS: [&str; 10] = [
    "data.window=64",
    "batch_size=16",
    "trainer.steps=300",
    "trainer.learning_rate=0.03",
    "trainer.final_learning_rate=0.0015",
    "trainer.warmup_steps=30",
    "trainer.eval_every=150",
    "trainer.checkpoint_every=300",
    "eval_items=64",
    "test_items=768",
];

/// Where the runs and the table of `arbora compare` lie, below the root of the workspace.
const RUNS: &str = "runs/reproduce/lm";
const PAGE: &str = "docs/results/tree-coders.md";
const GENERATOR: &str = "cargo xtask reproduce lm";

/// The start of the page, where there is none yet.
const START: &str = "\
# TreeCoders and their controls

A TreeCoder is a tree of transformer blocks. Each sequence takes one path from the root to a leaf, so a part of the
parameters is active. The publication ([arXiv 2411.07218](https://arxiv.org/abs/2411.07218)) reports that trees have
a lower loss than a linear transformer of equivalent size in 76 % of its cases. It does not say what equivalent
size is, nor which data, sizes, selectors and training these cases have. So its number is no target here, and both
sizes are compared:

- `linear-active`: a transformer with as many blocks as a path through the tree has, of the same width. It has the
  active parameters of the tree but for the selectors.
- `linear-total`: a transformer with as many blocks, and so much wider that it has as many parameters as the whole
  tree. Its compute per token grows with its width.
- `random-route` and `hash-route`: the same tree with the same selectors, which scale what a child adds and have no
  say in the decisions. Each sequence goes to a random leaf, anew every time, or to one by a hash of its first tokens.

All models of a case see the same sequences in the same order and predict the same tokens. The first tokens of a
sequence, which choose the route, are predicted by none. Text is split by documents into training and held-out text, and the
tokenizer is learned from the training part. Trees of the same active depth and width share their `linear-active` runs, so
cases are not independent of each other.

One learning rate serves all. It is the best of three for each of the five models, in a tree of 7 nodes of width 32 on
Moby-Dick, with 500 steps, a final rate of a twentieth and seed 0 (losses in nats per token on all held-out text):

| learning rate | tree-coder | linear-active | linear-total | random-route | hash-route |
|---|---|---|---|---|---|
| 0.012 | 3.984 | 3.958 | 3.887 | 3.979 | 3.979 |
| 0.02 | 3.918 | 3.904 | 3.854 | 3.915 | 3.915 |
| 0.03 | 3.895 | 3.884 | 3.852 | 3.893 | 3.891 |

```sh
arbora train lm --model MODEL --set data.window=64 --set batch_size=16 --set architecture.d_model=32 \\
  --set 'architecture.d_ff=[128]' --set trainer.steps=500 --set trainer.warmup_steps=50 --set trainer.learning_rate=RATE \\
  --set trainer.final_learning_rate=FINAL
```

The trees are small and the training is short. What holds here need not hold for large ones.
";

/// Runs the grid and writes its page.
///
/// # Errors
/// When a text is missing, a run fails or holds other settings than asked for, or the page cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let root = shell::root();
    if args.plan {
        println!(
            "{}",
            shell::shown(&command(Path::new("arbora"), args, &root))
        );
        println!("several processes share the runs with --shard 1/N to --shard N/N");
        return Ok(());
    }
    let addresses = root.join(CORPORA[1]);
    ensure!(
        addresses.is_dir(),
        "{} is missing: `cargo xtask data sotu` fetches it",
        CORPORA[1]
    );
    let program = match &args.program {
        Some(program) => std::path::absolute(program)
            .with_context(|| format!("cannot find {}", program.display()))?,
        None => build()?,
    };
    train(&mut command(&program, args, &root))?;

    let read = |name: &str| {
        let path = root.join(RUNS).join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut numbers: Value = serde_json::from_str(&read("compare.json")?)
        .with_context(|| format!("{RUNS}/compare.json is not JSON"))?;
    let missing = numbers["missing"].as_array().map_or(0, Vec::len);
    if missing > 0 && !args.partial {
        bail!("{missing} runs are not finished");
    }
    let (machine, date) = (Machine::this(), page::today()?);
    numbers["command"] = json!(asked(args));
    numbers["machine"] = json!(machine);
    numbers["date"] = json!(date);
    let path = root.join(PAGE);
    if !path.exists() {
        page::replace(&path, &page::with_room(START, GENERATOR))?;
    }
    let text = generated(&read("compare.md")?, &asked(args), &machine, &date);
    page::update(&path, GENERATOR, &text)?;
    let numbers = serde_json::to_string_pretty(&numbers)? + "\n";
    page::replace(&path.with_extension("json"), &numbers)?;
    println!("wrote {PAGE}");
    Ok(())
}

/// The generated part of the page: the table's own page without its heading.
fn generated(table: &str, command: &str, machine: &Machine, date: &str) -> String {
    let body = table.split_once('\n').map_or(table, |(_, body)| body);
    format!(
        "```sh\n{command}\n```\n\nTable made on {date} on {} with {} threads.\n\n{}",
        machine.cpu,
        machine.threads,
        body.trim()
    )
}

/// The comparison that trains what is missing and writes the table.
fn command(program: &Path, args: &Args, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root).args(["compare", "lm"]);
    command.args(["--trees", &TREES.join(",")]);
    command.args(["--corpora", &CORPORA.join(",")]);
    let seeds = match args.seeds.is_empty() {
        true => SEEDS.as_slice(),
        false => &args.seeds,
    };
    command.args(["--seeds", &joined(seeds)]);
    let steps = args.steps.map(|steps| format!("trainer.steps={steps}"));
    let settings = SETTINGS.into_iter().chain(steps.as_deref());
    for setting in settings.chain(args.settings.iter().map(String::as_str)) {
        command.args(["--set", setting]);
    }
    if args.only_table {
        command.arg("--only-table");
    }
    command.args(["--out", RUNS]);
    command
}

/// This task as it was called, less what changes no number.
fn asked(args: &Args) -> String {
    let mut asked = GENERATOR.to_string();
    if let Some(steps) = args.steps {
        asked += &format!(" --steps {steps}");
    }
    if !args.seeds.is_empty() {
        asked += &format!(" --seeds {}", joined(&args.seeds));
    }
    for setting in &args.settings {
        // Quoted for a shell: values may be JSON.
        asked += &format!(" --set '{setting}'");
    }
    asked
}

fn joined(seeds: &[u64]) -> String {
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    seeds.join(",")
}

#[cfg(test)]
mod tests {
    use super::super::What;
    use super::*;

    fn args() -> Args {
        Args {
            what: What::Grid,
            ..Args::of(super::super::experiments::Name::Images)
        }
    }

    #[test]
    fn the_grid_has_no_tree_twice_and_its_settings_are_some() {
        let trees: std::collections::BTreeSet<&str> = TREES.into();
        assert_eq!(trees.len(), TREES.len());
        for setting in SETTINGS {
            super::super::runs::setting(setting).unwrap();
        }
    }

    #[test]
    fn what_was_asked_is_in_the_command_and_later_settings_win() {
        let args = Args {
            steps: Some(7),
            seeds: vec![4, 5],
            settings: vec!["batch_size=2".into()],
            only_table: true,
            ..args()
        };
        let shown = shell::shown(&command(Path::new("arbora"), &args, Path::new(".")));
        assert!(shown.contains("--seeds 4,5"), "{shown}");
        let at = |text: &str| {
            shown
                .find(text)
                .unwrap_or_else(|| panic!("{text}: {shown}"))
        };
        assert!(at("trainer.steps=300") < at("trainer.steps=7"));
        assert!(at("batch_size=16") < at("batch_size=2"));
        assert!(
            shown.ends_with("--only-table --out runs/reproduce/lm"),
            "{shown}"
        );
        assert_eq!(
            asked(&args),
            "cargo xtask reproduce lm --steps 7 --seeds 4,5 --set 'batch_size=2'"
        );
    }

    #[test]
    fn the_page_takes_the_table_without_its_heading() {
        let machine = Machine {
            cpu: "some CPU".into(),
            threads: 2,
        };
        let text = generated("# Heading\n\n| a |\n", "command", &machine, "2026-01-01");
        assert!(text.ends_with("2 threads.\n\n| a |"), "{text}");
        assert!(text.starts_with("```sh\ncommand\n```\n"), "{text}");
    }
}
