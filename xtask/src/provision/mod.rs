//! `cargo xtask provision`: what the tested backends need beyond crates.

mod libtorch;
mod vulkan;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::backend::Backend;

/// Install what backends need: libtorch into the user's cache folder, a Vulkan driver through apt.
///
/// Does nothing where it is there already. A libtorch named by LIBTORCH or LIBTORCH_USE_PYTORCH is
/// used as it is.
#[derive(clap::Args)]
#[command(after_help = "Example: cargo xtask provision --backends tch")]
pub struct Args {
    /// The backends to provide for.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Backend::TESTED)]
    backends: Vec<Backend>,
}

/// Runs the task.
///
/// # Errors
/// When a backend cannot be provided for.
pub fn run(args: &Args) -> Result<()> {
    let mut environment = Environment::default();
    for &backend in &args.backends {
        provide(backend, &mut environment)?;
        println!("{:<8} ready", backend.name());
    }
    for (name, value) in &environment.variables {
        println!("export {name}={}", value.to_string_lossy());
    }
    Ok(())
}

/// Environment variables under which cargo builds, and test binaries run.
#[derive(Default)]
pub struct Environment {
    variables: Vec<(&'static str, OsString)>,
}

impl Environment {
    /// Adds the variables to a command.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)))
    }

    fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.variables.push((name, value.into()));
    }

    /// Puts a folder of shared libraries first on the loader's path.
    fn load_from(&mut self, folder: PathBuf) -> Result<()> {
        let name = if cfg!(target_os = "macos") {
            "DYLD_LIBRARY_PATH"
        } else {
            "LD_LIBRARY_PATH"
        };
        let mut folders = vec![folder];
        if let Some(path) = std::env::var_os(name).filter(|path| !path.is_empty()) {
            folders.extend(std::env::split_paths(&path));
        }
        self.set(
            name,
            std::env::join_paths(folders).context("path of libtorch")?,
        );
        Ok(())
    }
}

/// Provides for one backend and adds what it needs to the environment.
///
/// # Errors
/// With one line that says what is missing.
pub fn provide(backend: Backend, environment: &mut Environment) -> Result<()> {
    match backend {
        Backend::Tch => libtorch::provide(environment),
        Backend::Wgpu | Backend::Vulkan => vulkan::provide(),
        _ => Ok(()),
    }
}
