//! What the integration tests of every Arbora crate share: the device under test, the
//! rule for skipping, tolerances calibrated by measurement, and gradient checks.
//!
//! This crate is a path-only dev-dependency. Unit tests never use it: inside a crate's own unit
//! tests its types would be those of a second copy of that crate.
//!
//! - [`device`] and [`assert_backend_asked_for`]: which backend a suite runs on
//! - [`skip`]: how a test says that it did not run
//! - [`random`], [`padding`]: inputs, the same on every backend
//! - [`assert_close`]: element-wise comparison with a stated bound
//! - [`assert_refuses_nothing`]: a call with a batch of no example panics with a sentence that says so
//! - [`gradient`]: finite differences

pub mod gradient;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, DType, Device, FloatDType, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// The device under test: burn's default, which `BURN_DEVICE` names. Its floats are of the type that `ARBORA_TEST_FLOAT` names
/// (`f16`, `bf16` or `f64`), and of burn's default type without it.
pub fn device() -> Device {
    #[cfg(target_os = "linux")]
    if std::env::var("BURN_DEVICE").is_ok_and(|name| name == "wgpu") {
        yield_to_device();
    }
    static CONFIGURED: OnceLock<()> = OnceLock::new();
    CONFIGURED.get_or_init(|| {
        if let Some(dtype) = float_asked_for() {
            let configured = Device::default().configure(dtype);
            configured.expect("no tensor was made before the device was asked for");
        }
    });
    Device::default()
}

/// The device under test, recording gradients; with `ARBORA_TEST_CHECKPOINTING` by gradient checkpointing.
pub fn autodiff_device() -> Device {
    recording(&device())
}

/// A device of the suite that records gradients, as [`autodiff_device`] does.
pub fn recording(device: &Device) -> Device {
    let device = device.clone().autodiff();
    if std::env::var_os("ARBORA_TEST_CHECKPOINTING").is_some() {
        device.gradient_checkpointing()
    } else {
        device
    }
}

fn float_asked_for() -> Option<FloatDType> {
    let asked = std::env::var("ARBORA_TEST_FLOAT").ok()?;
    Some(match asked.as_str() {
        "f16" => FloatDType::F16,
        "bf16" => FloatDType::BF16,
        "f64" => FloatDType::F64,
        other => panic!("ARBORA_TEST_FLOAT={other}: expected f16, bf16 or f64"),
    })
}

/// What a test that computes in single precision allows, as it is for the floats under test: at least 16 times their precision.
pub fn allowed(tolerance: f32) -> f32 {
    half_precision().map_or(tolerance, |unit| tolerance.max(16.0 * unit as f32))
}

/// Asserts that numbers are those expected: exactly, or as far as half precision holds them.
#[track_caller]
pub fn assert_held(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = (got - expected).abs();
        assert!(
            error <= allowed(0.0),
            "{what}: expected {expected}, got {got}"
        );
    }
}

/// A factor that overflows where a masked row divides by what is too small, and nowhere else.
pub fn large() -> f32 {
    match float_asked_for() {
        Some(FloatDType::F16) => 1e3,
        _ => 1e6,
    }
}

/// The distance from 1 to the next number of the floats under test, where these are of half precision.
pub(crate) fn half_precision() -> Option<f64> {
    match float_asked_for() {
        Some(FloatDType::F16) => Some(2f64.powi(-10)),
        Some(FloatDType::BF16) => Some(2f64.powi(-7)),
        _ => None,
    }
}

/// From now on the calling thread runs when no other wants to, and fusion's thread when no thread of the device does. Both wait
/// for CubeCL's threads by spinning, and so take the cores that a CPU driver compiles and runs kernels on:
/// docs/decisions/0011-the-suite-on-a-cpu-driver.md. Where the system refuses, they stay as they are.
#[cfg(target_os = "linux")]
fn yield_to_device() {
    // Threads inherit how they are scheduled: the device's begin before.
    static BEGUN: OnceLock<TensorData> = OnceLock::new();
    BEGUN.get_or_init(|| {
        let data = Tensor::<1>::ones([1], &Device::default()).into_data();
        for thread in fusion_threads() {
            // SAFETY: the call touches no memory of the process. Of a thread that has ended meanwhile it is refused.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, 10) };
        }
        data
    });
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `priority`, which lives longer than it and is of the type that it wants, and touches no other memory.
    // 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &priority) };
}

/// The threads of this process that feed a device's own, which CubeCL calls `DSU-…`.
#[cfg(target_os = "linux")]
fn fusion_threads() -> impl Iterator<Item = libc::id_t> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    threads.flatten().filter_map(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let id = thread.file_name().to_str()?.parse().ok()?;
        name.starts_with("DSU-").then_some(id)
    })
}

/// Asserts that the backend named by `BURN_DEVICE` is the one that tensors of [`device`] live on.
///
/// burn-train and feature unification can compile in a backend that nobody asked for, and burn's
/// default order may then prefer it. Without the variable the test passes for any backend: a bare
/// `cargo test` takes burn's default.
pub fn assert_backend_asked_for() {
    let Ok(asked) = std::env::var("BURN_DEVICE") else {
        return;
    };
    let variant = match asked.as_str() {
        "flex" => "Flex",
        "ndarray" => "NdArray",
        "tch" => "LibTorch",
        "wgpu" | "vulkan" | "webgpu" | "metal" | "cuda" | "rocm" | "cpu" => "Cube",
        other => panic!("BURN_DEVICE={other} names no backend that the suite knows"),
    };
    let tensor = Tensor::<1>::zeros([1], &device());
    let ran = format!("{:?}", tensor.device().as_dispatch());
    assert!(
        ran.starts_with(variant),
        "BURN_DEVICE={asked} asked for {variant}, but the tensor lives on {ran}"
    );
}

/// Says that the running test cannot do its work here, and why. Call it and return.
///
/// `cargo xtask test-all-backends` counts these lines and prints the reasons.
pub fn skip(reason: &str) {
    println!("[skip] {reason}");
}

/// [`skip`], where the floats under test are of half precision and the test cannot hold for the reason given.
pub fn skipped_in_half_precision(reason: &str) -> bool {
    let half = half_precision().is_some();
    if half {
        skip(reason);
    }
    half
}

/// A tensor of independent draws from U(-1, 1). The numbers come from the host, so one seed gives
/// the same tensor on every backend.
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    Tensor::from_data(random_data(shape, seed), device)
}

/// [`random`] constants beside a tensor: of its shape and type, on its device.
pub fn random_like<const D: usize>(tensor: &Tensor<D>, seed: u64) -> Tensor<D> {
    let device = tensor.device().without_autodiff();
    Tensor::from_data(random_data(tensor.dims(), seed), (&device, tensor.dtype()))
}

/// In single precision: what operators compute in their own and what they return in that of their inputs can then be added up.
pub fn single<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.cast(FloatDType::F32)
}

/// The sum in single precision, each element times a random factor of its own: a loss that tells all elements apart.
pub fn weighed<const D: usize>(tensor: Tensor<D>, seed: u64) -> Tensor<1> {
    let tensor = single(tensor);
    (tensor.clone() * random_like(&tensor, seed)).sum()
}

/// The numbers of [`random`]. They are numbers of the floats under test: a device does not round them.
pub fn random_data<const D: usize>(shape: [usize; D], seed: u64) -> TensorData {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let draws = (0..count).map(|_| exact(rng.random_range(-1.0..1.0)));
    TensorData::new(draws.collect(), shape)
}

/// The next number towards 0 that the floats under test have.
pub fn exact(number: f32) -> f32 {
    let cut = match float_asked_for() {
        Some(FloatDType::F16) => 13,
        Some(FloatDType::BF16) => 16,
        _ => 0,
    };
    f32::from_bits(number.to_bits() >> cut << cut)
}

/// A tensor of independent draws from U(0, 1), the uniform numbers that sampling takes.
pub fn uniforms<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    (random(shape, seed, device) + 1.0) / 2.0
}

/// The mask of examples padded to `tokens` tokens, `[batch, tokens]`: `true` past each length.
pub fn padding(lengths: &[usize], tokens: usize, device: &Device) -> Tensor<2, Bool> {
    let flat: Vec<bool> = lengths
        .iter()
        .flat_map(|length| (0..tokens).map(move |token| token >= *length))
        .collect();
    Tensor::from_data(TensorData::new(flat, [lengths.len(), tokens]), device)
}

/// The elements as `f32`, in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Asserts that two tensors agree in shape and, element by element, within
/// `absolute + relative * |expected|`; see [`allowed`] for half precision, where `absolute` is times the largest element.
/// Non-finite elements never agree.
///
/// # Panics
/// With the first differing position, both values and the largest difference.
#[track_caller]
pub fn assert_close<const D: usize>(
    got: Tensor<D>,
    expected: Tensor<D>,
    absolute: f32,
    relative: f32,
) {
    assert_eq!(got.dims(), expected.dims(), "assert_close: shapes differ");
    let (got, expected) = (values(got), values(expected));
    let (mut absolute, relative) = (allowed(absolute), allowed(relative));
    if half_precision().is_some() {
        // What was rounded on the way there was as large as the largest.
        absolute *= expected.iter().fold(1.0, |most: f32, x| most.max(x.abs()));
    }
    let differs = |g: f32, e: f32| {
        let within = (g - e).abs() <= absolute + relative * e.abs();
        !within || !g.is_finite() || !e.is_finite()
    };
    let first = got.iter().zip(&expected).position(|(g, e)| differs(*g, *e));
    if let Some(at) = first {
        let worst = got
            .iter()
            .zip(&expected)
            .map(|(g, e)| (g - e).abs())
            .fold(0.0, f32::max);
        panic!(
            "assert_close: element {at} is {}, expected {} (largest difference {worst:e}, \
             allowed {absolute:e} + {relative:e} * |expected|)",
            got[at], expected[at]
        );
    }
}

/// Panics unless `call` panics because something that it was given has a length of 0.
#[track_caller]
pub fn assert_refuses_nothing(what: &str, call: impl FnOnce()) {
    let message = catch_unwind(AssertUnwindSafe(call)).expect_err(what);
    let message = message.downcast_ref::<String>().expect("a sentence");
    assert!(
        message.ends_with("expected at least 1, got 0"),
        "{what}: {message}"
    );
}

/// The module with its parameters in another type, as users of half precision cast it.
pub fn cast_module<M: Module>(module: M, dtype: FloatDType) -> M {
    module.map(&mut Cast(dtype))
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|old| {
            let learns = old.is_require_grad();
            old.cast(self.0).detach().set_require_grad(learns)
        })
    }
}

/// The types of floats beside single precision that a device computes in.
pub fn other_floats(device: &Device) -> Vec<FloatDType> {
    let mut all = vec![FloatDType::F16, FloatDType::BF16];
    // Mesa's CPU driver says that it has it, and what it computes in a backward pass is not finite or is 0.
    if std::env::var("BURN_DEVICE").is_ok_and(|name| name != "wgpu") {
        all.push(FloatDType::F64);
    }
    all.retain(|dtype| device.supports_dtype(DType::from(*dtype)));
    all
}
