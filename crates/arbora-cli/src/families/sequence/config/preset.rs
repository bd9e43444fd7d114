//! Where the settings of sequences start.

use super::{
    AttentionSettings, SequenceArchitecture, SequenceConfig, SequenceModelKind, SequenceTask,
    TreeTraining,
};
use crate::families::Preset;
use crate::families::sequence::data::SequenceSource;
use anyhow::{Result, bail};
use arbora::attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora::attention::{AlignmentConfig, RouterConfig, TreeCoarseConfig, TreeFineConfig};
use arbora::rl::train::{OptimizerConfig, TrainerConfig};
use arbora::tasks::recall::{NeedleConfig, RecallConfig, Stage};
use arbora::tree::routing::Surrogate;
use std::path::PathBuf;

impl SequenceConfig {
    /// The settings that a task starts from.
    ///
    /// # Errors
    /// For the published preset: no paper has published these tasks for these models.
    pub fn of_task(task: SequenceTask, preset: Preset) -> Result<Self> {
        if preset == Preset::Published {
            bail!(
                "--preset published: {} has no published settings for these models; use small",
                task.name()
            );
        }
        let stage = |length, steps| Stage { length, steps };
        let (data, steps, rows, branching, test_items) = match task {
            SequenceTask::Recall => {
                let recall = RecallConfig {
                    curriculum: vec![stage(64, 200), stage(128, 100), stage(256, 50)],
                    ..RecallConfig::default()
                };
                (SequenceSource::Recall(recall), 450, 64, vec![2; 4], 128)
            }
            SequenceTask::Needle => {
                let needle = NeedleConfig {
                    curriculum: vec![stage(64, 300), stage(256, 100)],
                    ..NeedleConfig::default()
                };
                // All rows: few of them ask. More items for the same reason.
                (SequenceSource::Needle(needle), 450, 512, vec![2; 3], 512)
            }
        };
        Ok(Self {
            task,
            model: SequenceModelKind::Dense,
            from: None,
            data,
            batch_size: 8,
            eval_batch_size: 8,
            eval_items: 32,
            test_items,
            architecture: SequenceArchitecture {
                d_model: 64,
                heads: 2,
                kv_heads: 2,
                layers: 1,
                d_ff: 128,
                positions: false,
                local_mixing: true,
                causal: false,
                dropout: 0.0,
                dense_layers: 0,
            },
            attention: AttentionSettings {
                tree_fine: trees(branching, rows),
                tree_fine_kary: trees(vec![4, 4], rows),
                tree_coarse: means(vec![4, 4, 4, 4]),
                // About a quarter of the cost of dense attention, or less.
                linformer: LinformerConfig {
                    rank: 64,
                    ..LinformerConfig::default()
                },
                big_bird: BigBirdConfig {
                    block: 16,
                    global: 1,
                    ..BigBirdConfig::default()
                },
                performer: PerformerConfig {
                    features: 64,
                    ..PerformerConfig::default()
                },
            },
            trees: TreeTraining {
                lambda_balance: 4.0,
                lambda_alignment: 1.0,
                anneal: false,
                rate: 3.0,
                median_split: true,
            },
            trainer: TrainerConfig {
                steps,
                eval_every: 50,
                checkpoint_every: 100,
                learning_rate: 5e-3,
                final_learning_rate: 1.5e-4,
                warmup_steps: 30,
                optimizer: OptimizerConfig {
                    beta_2: 0.98,
                    ..OptimizerConfig::default()
                },
                ..TrainerConfig::default()
            },
        })
    }

    /// The same settings for a run that starts from the weights of another one: fewer steps at a lower rate,
    /// all on whole sequences.
    #[must_use]
    pub fn started_from(mut self, run: PathBuf) -> Self {
        match &mut self.data {
            SequenceSource::Recall(recall) => recall.curriculum.clear(),
            SequenceSource::Needle(needle) => needle.curriculum.clear(),
        }
        self.from = Some(run);
        self.trainer = TrainerConfig {
            steps: 400,
            eval_every: 50,
            learning_rate: 3e-3,
            final_learning_rate: 9e-5,
            warmup_steps: 10,
            ..self.trainer
        };
        self
    }
}

/// Trees of TF-Attention as they start out.
///
/// - rows: queries and keys whose routes are aligned with dense attention in a step
fn trees(branching: Vec<usize>, rows: usize) -> TreeFineConfig {
    TreeFineConfig {
        router: RouterConfig {
            surrogate: SURROGATE,
            alignment: Some(AlignmentConfig { rows }),
            ..RouterConfig::new(branching)
        },
        ..TreeFineConfig::default()
    }
}

/// Trees of TC-Attention as they start out. Rows are normalised, since trees learn better so; folding the
/// projections into the trees would need them as they are.
fn means(branching: Vec<usize>) -> TreeCoarseConfig {
    let defaults = TreeCoarseConfig::default();
    TreeCoarseConfig {
        router: RouterConfig {
            branching,
            surrogate: SURROGATE,
            normalize: true,
            ..defaults.router
        },
        ..defaults
    }
}

const SURROGATE: Surrogate = Surrogate::TopMargin {
    candidates: 2,
    temperature: 0.3,
};
