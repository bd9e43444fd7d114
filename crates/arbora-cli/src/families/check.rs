//! Checks of settings that types alone do not make. What is refused is named by its path, as `--set` takes it.

use anyhow::{Result, anyhow, bail};
use arbora::rl::train::TrainerConfig;
use std::fmt::Display;

/// Far above any size that is of use, and below what overflows an address.
pub const LARGEST_SIZE: usize = 1 << 16;

/// Settings with their least values.
pub fn sizes<'a>(sizes: impl IntoIterator<Item = (&'a str, usize, usize)>) -> Result<()> {
    for (key, value, least) in sizes {
        if !(least..=LARGEST_SIZE).contains(&value) {
            bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
        }
    }
    Ok(())
}

/// Settings that are finite and not negative.
pub fn weights<const N: usize>(weights: [(&str, f64); N]) -> Result<()> {
    for (key, weight) in weights {
        if !(weight.is_finite() && weight >= 0.0) {
            bail!("{key}: expected a number of at least 0, got {weight}");
        }
    }
    Ok(())
}

/// A setting that divides another one.
pub fn divisor(key: &str, whole: usize, part: usize) -> Result<()> {
    if !whole.is_multiple_of(part) {
        bail!("{key}: expected a divisor of {whole}, got {part}");
    }
    Ok(())
}

/// A share below all.
pub fn dropout(dropout: f64) -> Result<()> {
    if !(0.0..1.0).contains(&dropout) {
        bail!("architecture.dropout: expected 0 to below 1, got {dropout}");
    }
    Ok(())
}

/// What a section found, which knows its settings by short names.
pub fn section<T, E: Display>(section: &str, checked: Result<T, E>) -> Result<T> {
    checked.map_err(|error| anyhow!("{section}.{error}"))
}

/// The policy gradient by its whole path, and then all else.
pub fn trainer(trainer: &TrainerConfig) -> Result<()> {
    section("trainer.policy_gradient", trainer.policy_gradient.check())?;
    section("trainer", trainer.check())
}
