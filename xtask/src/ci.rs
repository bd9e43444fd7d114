//! `cargo xtask ci`: every check of a change, cheapest first.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::backend::Backend;
use crate::provision::{self, Environment};
use crate::shell::{cargo, run as run_command, shown};
use crate::test_all_backends::{self, selection};
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
    Suite,
}

/// Runs the task.
///
/// # Errors
/// At the first step that fails.
pub fn run(args: &Args) -> Result<()> {
    let steps = steps()?;
    if args.list {
        for step in &steps {
            match &step.task {
                Task::Cargo(command) => println!("{:<28} {}", step.name, shown(command)),
                Task::Provision | Task::Suite => println!("{}", step.name),
            }
        }
        return Ok(());
    }
    let mut environment = Environment::default();
    let mut times: Vec<(String, Duration)> = Vec::new();
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
    println!("\n{:<28} seconds", "step");
    for (name, time) in &times {
        println!("{name:<28} {:>7.0}", time.as_secs_f64());
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("{:<28} {:>7.0}", "total", total.as_secs_f64());
    result
}

impl Task {
    fn run(self, environment: &mut Environment) -> Result<()> {
        match self {
            Self::Provision => Backend::TESTED
                .iter()
                .try_for_each(|&one| provision::provide(one, environment)),
            Self::Cargo(mut command) => run_command(environment.apply(&mut command)),
            Self::Suite => test_all_backends::run(&test_all_backends::Args {
                backends: Backend::TESTED.to_vec(),
                filter: None,
            }),
        }
    }
}

fn steps() -> Result<Vec<Step>> {
    let libraries = libraries()?;
    // One selection for clippy, the tests and the suites: what one compiled, the next one reuses.
    let everything = selection(&Backend::TESTED)?;
    let mut steps = Vec::new();
    let mut step = |name: &str, task: Task| {
        steps.push(Step {
            name: name.to_string(),
            task,
        })
    };

    step("format", command(&["fmt", "--all", "--check"], |_| {}));
    // Before anything compiles libtorch's bindings, which would download their own otherwise.
    step("provision", Task::Provision);
    step(
        "no_std, no burn",
        command(
            &["check", "--package", "arbora-tree", "--no-default-features"],
            |_| {},
        ),
    );
    step(
        "clippy",
        command(&["clippy", "--all-targets"], |cargo| {
            cargo.args(&everything).args(["--", "-D", "warnings"]);
        }),
    );
    step(
        "docs",
        command(&["doc", "--no-deps"], |cargo| {
            cargo.args(&everything).env("RUSTDOCFLAGS", "-D warnings");
        }),
    );
    step("libraries, no backend", check(&libraries, &[]));
    // Compiled together elsewhere, but a user has one of them.
    for backend in Backend::TESTED {
        step(
            &format!("{} alone", backend.name()),
            check(&libraries, &[backend]),
        );
    }
    // At once, as each of them alone rebuilds burn; `tidy` has a test that what holds for wgpu holds for them.
    step(
        "other backends",
        check(&libraries, &Backend::PASSED_THROUGH),
    );
    step(
        "tests on flex",
        command(&["test"], |cargo| {
            cargo
                .args(&everything)
                .env("BURN_DEVICE", Backend::Flex.name());
        }),
    );
    step("suite on every backend", Task::Suite);
    Ok(steps)
}

fn command(args: &[&str], more: impl FnOnce(&mut Command)) -> Task {
    let mut command = cargo();
    command.args(args);
    more(&mut command);
    Task::Cargo(Box::new(command))
}

/// Checks the crates that a user can embed: with backends and the command line, or with neither.
fn check(libraries: &[Package], backends: &[Backend]) -> Task {
    command(&["check", "--no-default-features"], |cargo| {
        for library in libraries {
            cargo.args(["--package", &library.name]);
        }
        if !backends.is_empty() {
            let features = workspace::features(libraries, backends);
            cargo.args(["--features", &format!("arbora-cli/remote,{features}")]);
        }
        if backends.iter().any(|backend| backend.needs_toolchain()) {
            cargo.env("DOCS_RS", "1");
        }
    })
}

/// The members that are published.
fn libraries() -> Result<Vec<Package>> {
    let mut packages = workspace::packages()?;
    packages.retain(Package::published);
    Ok(packages)
}
