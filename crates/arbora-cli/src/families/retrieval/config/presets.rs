//! Where settings start, by task.

use super::{Architecture, RetrievalConfig, RetrievalModelKind, RetrievalTask};
use crate::families::Preset;
use crate::families::retrieval::data::Source;
use arbora::attention::GhostNodes;
use arbora::models::{Initialization, RewardKind, StdKind};
use arbora::rl::train::{OptimizerConfig, TrainerConfig};
use arbora::rl::{BaselineConfig, PolicyGradientConfig};
use arbora::tasks::bandit::BanditConfig;
use arbora::tasks::copy::{CopyConfig, Curriculum};
use arbora::tasks::gp::GpConfig;
use arbora::tasks::images::ImageCompletionConfig;
use arbora::tasks::series::SeriesConfig;
use arbora::tree::{Layout, TokenOrder};
use serde::de::IgnoredAny;

/// The published network of all tasks.
const NETWORK: Architecture = Architecture {
    d_model: 64,
    d_ff: 128,
    heads: 4,
    embedding_depth: 4,
    encoder_layers: 6,
    dropout: 0.0,
    std: StdKind::Exp,
    initialization: Initialization::Published,
    branching: 2,
    layout: Layout::Published,
    order: TokenOrder::Given,
    ghosts: GhostNodes::Published,
    detach_children: true,
};

/// What the published settings of all tasks share.
fn published(task: RetrievalTask, data: Source) -> RetrievalConfig {
    RetrievalConfig {
        task,
        model: RetrievalModelKind::ReTreever,
        compare_with: IgnoredAny,
        data,
        points: None,
        batch_size: 16,
        eval_batch_size: 16,
        eval_items: 0,
        test_items: 0,
        architecture: NETWORK,
        lambda_ca: 1.0,
        lambda_guide: 0.0,
        reward: RewardKind::Published,
        samples: 1,
        trainer: TrainerConfig::default(),
    }
}

/// Less noise than the published estimator, which has no baseline.
fn batch_mean(trainer: &TrainerConfig) -> PolicyGradientConfig {
    PolicyGradientConfig {
        baseline: BaselineConfig::BatchMean,
        ..trainer.policy_gradient
    }
}

pub(super) fn images(preset: Preset) -> RetrievalConfig {
    let base = published(RetrievalTask::Images, Source::Sample);
    let published = RetrievalConfig {
        points: Some(ImageCompletionConfig::default()),
        batch_size: 100,
        architecture: Architecture {
            std: StdKind::Bounded,
            // The published order of grey images: by column.
            order: TokenOrder::Axis(1),
            ..NETWORK
        },
        trainer: TrainerConfig {
            steps: 48_000,
            eval_every: 2_400,
            checkpoint_every: 2_400,
            clip_norm: None,
            ..base.trainer.clone()
        },
        ..base
    };
    match preset {
        Preset::Published => published,
        Preset::Small => RetrievalConfig {
            batch_size: 16,
            eval_items: 160,
            architecture: Architecture {
                encoder_layers: 2,
                layout: Layout::LeftFilled,
                order: TokenOrder::KdTree,
                ghosts: GhostNodes::Masked,
                ..published.architecture
            },
            trainer: TrainerConfig {
                steps: 900,
                eval_every: 150,
                checkpoint_every: 150,
                learning_rate: 1e-3,
                warmup_steps: 50,
                clip_norm: Some(1.0),
                policy_gradient: batch_mean(&published.trainer),
                ..published.trainer
            },
            ..published
        },
    }
}

pub(super) fn copy(preset: Preset) -> RetrievalConfig {
    let base = published(RetrievalTask::Copy, Source::Copy(CopyConfig::default()));
    let published = RetrievalConfig {
        batch_size: 128,
        eval_batch_size: 64,
        eval_items: 256,
        test_items: 10_048,
        architecture: Architecture {
            encoder_layers: 0,
            dropout: 0.1,
            ..NETWORK
        },
        trainer: TrainerConfig {
            optimizer: OptimizerConfig {
                beta_1: 0.1,
                ..base.trainer.optimizer
            },
            ..base.trainer.clone()
        },
        ..base
    };
    match preset {
        Preset::Published => published,
        Preset::Small => RetrievalConfig {
            data: Source::Copy(CopyConfig {
                curriculum: Some(Curriculum {
                    start: 16,
                    steps: 40,
                }),
                ..CopyConfig::default()
            }),
            architecture: Architecture {
                dropout: 0.0,
                initialization: Initialization::HePositions,
                layout: Layout::LeftFilled,
                ghosts: GhostNodes::Masked,
                ..published.architecture
            },
            lambda_guide: 1.0,
            trainer: TrainerConfig {
                steps: 600,
                eval_every: 25,
                checkpoint_every: 100,
                learning_rate: 2e-3,
                warmup_steps: 100,
                optimizer: OptimizerConfig::default(),
                policy_gradient: batch_mean(&published.trainer),
                ..published.trainer
            },
            ..published
        },
    }
}

pub(super) fn gp(preset: Preset) -> RetrievalConfig {
    let base = published(RetrievalTask::Gp, Source::Gp(GpConfig::default()));
    let published = RetrievalConfig {
        eval_items: 1_600,
        test_items: 48_000,
        ..base
    };
    match preset {
        Preset::Published => published,
        Preset::Small => RetrievalConfig {
            test_items: 8_000,
            architecture: Architecture {
                layout: Layout::LeftFilled,
                ghosts: GhostNodes::Masked,
                encoder_layers: 4,
                ..published.architecture
            },
            trainer: TrainerConfig {
                steps: 30_000,
                eval_every: 3_000,
                learning_rate: 1e-3,
                warmup_steps: 500,
                policy_gradient: batch_mean(&published.trainer),
                ..published.trainer
            },
            ..published
        },
    }
}

pub(super) fn series(preset: Preset) -> RetrievalConfig {
    let base = published(
        RetrievalTask::Series,
        Source::SeriesSample(SeriesConfig::default()),
    );
    let published = RetrievalConfig {
        reward: RewardKind::Accuracy,
        ..base
    };
    match preset {
        Preset::Published => published,
        Preset::Small => RetrievalConfig {
            architecture: Architecture {
                encoder_layers: 2,
                initialization: Initialization::HePositions,
                layout: Layout::LeftFilled,
                ghosts: GhostNodes::Masked,
                ..published.architecture
            },
            trainer: TrainerConfig {
                steps: 600,
                eval_every: 100,
                checkpoint_every: 100,
                learning_rate: 1e-3,
                warmup_steps: 50,
                policy_gradient: batch_mean(&published.trainer),
                ..published.trainer
            },
            ..published
        },
    }
}

pub(super) fn bandit(preset: Preset) -> RetrievalConfig {
    let base = published(
        RetrievalTask::Bandit,
        Source::Bandit(BanditConfig::default()),
    );
    let published = RetrievalConfig {
        eval_items: 160,
        test_items: 1_600,
        architecture: Architecture {
            // Tokens are encoded one by one and trees fill from the left, so that contexts can grow.
            encoder_layers: 0,
            layout: Layout::LeftFilled,
            ghosts: GhostNodes::Masked,
            ..NETWORK
        },
        ..base
    };
    match preset {
        Preset::Published => published,
        Preset::Small => RetrievalConfig {
            trainer: TrainerConfig {
                steps: 4_000,
                eval_every: 500,
                checkpoint_every: 500,
                learning_rate: 1e-3,
                warmup_steps: 100,
                policy_gradient: batch_mean(&published.trainer),
                ..published.trainer
            },
            ..published
        },
    }
}
