//! Backends by name.

use anyhow::{Result, anyhow, bail};
use burn::tensor::{Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Open = fn() -> Device;

/// The backends compiled into this program, the preferred one first.
const COMPILED: &[(&str, Open)] = &[
    #[cfg(feature = "flex")]
    ("flex", Device::flex),
    #[cfg(feature = "tch")]
    ("tch", Device::libtorch),
    #[cfg(feature = "ndarray")]
    ("ndarray", Device::ndarray),
    #[cfg(feature = "cuda")]
    ("cuda", || Device::cuda(0)),
    #[cfg(feature = "rocm")]
    ("rocm", || Device::rocm(0)),
    #[cfg(feature = "metal")]
    ("metal", || {
        Device::metal(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "vulkan")]
    ("vulkan", || {
        Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "webgpu")]
    ("webgpu", || {
        Device::webgpu(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "wgpu")]
    ("wgpu", || {
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
    }),
    #[cfg(feature = "cpu")]
    ("cpu", Device::cpu),
];

/// Every backend that a feature of this crate can bring in.
const KNOWN: &[&str] = &[
    "flex", "ndarray", "tch", "wgpu", "vulkan", "webgpu", "metal", "cuda", "rocm", "cpu",
];

/// The names of the backends compiled in, the preferred one first.
pub fn compiled() -> impl Iterator<Item = &'static str> {
    COMPILED.iter().map(|(name, _)| *name)
}

/// Opens a backend by name. Without a name: the one that `BURN_DEVICE` names, else the first
/// compiled in.
///
/// # Errors
/// If the name is unknown or not compiled in, or if the device cannot run.
pub fn open(name: Option<&str>) -> Result<(&'static str, Device)> {
    let asked = name
        .map(str::to_owned)
        .or_else(|| std::env::var("BURN_DEVICE").ok());
    let list = compiled().collect::<Vec<_>>().join(", ");
    let (name, open) = match asked {
        None => COMPILED
            .first()
            .ok_or_else(|| anyhow!("no backend is compiled in"))?,
        Some(asked) => match COMPILED.iter().find(|(name, _)| *name == asked) {
            Some(found) => found,
            None if KNOWN.contains(&asked.as_str()) => bail!(
                "backend {asked} is not compiled in (compiled in: {list}); build with --features {asked}"
            ),
            None => bail!("unknown backend {asked}; known: {}", KNOWN.join(", ")),
        },
    };
    // A missing driver shows at the first tensor, as a panic inside the backend.
    let device = catch_unwind(AssertUnwindSafe(|| {
        let device = open();
        Tensor::<1>::zeros([1], &device).into_data();
        device
    }))
    .map_err(|_| anyhow!("backend {name} cannot run on this machine"))?;
    Ok((name, device))
}
