//! `cargo xtask ci`: every check of a change, cheapest first.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::backend::Backend;
use crate::provision::{self, Environment};
use crate::shell::{cargo, run as run_command, shown};
use crate::test_all_backends::selection;
use crate::workspace::{self, Package};

/// Every check of a change, cheapest first. Stops at the first failure.
#[derive(clap::Args)]
pub struct Args {
    /// Say which steps there are, and run none.
    #[arg(long)]
    list: bool,
}

struct Step {
    name: String,
    task: Task,
}

enum Task {
    Provision,
    Cargo(Box<Command>),
    /// A task of this program.
    Own(&'static str),
}

/// Runs the steps up to the first that fails.
pub fn run(args: &Args) -> Result<()> {
    let steps = steps()?;
    if args.list {
        for step in &steps {
            match &step.task {
                Task::Cargo(command) => println!("{:<28} {}", step.name, shown(command)),
                Task::Provision | Task::Own(_) => println!("{}", step.name),
            }
        }
        return Ok(());
    }
    let mut environment = Environment::default();
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut result = Ok(());
    for step in steps {
        println!("\n==> {}", step.name);
        let start = Instant::now();
        result = step.task.run(&mut environment);
        times.push((step.name, start.elapsed()));
        if result.is_err() {
            break;
        }
    }
    times.push(("total".into(), begun.elapsed()));
    println!("\n{:<28} seconds", "step");
    for (name, time) in times {
        println!("{name:<28} {:>7.0}", time.as_secs_f64());
    }
    result
}

impl Task {
    fn run(self, environment: &mut Environment) -> Result<()> {
        match self {
            Self::Provision => Backend::TESTED
                .iter()
                .try_for_each(|&one| provision::provide(one, environment)),
            Self::Cargo(mut command) => run_command(environment.apply(&mut command)),
            Self::Own(name) => crate::Task::named(name).run(),
        }
    }
}

fn steps() -> Result<Vec<Step>> {
    let mut libraries = workspace::packages()?;
    libraries.retain(Package::published);
    // One selection for clippy, the tests and the suites: what one compiled, the next one reuses.
    let everything = &selection(&Backend::TESTED)?[..];
    let mut steps = Vec::new();
    let mut step = |name: &str, task: Task| {
        let name = name.to_string();
        steps.push(Step { name, task });
    };

    step("format", command("fmt --all --check", &[], None));
    // Before anything compiles libtorch's bindings, which would download their own otherwise.
    step("provision", Task::Provision);
    let bare = "check --package arbora-tree --no-default-features";
    step("no_std, no burn", command(bare, &[], None));
    let strict = ["--", "-D", "warnings"].map(String::from);
    let clippy = [everything, &strict].concat();
    step("clippy", command("clippy --all-targets", &clippy, None));
    let strict = Some(("RUSTDOCFLAGS", "-D warnings"));
    step("docs", command("doc --no-deps", everything, strict));
    step("libraries, no backend", check(&libraries, &[], None));
    // Compiled together elsewhere, but a user has one of them.
    for backend in Backend::TESTED {
        let name = format!("{} alone", backend.name());
        step(&name, check(&libraries, &[backend], None));
    }
    // At once, as each of them alone rebuilds burn; `tidy` has a test that what holds for wgpu holds for them.
    // Build steps of some download toolchains that may be out of reach, but not for docs.rs: the code is checked, not linked.
    let others = check(&libraries, &Backend::PASSED_THROUGH, Some(("DOCS_RS", "1")));
    step("other backends", others);
    let flex = Some(("BURN_DEVICE", "flex"));
    step("tests on flex", command("test", everything, flex));
    step("a program of a user", Task::Own("outside"));
    step("torture, three minutes", Task::Own("torture"));
    step("suite on every backend", Task::Own("test-all-backends"));
    Ok(steps)
}

/// A call of cargo: words without spaces, more words, and a variable of its environment.
fn command(words: &str, more: &[String], variable: Option<(&str, &str)>) -> Task {
    let mut command = cargo();
    command.args(words.split(' ')).args(more).envs(variable);
    Task::Cargo(Box::new(command))
}

/// Checks the crates that a user can embed: with backends and the command line, or with neither. Here the command line is
/// without `remote`, as it is by default.
fn check(libraries: &[Package], backends: &[Backend], variable: Option<(&str, &str)>) -> Task {
    let mut more = Vec::new();
    for library in libraries {
        more.extend(["--package".into(), library.name.clone()]);
    }
    if backends.is_empty() {
        // What operators are given only backends use: without any the compiler warns of it.
        return command("check --no-default-features", &more, variable);
    }
    let features = workspace::features(libraries, backends);
    more.extend(["--features".into(), features]);
    more.extend(["--", "-D", "warnings"].map(String::from));
    command("clippy --no-default-features", &more, variable)
}
