//! `cargo xtask outside`: a program outside the workspace, with the crates as users get them.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use crate::shell::{self, cargo, root};
use crate::workspace::{self, Package};

/// Run the tests of a program that embeds the crates: against the archives that `cargo package` makes, and not against this
/// workspace.
#[derive(clap::Args)]
pub struct Args {}

/// The program, in this repository.
const PROGRAM: &str = "xtask/outside";

/// Packages the crates, unpacks them beside a copy of the program, and tests it.
pub fn run(_: &Args) -> Result<()> {
    let mut packages = workspace::packages()?;
    packages.retain(Package::published);
    // Packages are checked by the program that is built of them.
    let words = "package --workspace --no-verify --allow-dirty --quiet";
    shell::run(cargo().args(words.split(' ')))?;
    let target = root().join("target");
    let outside = target.join("outside");
    if outside.try_exists()? {
        fs::remove_dir_all(&outside).with_context(|| outside.display().to_string())?;
    }
    let (crates, program) = (outside.join("crates"), outside.join("program"));
    let mut patches = String::from("[patch.crates-io]\n");
    for package in &packages {
        let folder = format!("{}-{}", package.name, package.version);
        unpack(
            &target.join("package").join(format!("{folder}.crate")),
            &crates,
        )?;
        let path = crates.join(&folder);
        ensure!(path.is_dir(), "the archive has no folder {folder}");
        patches += &format!("{} = {{ path = {path:?} }}\n", package.name);
    }
    copy(&root().join(PROGRAM), &program)?;
    fs::create_dir_all(program.join(".cargo"))?;
    fs::write(program.join(".cargo/config.toml"), patches)?;
    // The same versions of everything else, most of which is compiled.
    fs::copy(root().join("Cargo.lock"), program.join("Cargo.lock"))?;
    let mut test = cargo();
    test.args(["test", "--target-dir"]).arg(&target);
    // Patches are read from where cargo is started.
    shell::run(test.current_dir(&program))
}

fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let name = || archive.display().to_string();
    let file = File::open(archive).with_context(name)?;
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    // Times in archives are all the same, by which cargo would take changed sources for those that it has compiled.
    archive.set_preserve_mtime(false);
    archive.unpack(to).with_context(name)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let copied = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &copied)?;
        } else {
            fs::copy(entry.path(), copied)?;
        }
    }
    Ok(())
}
