//! libtorch for CPUs, cut out of the Python wheels.
//!
//! The wheel of torch needs gigabytes of CUDA libraries only through `libtorch_cuda.so` and
//! `libtorch.so`, which links it. So the CPU part is unpacked alone, and `libtorch.so` is replaced by
//! a stub that links the CPU part.

use std::env::{home_dir, var_os};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Environment;
use crate::data::{lock, registry};
use crate::shell;

/// The version that burn-tch's bindings are generated for.
const VERSION: &str = "2.9.0";

struct Wheel {
    package: &'static str,
    file: &'static str,
    sha256: &'static str,
}

/// torch, and the two CUDA libraries that `libtorch_cpu.so` links, in the versions that torch's
/// metadata names. The wheels are those of one fixed Python version: nothing in them that we unpack
/// depends on Python.
const WHEELS: [Wheel; 3] = [
    Wheel {
        package: "torch==2.9.0",
        file: "torch-2.9.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        sha256: "sha256:51de31219c97c51cf4bf2be94d622e3deb5dcc526c6dc00e97c17eaec0fc1d67",
    },
    Wheel {
        package: "nvidia-cuda-runtime-cu12==12.8.90",
        file: "nvidia_cuda_runtime_cu12-12.8.90-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "sha256:adade8dcbd0edf427b7204d480d6066d33902cab2a4707dcfc48a2d0fd44ab90",
    },
    Wheel {
        package: "nvidia-cuda-cupti-cu12==12.8.90",
        file: "nvidia_cuda_cupti_cu12-12.8.90-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "sha256:ea0cb07ebda26bb9b29ba82cda34849e73c166c18162d3913575b0c9db9a6182",
    },
];

/// The shared libraries that the CPU part consists of.
const LIBRARIES: [&str; 5] = [
    "libc10.so",
    "libtorch_cpu.so",
    "libgomp.so.1",
    "libcudart.so.12",
    "libcupti.so.12",
];

/// Makes sure that there is a libtorch, and sets the variables by which it is found.
pub fn provide(environment: &mut Environment) -> Result<()> {
    // torch-sys compiles C++.
    ensure!(
        shell::have("c++") || shell::have("g++") || var_os("CXX").is_some(),
        "tch needs a C++ compiler: install g++"
    );
    if var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let python = match var_os("VIRTUAL_ENV") {
            Some(_) => "python",
            None => "python3",
        };
        let script = "import os, torch; print(os.path.dirname(torch.__file__))";
        let folder = shell::output(Command::new(python).args(["-c", script]))
            .context("LIBTORCH_USE_PYTORCH is set, but Python cannot import torch")?;
        environment.libraries = Some(Path::new(folder.trim()).join("lib"));
        return Ok(());
    }
    if let Some(folder) = var_os("LIBTORCH") {
        let library = Path::new(&var_os("LIBTORCH_LIB").unwrap_or(folder)).join("lib");
        let shown = library.display();
        ensure!(library.is_dir(), "LIBTORCH is set, but there is no {shown}");
        environment.libraries = Some(library);
        return Ok(());
    }
    let folder = cached()?;
    environment.libraries = Some(folder.join("lib"));
    environment.libtorch = Some(folder);
    Ok(())
}

/// The folder in the user's cache, filled on the first call.
fn cached() -> Result<PathBuf> {
    let cache = cache_folder()?.join("arbora");
    let folder = cache.join(format!("libtorch-{VERSION}-cpu"));
    if folder.is_dir() {
        return Ok(folder);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "no recipe for libtorch on this platform: set LIBTORCH to a folder of libtorch {VERSION}"
    );
    ensure!(
        shell::have("python3"),
        "tch needs libtorch, which comes through pip: install python3"
    );
    ensure!(
        shell::output(Command::new("python3").args(["-m", "pip", "--version"])).is_ok(),
        "tch needs libtorch, which comes through pip: install python3-pip"
    );
    let gcc = shell::have("gcc");
    ensure!(gcc, "libtorch needs a C compiler: install gcc");

    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let lock = File::create(cache.join("libtorch.lock"))?;
    lock.lock().context("waiting for another provision")?;
    if folder.is_dir() {
        return Ok(folder);
    }
    // Whoever held the lock before was killed if it left its folder behind.
    let building = cache.join(format!("libtorch-{VERSION}-cpu.building"));
    if building.is_dir() {
        fs::remove_dir_all(&building)?;
    }
    fs::create_dir(&building)?;
    let built = build(&building)
        .and_then(|libtorch| fs::rename(&libtorch, &folder).context("cannot move it to its place"));
    fs::remove_dir_all(&building)?;
    built.context("cannot make libtorch")?;
    println!("libtorch: {}", folder.display());
    Ok(folder)
}

fn cache_folder() -> Result<PathBuf> {
    // The XDG rule: a relative path is as good as none.
    let named = var_os("XDG_CACHE_HOME").map(PathBuf::from);
    if let Some(folder) = named.filter(|folder| folder.is_absolute()) {
        return Ok(folder);
    }
    let home = home_dir().context("no home folder: set HOME or XDG_CACHE_HOME")?;
    Ok(home.join(".cache"))
}

/// Makes `{scratch}/libtorch`.
fn build(scratch: &Path) -> Result<PathBuf> {
    let libtorch = scratch.join("libtorch");
    let libraries = libtorch.join("lib");
    fs::create_dir_all(&libraries)?;
    for wheel in &WHEELS {
        println!("libtorch: downloading {}", wheel.package);
        let path = download(wheel, scratch)?;
        unpack(&path, &libtorch).with_context(|| wheel.file.to_string())?;
        fs::remove_file(&path)?;
    }
    for library in LIBRARIES {
        ensure!(
            libraries.join(library).is_file(),
            "the wheels hold no {library}"
        );
    }
    let mut stub = Command::new("gcc");
    stub.current_dir(&libraries);
    stub.args(["-shared", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"]);
    shell::output(stub.args(["-o", "libtorch.so", "-L.", "-ltorch_cpu", "-lc10"]))?;
    fs::write(libtorch.join("build-version"), format!("{VERSION}+cpu\n"))?;
    Ok(libtorch)
}

fn download(wheel: &Wheel, scratch: &Path) -> Result<PathBuf> {
    // pip's own copies go where the large file goes, not into a small /tmp.
    let mut pip = registry::pip(wheel.package, scratch);
    pip.env("TMPDIR", scratch);
    pip.args(["--no-cache-dir", "--implementation", "cp"]);
    pip.args(["--python-version", "3.11", "--abi", "cp311"]);
    pip.args(["--abi", "none"]);
    for glibc in ["manylinux_2_28", "manylinux_2_17", "manylinux2014"] {
        pip.args(["--platform", &format!("{glibc}_x86_64")]);
    }
    shell::output(&mut pip)?;
    let path = scratch.join(wheel.file);
    let mut file = File::open(&path).with_context(|| format!("pip left no {}", wheel.file))?;
    let digest = lock::sha256_of(&mut file)?;
    ensure!(
        digest == wheel.sha256,
        "{} has the checksum {digest}, expected {}",
        wheel.file,
        wheel.sha256
    );
    Ok(path)
}

fn unpack(wheel: &Path, libtorch: &Path) -> Result<()> {
    let mut wheel = zip::ZipArchive::new(File::open(wheel)?)?;
    for index in 0..wheel.len() {
        let mut file = wheel.by_index(index)?;
        let name = file.enclosed_name().filter(|_| file.is_file());
        let Some(place) = name.and_then(place) else {
            continue;
        };
        let place = libtorch.join(place);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        io::copy(&mut file, &mut File::create(&place)?)
            .with_context(|| place.display().to_string())?;
    }
    Ok(())
}

/// Where a file of a wheel goes, if we need it.
fn place(path: &Path) -> Option<PathBuf> {
    if path.starts_with("torch/include") {
        return path.strip_prefix("torch").ok().map(Path::to_path_buf);
    }
    let name = path.file_name()?.to_str()?;
    if LIBRARIES.contains(&name) {
        return Some(Path::new("lib").join(name));
    }
    let package = path.iter().next()?.to_str()?.strip_suffix(".dist-info")?;
    let legal = ["LICENSE", "NOTICE", "License.txt"].contains(&name);
    legal.then(|| Path::new("licenses").join(package).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(path: &str) -> Option<String> {
        place(Path::new(path)).map(|place| place.display().to_string())
    }

    #[test]
    fn headers_cpu_libraries_and_licences_are_kept() {
        let header = placed("torch/include/ATen/ATen.h");
        assert_eq!(header.as_deref(), Some("include/ATen/ATen.h"));
        let library = placed("torch/lib/libc10.so");
        assert_eq!(library.as_deref(), Some("lib/libc10.so"));
        let runtime = placed("nvidia/cuda_runtime/lib/libcudart.so.12");
        assert_eq!(runtime.as_deref(), Some("lib/libcudart.so.12"));
        let license = placed("torch-2.9.0.dist-info/licenses/LICENSE");
        assert_eq!(license.as_deref(), Some("licenses/torch-2.9.0/LICENSE"));
    }

    #[test]
    fn cuda_and_python_parts_are_left_out() {
        assert_eq!(placed("torch/lib/libtorch_cuda.so"), None);
        assert_eq!(placed("torch/lib/libtorch.so"), None);
        assert_eq!(placed("torch/nn/modules/linear.py"), None);
        assert_eq!(placed("torch-2.9.0.dist-info/METADATA"), None);
    }
}
