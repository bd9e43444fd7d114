//! What types alone do not check.

use super::{SequenceConfig, SequenceModelKind};
use crate::families::{check_sizes, check_weights};
use anyhow::{Result, anyhow, bail};
use arbora::attention::AttentionKindConfig::{self, BigBird, TreeCoarse, TreeFine};
use arbora::attention::{TreeScope, TreeSharing};

impl SequenceConfig {
    /// Checks what types alone do not.
    ///
    /// # Errors
    /// With the first setting that is out of range.
    pub fn check(&self) -> Result<()> {
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
        check_sizes(sizes)?;
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
        if !(0.0..1.0).contains(&a.dropout) {
            bail!(
                "architecture.dropout: expected 0 to below 1, got {}",
                a.dropout
            );
        }
        let trees = &self.trees;
        check_weights([
            ("trees.lambda_balance", trees.lambda_balance),
            ("trees.lambda_alignment", trees.lambda_alignment),
            ("trees.rate", trees.rate),
        ])?;
        let others = &self.attention;
        check_sizes([
            ("attention.linformer.rank", others.linformer.rank, 1),
            ("attention.big_bird.block", others.big_bird.block, 1),
            ("attention.big_bird.window", others.big_bird.window, 1),
            ("attention.big_bird.random", others.big_bird.random, 0),
            ("attention.big_bird.global", others.big_bird.global, 0),
            ("attention.performer.features", others.performer.features, 1),
        ])?;
        let check = |key: &str, kind: AttentionKindConfig| {
            // Of the model's own kind the heads were compared above.
            kind.check(a.heads, a.heads)
                .map_err(|error| anyhow!("attention.{key}.{error}"))
        };
        check("tree_fine", TreeFine(others.tree_fine.clone()))?;
        check("tree_fine_kary", TreeFine(others.tree_fine_kary.clone()))?;
        check("tree_coarse", TreeCoarse(others.tree_coarse.clone()))?;
        check("big_bird", BigBird(others.big_bird.clone()))?;
        self.lookup()?;
        if a.causal
            && matches!(
                self.model,
                SequenceModelKind::Linformer | SequenceModelKind::BigBird
            )
        {
            bail!(
                "architecture.causal: {} does not support causal masks",
                self.model.name()
            );
        }
        let trainer = &self.trainer;
        trainer.check().map_err(|error| anyhow!("trainer.{error}"))
    }
}
