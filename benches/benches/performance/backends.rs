//! The backends compiled in.

use burn::tensor::{Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Open = fn() -> Device;

/// A backend and its device.
#[derive(Clone, Debug)]
pub struct Opened {
    /// As burn's feature and `BURN_DEVICE` name it.
    pub name: &'static str,
    /// Without gradients.
    pub device: Device,
}

/// Those on the host's processor, whose tensors live in its memory.
const HOST: &[(&str, Open)] = &[
    #[cfg(feature = "flex")]
    ("flex", Device::flex),
    #[cfg(feature = "tch")]
    ("tch", Device::libtorch),
    #[cfg(feature = "ndarray")]
    ("ndarray", Device::ndarray),
];

/// Those of CubeCL.
const CUBE: &[(&str, Open)] = &[
    #[cfg(feature = "wgpu")]
    ("wgpu", || {
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "vulkan")]
    ("vulkan", || {
        Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "webgpu")]
    ("webgpu", || {
        Device::webgpu(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "metal")]
    ("metal", || {
        Device::metal(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "cuda")]
    ("cuda", || Device::cuda(0)),
    #[cfg(feature = "rocm")]
    ("rocm", || Device::rocm(0)),
    #[cfg(feature = "cpu")]
    ("cpu", Device::cpu),
];

/// The backends on the host's processor.
pub fn on_the_host() -> Vec<Opened> {
    HOST.iter()
        .map(|(name, open)| Opened {
            name,
            device: open(),
        })
        .collect()
}

/// CubeCL's backends, or why one cannot run.
pub fn on_cube() -> Vec<(&'static str, Result<Opened, String>)> {
    CUBE.iter()
        .map(|(name, open)| (*name, open_or_reason(name, *open)))
        .collect()
}

/// A missing driver shows at the first tensor, as a panic inside the backend.
fn open_or_reason(name: &'static str, open: Open) -> Result<Opened, String> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let device = open();
        Tensor::<1>::zeros([1], &device).into_data();
        Opened { name, device }
    }));
    opened.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("no reason given").to_owned()
    })
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
