//! A Vulkan loader and driver. On a machine without a GPU, Mesa's CPU driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// Makes sure that wgpu finds a Vulkan loader and a driver. Metal and DX12 need nothing.
///
/// # Errors
/// With what to install, where this task cannot install it.
pub fn provide() -> Result<()> {
    if !cfg!(target_os = "linux") || (has_loader() && has_driver()) {
        return Ok(());
    }
    let packages = PACKAGES.join(" ");
    if !shell::have("apt-get") {
        bail!(
            "wgpu needs a Vulkan loader and driver: install your system's Vulkan loader and a \
             driver (on a machine without a GPU, Mesa's lavapipe)"
        );
    }
    if !shell::is_root() {
        bail!("wgpu needs a Vulkan driver: run `sudo apt-get install {packages}`");
    }
    println!("wgpu: installing {packages}");
    let install = || {
        shell::output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(PACKAGES),
        )
    };
    // A fresh container has no package lists yet, or old ones.
    if install().is_err() {
        shell::output(Command::new("apt-get").arg("update"))?;
        install()?;
    }
    if !(has_loader() && has_driver()) {
        bail!("{packages} are installed, but no Vulkan driver shows up in vulkan/icd.d");
    }
    Ok(())
}

fn has_loader() -> bool {
    let listed = ["ldconfig", "/sbin/ldconfig"].iter().any(|ldconfig| {
        shell::output(Command::new(ldconfig).arg("-p"))
            .is_ok_and(|libraries| libraries.contains("libvulkan.so.1"))
    });
    listed
        || std::env::var_os("LD_LIBRARY_PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join("libvulkan.so.1").exists())
        })
}

/// Looks for driver manifests where the loader does.
fn has_driver() -> bool {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"];
    if named
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
    {
        return true;
    }
    let mut folders: Vec<PathBuf> = ["/etc", "/usr/share", "/usr/local/share", "/usr/local/etc"]
        .map(PathBuf::from)
        .to_vec();
    for name in ["XDG_CONFIG_DIRS", "XDG_DATA_DIRS", "XDG_DATA_HOME"] {
        if let Some(path) = std::env::var_os(name) {
            folders.extend(std::env::split_paths(&path));
        }
    }
    if let Some(home) = std::env::home_dir() {
        folders.push(home.join(".local/share"));
    }
    folders
        .iter()
        .any(|folder| holds_manifest(&folder.join("vulkan/icd.d")))
}

fn holds_manifest(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|end| end == "json"))
    })
}
