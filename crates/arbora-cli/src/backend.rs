//! Backends by name, and devices of other processes by address.

use crate::catch_panic::without_panic;
use crate::remote;
use anyhow::{Context as _, Result, anyhow, bail};
use burn::tensor::{Device, Tensor};
#[cfg(feature = "adapters")]
use burn_wgpu::{RuntimeOptions, WgpuBackend, WgpuDevice, graphics::AutoGraphicsApi};
use serde::Serialize;

/// Opens the device of a number, which all backends but cuda and rocm ignore.
type Open = fn(usize) -> Device;

/// The backends compiled into this program, the preferred one first.
const COMPILED: &[(&str, Open)] = &[
    #[cfg(feature = "flex")]
    ("flex", |_| Device::flex()),
    #[cfg(feature = "tch")]
    ("tch", |_| Device::libtorch()),
    #[cfg(feature = "ndarray")]
    ("ndarray", |_| Device::ndarray()),
    #[cfg(feature = "cuda")]
    ("cuda", |index| Device::cuda(index)),
    #[cfg(feature = "rocm")]
    ("rocm", |index| Device::rocm(index)),
    #[cfg(feature = "metal")]
    ("metal", |_| Device::metal(Default::default())),
    #[cfg(feature = "vulkan")]
    ("vulkan", |_| Device::vulkan(Default::default())),
    #[cfg(feature = "webgpu")]
    ("webgpu", |_| Device::webgpu(Default::default())),
    #[cfg(feature = "wgpu")]
    ("wgpu", |_| Device::wgpu(Default::default())),
    #[cfg(feature = "cpu")]
    ("cpu", |_| Device::cpu()),
];

/// The backends on wgpu, and the graphics API that each asks for.
#[cfg(feature = "adapters")]
const GRAPHICS: &[(&str, WgpuBackend)] = &[
    ("wgpu", WgpuBackend::Auto),
    ("vulkan", WgpuBackend::Vulkan),
    ("webgpu", WgpuBackend::WebGpu),
    ("metal", WgpuBackend::Metal),
];

/// Every backend that a feature of this crate can bring in.
const KNOWN: &[&str] = &[
    "flex", "ndarray", "tch", "wgpu", "vulkan", "webgpu", "metal", "cuda", "rocm", "cpu",
];

/// The names of the backends compiled in, the preferred one first.
pub fn compiled() -> impl Iterator<Item = &'static str> {
    COMPILED.iter().map(|(name, _)| *name)
}

/// A backend compiled in, as it is on this machine.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Its name.
    pub name: &'static str,
    /// Whether it computes here.
    pub runs: bool,
    /// Why it does not.
    pub reason: Option<String>,
    /// The graphics adapter that it computes on.
    pub adapter: Option<String>,
    /// What it reaches its hardware through: the driver and its version, or a library.
    pub driver: Option<String>,
}

/// Tries every backend compiled in, the preferred one first. Call it before any other function of this module:
/// an adapter can be asked only while its device is not open.
pub fn find() -> Vec<Found> {
    let found = |&(name, open): &(&'static str, Open)| {
        let tried = without_panic(|| hardware(name))
            .and_then(|hardware| hardware.map_err(|error| error.to_string()))
            .and_then(|hardware| computes(open, 0).map(|_| hardware));
        let reason = tried.as_ref().err();
        let reason = reason.map(|reason| reason.split_whitespace().collect::<Vec<_>>().join(" "));
        let (adapter, driver) = tried.unwrap_or_default();
        Found {
            name,
            runs: reason.is_none(),
            reason,
            adapter,
            driver,
        }
    };
    COMPILED.iter().map(found).collect()
}

/// The adapter and the driver of a backend, where it has them.
fn hardware(name: &str) -> Result<(Option<String>, Option<String>)> {
    #[cfg(feature = "adapters")]
    if let Some((_, api)) = GRAPHICS.iter().find(|(known, _)| *known == name) {
        let device = WgpuDevice::default().on(*api);
        let options = RuntimeOptions::try_default()?;
        // Opens the device that the backend will use, and unlike the backend says why it cannot.
        let setup = burn_wgpu::try_init_setup::<AutoGraphicsApi>(&device, options)?;
        let info = setup.adapter.get_info();
        let driver = format!("{} {} ({})", info.driver, info.driver_info, info.backend);
        return Ok((Some(info.name), Some(driver.trim_start().to_owned())));
    }
    // The version that the crate `tch` is made for and insists on; libtorch does not tell its own.
    let library = (name == "tch").then(|| "libtorch 2.9".to_owned());
    Ok((None, library))
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
            let (name, open) = named(asked)?;
            let device = tried(&format!("backend {name}"), open, 0)?;
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
    let (name, open) = named(asked)?;
    let mut devices = vec![tried(&format!("backend {name}"), open, 0)?];
    for index in 1..count {
        devices.push(match name {
            "cuda" | "rocm" => tried(&format!("{name} device {index}"), open, index)?,
            _ => devices[0].clone(),
        });
    }
    Ok((name, devices))
}

fn asked(name: Option<&str>) -> Option<String> {
    name.map(str::to_owned)
        .or_else(|| std::env::var("BURN_DEVICE").ok())
}

/// A backend that is compiled in; without a name the preferred one.
fn named(asked: Option<String>) -> Result<(&'static str, Open)> {
    let Some(asked) = asked else {
        let first = COMPILED.first().copied();
        return first.context("no backend is compiled in");
    };
    match COMPILED.iter().find(|(name, _)| *name == asked) {
        Some(found) => Ok(*found),
        None if KNOWN.contains(&asked.as_str()) => bail!(
            "backend {asked} is not compiled in (compiled in: {}); build with --features {asked}",
            compiled().collect::<Vec<_>>().join(", ")
        ),
        None => bail!("unknown backend {asked}; known: {}", KNOWN.join(", ")),
    }
}

fn tried(name: &str, open: Open, index: usize) -> Result<Device> {
    computes(open, index).map_err(|reason| anyhow!("{name} cannot run on this machine: {reason}"))
}

/// A device that computes. A missing driver shows at the first tensor, as a panic inside the backend.
fn computes(open: Open, index: usize) -> Result<Device, String> {
    without_panic(|| {
        let device = open(index);
        Tensor::<1>::zeros([1], &device).into_data();
        device
    })
}
