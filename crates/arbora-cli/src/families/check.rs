//! Whether settings are in their ranges and go together. What is refused is named by its path, as `--set` takes it.

use anyhow::{Result, anyhow, bail};
use arbora::rl::train::TrainerConfig;
use std::fmt::Display;

/// Far above any size that is of use, and below what overflows an address.
pub const LARGEST_SIZE: usize = 1 << 16;

/// Refuses the first size that is below its least value, or beyond any use: its name, its value, the least one.
pub fn sizes<'a>(sizes: impl IntoIterator<Item = (&'a str, usize, usize)>) -> Result<()> {
    for (key, value, least) in sizes {
        if !(least..=LARGEST_SIZE).contains(&value) {
            bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
        }
    }
    Ok(())
}

/// Refuses the first weight that is negative or not finite.
pub fn weights<const N: usize>(weights: [(&str, f64); N]) -> Result<()> {
    for (key, weight) in weights {
        if !(weight.is_finite() && weight >= 0.0) {
            bail!("{key}: expected a number of at least 0, got {weight}");
        }
    }
    Ok(())
}

/// Puts the name of a section before what it refuses: it knows its settings by short names.
pub fn section<T, E: Display>(section: &str, checked: Result<T, E>) -> Result<T> {
    checked.map_err(|error| anyhow!("{section}.{error}"))
}

/// Refuses settings of a training, those of the policy gradient by their whole path.
pub fn trainer(trainer: &TrainerConfig) -> Result<()> {
    section("trainer.policy_gradient", trainer.policy_gradient.check())?;
    section("trainer", trainer.check())
}
