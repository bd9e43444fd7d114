//! Where the settings of language models start.

use super::{
    LanguageArchitecture, LanguageConfig, LanguageModelKind, LanguageSource, LanguageTask,
    SelectorSettings,
};
use crate::families::Preset;
use crate::families::language::{TextSource, TokenizerSource};
use anyhow::{Result, bail};
use arbora::attention::AttentionKindConfig;
use arbora::models::tree_coder::{LeafHead, RouteOn, SelectorBalance, SelectorGradient};
use arbora::rl::BaselineConfig;
use arbora::rl::PolicyGradientConfig;
use arbora::rl::train::{OptimizerConfig, TrainerConfig};

impl LanguageConfig {
    /// The settings that a task starts from.
    ///
    /// # Errors
    /// For the published preset: the paper leaves its settings open.
    pub fn of_task(task: LanguageTask, preset: Preset) -> Result<Self> {
        if preset == Preset::Published {
            bail!("--preset published: TreeCoders has no published settings; use small");
        }
        Ok(Self {
            task,
            model: LanguageModelKind::TreeCoder,
            data: LanguageSource {
                source: TextSource::MobyDick,
                validation_source: None,
                tokenizer: TokenizerSource::Bpe { vocabulary: 512 },
                window: 64,
                mix_documents: false,
                validation: 0.1,
            },
            batch_size: 32,
            eval_batch_size: 32,
            eval_items: 128,
            test_items: 0,
            architecture: LanguageArchitecture {
                d_model: 64,
                heads: 2,
                kv_heads: 2,
                branching: 2,
                height: 2,
                blocks: vec![1],
                d_ff: vec![256],
                route_on: RouteOn::FirstN { tokens: 16 },
                head: LeafHead::Shared,
                attention: AttentionKindConfig::Dense,
                dropout: 0.0,
            },
            selector: SelectorSettings {
                gradient: SelectorGradient::ScaledDelta,
                balance: SelectorBalance::LossFree { rate: 1e-3 },
                hidden: None,
                detach: true,
                rate: 0.1,
            },
            lambda_attention: 1.0,
            trainer: TrainerConfig {
                steps: 600,
                eval_every: 100,
                checkpoint_every: 200,
                learning_rate: 8e-3,
                final_learning_rate: 4e-4,
                warmup_steps: 60,
                optimizer: OptimizerConfig {
                    beta_2: 0.99,
                    weight_decay: 0.1,
                    ..OptimizerConfig::default()
                },
                policy_gradient: PolicyGradientConfig {
                    baseline: BaselineConfig::BatchMean,
                    ..PolicyGradientConfig::default()
                },
                ..TrainerConfig::default()
            },
        })
    }
}
