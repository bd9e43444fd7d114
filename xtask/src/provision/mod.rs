//! `cargo xtask provision`: what the tested backends need beyond crates.

mod libtorch;
mod vulkan;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::backend::Backend;
use crate::shell;

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

/// Provides for each backend, and says what cargo by hand needs. Fails at the first that cannot be provided for.
pub fn run(args: &Args) -> Result<()> {
    let mut environment = Environment::default();
    for &backend in &args.backends {
        provide(backend, &mut environment)?;
        println!("{:<8} ready", backend.name());
    }
    // For cargo by hand.
    if let Some(folder) = &environment.libtorch {
        println!("export LIBTORCH={}", folder.display());
    }
    if let Some(folder) = &environment.libraries {
        println!(
            "export {LOADER_PATH}={}${{{LOADER_PATH}:+:${LOADER_PATH}}}",
            folder.display()
        );
    }
    Ok(())
}

/// Where the system's loader looks for shared libraries first.
const LOADER_PATH: &str = if cfg!(target_os = "macos") {
    "DYLD_LIBRARY_PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// What cargo and test binaries must know about the machine.
#[derive(Default)]
pub struct Environment {
    /// The value of LIBTORCH, where it is not set already.
    libtorch: Option<PathBuf>,
    /// The folder of libtorch's shared libraries.
    libraries: Option<PathBuf>,
}

impl Environment {
    /// Adds the variables to a command.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(folder) = &self.libtorch {
            command.env("LIBTORCH", folder);
        }
        if let Some(folder) = &self.libraries {
            let mut path = OsString::from(folder);
            if let Some(rest) = std::env::var_os(LOADER_PATH).filter(|rest| !rest.is_empty()) {
                path.push(":");
                path.push(rest);
            }
            command.env(LOADER_PATH, path);
        }
        command
    }
}

/// Provides for one backend and adds what it needs to the environment.
pub fn provide(backend: Backend, environment: &mut Environment) -> Result<()> {
    match backend {
        Backend::Tch => libtorch::provide(environment),
        Backend::Wgpu | Backend::Vulkan => vulkan::provide(),
        _ => Ok(()),
    }
}

/// Makes sure that `strace` is there, which lets system calls fail.
pub fn strace() -> Result<()> {
    if shell::have("strace") {
        Ok(())
    } else {
        install("faults", "strace", &["strace"])
    }
}

/// Makes sure that the source of the standard library is there, which `-Zbuild-std` compiles.
pub fn rust_source() -> Result<()> {
    let sysroot = shell::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock");
    if source.is_file() {
        return Ok(());
    }
    if !shell::have("rustup") {
        bail!(
            "--tsan needs the source of Rust's standard library: install it as your Rust was, as `rust-src`"
        );
    }
    println!("--tsan: installing rust-src");
    shell::output(Command::new("rustup").args(["component", "add", "rust-src"])).map(drop)
}

/// Installs packages through apt. Where it cannot, the error says what to install.
fn install(whose: &str, what: &str, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !shell::have("apt-get") {
        bail!("{whose} needs {what}: install it as your system does");
    }
    if !shell::is_root() {
        bail!("{whose} needs {what}: run `sudo apt-get install {list}`");
    }
    println!("{whose}: installing {list}");
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt.args(["install", "--yes", "--no-install-recommends"]);
        shell::output(apt.args(packages))
    };
    // A fresh container has no package lists yet, or old ones.
    if install().is_err() {
        shell::output(Command::new("apt-get").arg("update"))?;
        install()?;
    }
    Ok(())
}
