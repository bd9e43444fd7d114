//! What types alone do not check.

use super::{SequenceConfig, SequenceModelKind};
use crate::config::LARGEST_SIZE;
use anyhow::{Result, anyhow, bail};
use arbora_attention::{RouterConfig, TreeScope, TreeSharing};
use arbora_tree::routing::Surrogate;

impl SequenceConfig {
    pub(super) fn check_settings(&self) -> Result<()> {
        if self.data.task() != self.task {
            bail!("data: of another task than {}", self.task.name());
        }
        let a = &self.architecture;
        let sizes = [
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("eval_items", self.eval_items, 1),
            ("test_items", self.test_items, 1),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.heads", a.heads, 1),
            ("architecture.kv_heads", a.kv_heads, 1),
            ("architecture.layers", a.layers, 1),
            ("architecture.d_ff", a.d_ff, 1),
        ];
        for (key, value, least) in sizes {
            if !(least..=LARGEST_SIZE).contains(&value) {
                bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
            }
        }
        for (key, whole, part) in [
            ("architecture.heads", a.d_model, a.heads),
            ("architecture.kv_heads", a.heads, a.kv_heads),
        ] {
            if !whole.is_multiple_of(part) {
                bail!("{key}: expected a divisor of {whole}, got {part}");
            }
        }
        if let Some(router) = self.router()
            && router.scope == TreeScope::PerLayer
            && router.sharing == TreeSharing::Shared
            && a.kv_heads != a.heads
        {
            bail!(
                "architecture.kv_heads: expected {} for a tree per layer that queries and keys share, got {}",
                a.heads,
                a.kv_heads
            );
        }
        if a.dense_layers > a.layers {
            bail!(
                "architecture.dense_layers: expected at most {}, got {}",
                a.layers,
                a.dense_layers
            );
        }
        in_unit("architecture.dropout", a.dropout)?;
        let trees = &self.trees;
        for (key, number) in [
            ("trees.lambda_balance", trees.lambda_balance),
            ("trees.lambda_alignment", trees.lambda_alignment),
            ("trees.rate", trees.rate),
        ] {
            if !(number.is_finite() && number >= 0.0) {
                bail!("{key}: expected a number of at least 0, got {number}");
            }
        }
        for (key, tree) in [
            ("attention.tree_fine", &self.attention.tree_fine),
            ("attention.tree_fine_kary", &self.attention.tree_fine_kary),
        ] {
            check_router(key, &tree.router)?;
            in_unit(&format!("{key}.dropout"), tree.dropout)?;
            if tree.dropout > 0.0 && matches!(tree.router.surrogate, Surrogate::Soft { .. }) {
                bail!(
                    "{key}.dropout: expected 0 with the soft surrogate, got {}",
                    tree.dropout
                );
            }
        }
        let others = &self.attention;
        check_router("attention.tree_coarse", &others.tree_coarse.router)?;
        if others.tree_coarse.router.alignment.is_some() {
            bail!("attention.tree_coarse.router.alignment: means are not aligned, expected null");
        }
        for (key, value, least) in [
            ("attention.linformer.rank", others.linformer.rank, 1),
            ("attention.big_bird.block", others.big_bird.block, 1),
            ("attention.big_bird.window", others.big_bird.window, 1),
            ("attention.big_bird.random", others.big_bird.random, 0),
            ("attention.big_bird.global", others.big_bird.global, 0),
            ("attention.performer.features", others.performer.features, 1),
        ] {
            if !(least..=LARGEST_SIZE).contains(&value) {
                bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
            }
        }
        if others.big_bird.window.is_multiple_of(2) {
            bail!(
                "attention.big_bird.window: expected an odd number, got {}",
                others.big_bird.window
            );
        }
        self.lookup()?;
        if a.causal
            && matches!(
                self.model,
                SequenceModelKind::Linformer | SequenceModelKind::BigBird
            )
        {
            bail!(
                "architecture.causal: {} has no causal form",
                self.model.name()
            );
        }
        let trainer = &self.trainer;
        trainer
            .validate()
            .map_err(|error| anyhow!("trainer.{error}"))
    }
}

fn check_router(key: &str, router: &RouterConfig) -> Result<()> {
    let mut leaves = 1usize;
    for factor in &router.branching {
        if *factor < 2 {
            bail!("{key}.router.branching: expected factors of at least 2, got {factor}");
        }
        leaves = leaves.saturating_mul(*factor);
    }
    if leaves > LARGEST_SIZE {
        // Not the product, which may be beyond what is counted.
        bail!(
            "{key}.router.branching: expected at most {LARGEST_SIZE} leaves, got those of {:?}",
            router.branching
        );
    }
    if !(router.balance_rate.is_finite() && router.balance_rate >= 0.0) {
        bail!(
            "{key}.router.balance_rate: expected a number of at least 0, got {}",
            router.balance_rate
        );
    }
    if let Some(alignment) = router.alignment
        && alignment.rows == 0
    {
        bail!("{key}.router.alignment.rows: expected at least 1, got 0");
    }
    let surrogate = &router.surrogate;
    let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => bail!("{key}.router.surrogate.{name}: expected a positive number, got {value}"),
    };
    positive("temperature", surrogate.temperature())?;
    match *surrogate {
        Surrogate::TopMargin { candidates: 0, .. } => {
            bail!("{key}.router.surrogate.candidates: expected at least 1, got 0")
        }
        Surrogate::DenseGradient { clip, scale, .. } => {
            positive("clip", clip)?;
            positive("scale", scale.unwrap_or(1.0))?;
        }
        _ => {}
    }
    Ok(())
}

fn in_unit(key: &str, rate: f64) -> Result<()> {
    if !(0.0..1.0).contains(&rate) {
        bail!("{key}: expected 0 to below 1, got {rate}");
    }
    Ok(())
}
