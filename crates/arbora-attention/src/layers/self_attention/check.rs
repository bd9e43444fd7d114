//! What types alone do not check.

use super::baselines::BigBirdConfig;
use super::kind::AttentionKindConfig;
use super::router::{RouterConfig, TreeScope, TreeSharing};
use arbora_tree::routing::Surrogate;
use thiserror::Error;

/// A setting of attention that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{setting}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The setting, as it is written in the configuration of its kind.
    pub setting: &'static str,
    /// Expected values.
    pub expected: String,
    /// The given value.
    pub got: String,
}

type Checked = Result<(), ConfigError>;

fn refused(setting: &'static str, expected: &'static str, got: impl ToString) -> Checked {
    Err(ConfigError {
        setting,
        expected: expected.into(),
        got: got.to_string(),
    })
}

fn at_least_one(setting: &'static str, value: usize) -> Checked {
    match value {
        0 => refused(setting, "at least 1", 0),
        _ => Ok(()),
    }
}

fn positive(setting: &'static str, value: f64) -> Checked {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        refused(setting, "a positive number", value)
    }
}

impl AttentionKindConfig {
    /// Checks the settings for a layer with these heads, so that a layer can be made of them. Heads themselves
    /// are not checked.
    ///
    /// # Errors
    /// With the first setting that is out of its range.
    pub fn check(&self, heads: usize, kv_heads: usize) -> Checked {
        match self {
            Self::Dense => Ok(()),
            Self::Linformer(linformer) => {
                at_least_one("max_tokens", linformer.max_tokens)?;
                at_least_one("rank", linformer.rank)
            }
            Self::BigBird(BigBirdConfig { block, window, .. }) => {
                at_least_one("block", *block)?;
                if window.is_multiple_of(2) {
                    refused("window", "an odd number", window)
                } else {
                    Ok(())
                }
            }
            Self::Performer(performer) => at_least_one("features", performer.features),
            Self::TreeFine(tree) => {
                tree.router.check(heads, kv_heads)?;
                if !(0.0..1.0).contains(&tree.dropout) {
                    return refused("dropout", "0 to below 1", tree.dropout);
                }
                if tree.dropout > 0.0 && matches!(tree.router.surrogate, Surrogate::Soft { .. }) {
                    return refused("dropout", "0 with the soft surrogate", tree.dropout);
                }
                Ok(())
            }
            Self::TreeCoarse(tree) => {
                tree.router.check(heads, kv_heads)?;
                match &tree.router.alignment {
                    None => Ok(()),
                    Some(alignment) => refused(
                        "router.alignment",
                        "null, since means are not aligned",
                        format!("{} rows", alignment.rows),
                    ),
                }
            }
        }
    }
}

impl RouterConfig {
    const MOST_LEAVES: usize = 1 << 16;

    fn check(&self, heads: usize, kv_heads: usize) -> Checked {
        let branching = "router.branching";
        if let Some(factor) = self.branching.iter().find(|factor| **factor < 2) {
            return refused(branching, "factors of at least 2", factor);
        }
        let mut factors = self.branching.iter();
        let leaves = factors.try_fold(1usize, |leaves, factor| leaves.checked_mul(*factor));
        if leaves.is_none_or(|leaves| leaves > Self::MOST_LEAVES) {
            // Not the product, which may be beyond what is counted.
            let got = format!("those of {:?}", self.branching);
            return refused(branching, "at most 65536 leaves", got);
        }
        let is_one_tree = self.scope == TreeScope::PerLayer && self.sharing == TreeSharing::Shared;
        if is_one_tree && heads != kv_heads {
            return refused(
                "router.sharing",
                "separate with one tree per layer, where queries have more heads than keys",
                "shared",
            );
        }
        if !(self.balance_rate.is_finite() && self.balance_rate >= 0.0) {
            let expected = "a number of at least 0";
            return refused("router.balance_rate", expected, self.balance_rate);
        }
        if let Some(alignment) = self.alignment {
            at_least_one("router.alignment.rows", alignment.rows)?;
        }
        let temperature = self.surrogate.temperature();
        positive("router.surrogate.temperature", temperature)?;
        match self.surrogate {
            Surrogate::DenseGradient { clip, scale, .. } => {
                positive("router.surrogate.clip", clip)?;
                positive("router.surrogate.scale", scale.unwrap_or(1.0))
            }
            Surrogate::TopMargin { candidates, .. } => {
                at_least_one("router.surrogate.candidates", candidates)
            }
            Surrogate::Soft { .. } => Ok(()),
        }
    }
}
