//! Backends by name, and devices of other processes by address.

use crate::quiet::without_panic;
use crate::remote;
use anyhow::{Result, anyhow, bail};
use burn::tensor::{Device, Tensor};

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

type OpenNumbered = fn(usize) -> Device;

/// The backends compiled in whose accelerators are numbered.
const NUMBERED: &[(&str, OpenNumbered)] = &[
    #[cfg(feature = "cuda")]
    ("cuda", |index| Device::cuda(index)),
    #[cfg(feature = "rocm")]
    ("rocm", |index| Device::rocm(index)),
];

/// Every backend that a feature of this crate can bring in.
const KNOWN: &[&str] = &[
    "flex", "ndarray", "tch", "wgpu", "vulkan", "webgpu", "metal", "cuda", "rocm", "cpu",
];

/// The names of the backends compiled in, the preferred one first.
pub fn compiled() -> impl Iterator<Item = &'static str> {
    COMPILED.iter().map(|(name, _)| *name)
}

/// Opens a device: the backend of a name, or a device of another process by its address
/// (`ws://host:port`). Without a name: what `BURN_DEVICE` names, else the first backend compiled in.
/// Returns the device and what to call it.
///
/// # Errors
/// If the name is unknown or not compiled in, the device cannot run, or the server cannot be used.
pub fn open(name: Option<&str>) -> Result<(String, Device)> {
    let asked = asked(name);
    match asked.as_deref().filter(|asked| remote::is_address(asked)) {
        Some(address) => remote::open_at(address),
        None => {
            let (name, device) = open_here(asked)?;
            Ok((name.to_owned(), device))
        }
    }
}

/// Opens several devices of a backend, for other processes. `cuda` and `rocm` have as many as there are
/// accelerators; all others have one, which is given out several times.
///
/// # Errors
/// As [`open`], or if the name is an address.
pub fn open_several(name: Option<&str>, count: usize) -> Result<(&'static str, Vec<Device>)> {
    let asked = asked(name);
    if let Some(address) = asked.as_deref().filter(|asked| remote::is_address(asked)) {
        bail!("{address}: a device of another process cannot be served again");
    }
    let (name, first) = open_here(asked)?;
    let numbered = NUMBERED.iter().find(|(known, _)| *known == name);
    let mut devices = vec![first];
    for index in 1..count {
        devices.push(match numbered {
            None => devices[0].clone(),
            Some((_, open)) => tried(&format!("{name} device {index}"), || open(index))?,
        });
    }
    Ok((name, devices))
}

fn asked(name: Option<&str>) -> Option<String> {
    name.map(str::to_owned)
        .or_else(|| std::env::var("BURN_DEVICE").ok())
}

fn open_here(asked: Option<String>) -> Result<(&'static str, Device)> {
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
    Ok((name, tried(&format!("backend {name}"), open)?))
}

/// A device that computes. A missing driver shows at the first tensor, as a panic inside the backend.
fn tried(name: &str, open: impl FnOnce() -> Device) -> Result<Device> {
    without_panic(|| {
        let device = open();
        Tensor::<1>::zeros([1], &device).into_data();
        device
    })
    .map_err(|reason| anyhow!("{name} cannot run on this machine: {reason}"))
}
