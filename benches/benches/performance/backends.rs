//! The backends compiled in.

use arbora_cli::backend;
use burn::tensor::Device;

/// A backend and its device.
#[derive(Clone, Debug)]
pub struct Opened {
    /// As burn's feature and `BURN_DEVICE` name it.
    pub name: &'static str,
    /// Without gradients.
    pub device: Device,
}

/// Those on the host's processor, whose tensors live in its memory. The others are CubeCL's.
const HOST: [&str; 3] = ["flex", "tch", "ndarray"];

/// The backends on the host's processor.
pub fn on_the_host() -> Vec<Opened> {
    let names = backend::compiled().filter(|name| HOST.contains(name));
    names
        .map(|name| open(name).expect("a processor needs no driver"))
        .collect()
}

/// CubeCL's backends, or why one cannot run.
pub fn on_cube() -> Vec<Result<Opened, String>> {
    let names = backend::compiled().filter(|name| !HOST.contains(name));
    names.map(open).collect()
}

fn open(name: &'static str) -> Result<Opened, String> {
    let (_, device) = backend::open(Some(name)).map_err(|error| format!("{error:#}"))?;
    Ok(Opened { name, device })
}

/// What the machine calls a device of CubeCL.
pub fn adapter(device: &Device) -> String {
    #[cfg(any(
        feature = "wgpu",
        feature = "vulkan",
        feature = "webgpu",
        feature = "metal",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu"
    ))]
    if let Some(identity) = device.identity() {
        return identity.name;
    }
    format!("{:?}", device.as_dispatch())
}

/// libtorch keeps threads of its own, and their number per calling thread.
pub fn set_libtorch_threads(threads: usize) {
    #[cfg(feature = "tch")]
    tch::set_num_threads(threads as i32);
    #[cfg(not(feature = "tch"))]
    let _ = threads;
}
