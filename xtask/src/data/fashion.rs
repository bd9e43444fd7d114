//! Fashion-MNIST from its Debian package.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::idx::gunzip;
use super::lock::{self, Lock};
use super::{registry, sample};
use crate::shell;

const PACKAGE: &str = "dataset-fashion-mnist";

/// Fills `folder` with the four gzipped IDX files.
pub fn fetch(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String> {
    ensure!(
        shell::have("apt-get") && shell::have("dpkg-deb"),
        "it comes from the Debian package {PACKAGE}, which needs apt-get and dpkg-deb \
         (the bundled sample works without it)"
    );
    let mut download = Command::new("apt-get");
    download.current_dir(scratch).args(["download", PACKAGE]);
    if shell::is_root() {
        // apt's own user cannot write to the scratch folder, which apt would warn about.
        download.args(["-o", "APT::Sandbox::User=root"]);
    }
    shell::output(&mut download).context("if the package is unknown, run `apt-get update`")?;
    let (package, _) = registry::downloaded(scratch, ".deb")?;
    let mut unpack = Command::new("dpkg-deb");
    unpack.current_dir(scratch);
    shell::output(unpack.args(["-x", &package, "unpacked"]))?;

    let files = scratch.join("unpacked/usr/share/datasets/fashion-mnist");
    for part in ["train", "t10k"] {
        for kind in ["images-idx3-ubyte", "labels-idx1-ubyte"] {
            let name = format!("{part}-{kind}");
            let packed = files.join(format!("{name}.gz"));
            // Package versions and compression change with Debian's releases, the data does not:
            // its publishers' md5 is that of the uncompressed file.
            let digest = lock::md5(&gunzip(&packed)?);
            lock.check(&format!("fashion-mnist/{name}"), &digest)?;
            fs::copy(&packed, folder.join(format!("{name}.gz")))?;
        }
    }
    Ok(format!(
        "Fashion-MNIST, from the Debian package {PACKAGE}.\n\
         Source: https://github.com/zalandoresearch/fashion-mnist\n\n{}",
        sample::FASHION_MNIST_LICENSE
    ))
}
