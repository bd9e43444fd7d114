//! The backends, named as burn's features and `BURN_DEVICE` name them.

use clap::ValueEnum;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Backend {
    Flex,
    Ndarray,
    #[value(alias = "libtorch")]
    Tch,
    Wgpu,
    Vulkan,
    Webgpu,
    Metal,
    Cuda,
    Rocm,
    Cpu,
}

impl Backend {
    /// Those that the shared test suite must pass on.
    pub const TESTED: [Self; 4] = [Self::Flex, Self::Ndarray, Self::Tch, Self::Wgpu];

    /// CubeCL's backends beside wgpu: compiled, and run by nobody here.
    pub const PASSED_THROUGH: [Self; 6] = [
        Self::Vulkan,
        Self::Webgpu,
        Self::Metal,
        Self::Cuda,
        Self::Rocm,
        Self::Cpu,
    ];

    /// Whether the suite runs on it in other settings than its defaults too.
    pub fn runs_settings(self) -> bool {
        matches!(self, Self::Flex | Self::Tch)
    }

    /// The name of burn's feature, ours, and the value of `BURN_DEVICE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Tch => "tch",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Webgpu => "webgpu",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Cpu => "cpu",
        }
    }
}
