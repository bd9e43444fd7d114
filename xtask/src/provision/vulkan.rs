//! A Vulkan loader and driver. On a machine without a GPU, Mesa's CPU driver.

use std::env::{home_dir, split_paths, var_os};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// Makes sure that wgpu finds a Vulkan loader and a driver. Metal and DX12 need nothing.
pub fn provide() -> Result<()> {
    if !cfg!(target_os = "linux") || (has_loader() && has_driver()) {
        return Ok(());
    }
    super::install(
        "wgpu",
        "a Vulkan loader and driver (on a machine without a GPU, Mesa's lavapipe)",
        &PACKAGES,
    )?;
    if !(has_loader() && has_driver()) {
        bail!(
            "{} are installed, but no Vulkan driver shows up in vulkan/icd.d",
            PACKAGES.join(" ")
        );
    }
    Ok(())
}

fn has_loader() -> bool {
    let listed = ["ldconfig", "/sbin/ldconfig"].iter().any(|ldconfig| {
        shell::output(Command::new(ldconfig).arg("-p"))
            .is_ok_and(|libraries| libraries.contains("libvulkan.so.1"))
    });
    listed
        || var_os("LD_LIBRARY_PATH").is_some_and(|path| {
            split_paths(&path)
                .any(|folder| folder.join("libvulkan.so.1").try_exists().unwrap_or(false))
        })
}

/// Looks for driver manifests where the loader does.
fn has_driver() -> bool {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"];
    if named
        .iter()
        .filter_map(var_os)
        .any(|files| !files.is_empty())
    {
        return true;
    }
    let fixed = ["/etc", "/usr/share", "/usr/local/share", "/usr/local/etc"];
    let mut folders: Vec<PathBuf> = fixed.map(PathBuf::from).into();
    for path in ["XDG_CONFIG_DIRS", "XDG_DATA_DIRS", "XDG_DATA_HOME"]
        .iter()
        .filter_map(var_os)
    {
        folders.extend(split_paths(&path));
    }
    folders.extend(home_dir().map(|home| home.join(".local/share")));
    let read = |folder: &PathBuf| folder.join("vulkan/icd.d").read_dir().ok();
    let mut files = folders.iter().filter_map(read).flatten().flatten();
    files.any(|file| file.path().extension() == Some("json".as_ref()))
}
