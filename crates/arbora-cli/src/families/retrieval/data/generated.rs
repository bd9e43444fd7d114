//! Tasks whose problems are drawn, without end.

use super::problem::{Problem, copy_problem};
use super::{Features, TaskData, with_path};
use crate::families::EVALUATION_SEED;
use anyhow::Result;
use arbora::models::{EmbeddingKind, HeadKind, StdKind};
use arbora::tasks::TaskError;
use arbora::tasks::bandit::{BanditConfig, BanditRegression, X_DIM};
use arbora::tasks::copy::{CopyConfig, SequenceCopy};
use arbora::tasks::gp::{GpConfig, GpRegression, Kernel};
use burn::tensor::Device;

/// Sequences to be mirrored.
pub struct CopyTask {
    copy: SequenceCopy,
    answers: Vec<usize>,
}

impl CopyTask {
    pub fn new(config: CopyConfig) -> Result<Self> {
        let copy = SequenceCopy::new(config).map_err(|error| with_path("data", error))?;
        let answers = copy.answers();
        Ok(Self { copy, answers })
    }
}

impl TaskData for CopyTask {
    fn features(&self) -> Features {
        let classes = self.copy.classes();
        Features {
            d_context: classes,
            d_query: classes,
            d_position: 1,
            head: HeadKind::Classes { count: classes },
            embedding: EmbeddingKind::Sequence,
            most_tokens: self.copy.context(),
        }
    }

    fn training(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<Problem, TaskError> {
        let batch = self.copy.batch(seed, step, batch_size, device)?;
        Ok(copy_problem(batch, &self.answers))
    }

    fn evaluation(
        &self,
        items: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        if batch_size == 0 {
            return Err(TaskError::EmptyBatch);
        }
        (0..items.div_ceil(batch_size) as u64)
            .map(|index| {
                let batch = self
                    .copy
                    .eval_batch(EVALUATION_SEED, index, batch_size, device)?;
                Ok(copy_problem(batch, &self.answers))
            })
            .collect()
    }

    fn items(&self) -> &'static str {
        "sequences"
    }

    fn count(&self) -> Option<usize> {
        None
    }

    fn knows_answers(&self) -> bool {
        true
    }
}

/// Functions drawn from Gaussian processes.
pub struct GpTask {
    gp: GpRegression,
    std: StdKind,
}

impl GpTask {
    pub fn new(config: GpConfig, std: StdKind) -> Result<Self> {
        let gp = GpRegression::new(config).map_err(|error| with_path("data", error))?;
        Ok(Self { gp, std })
    }
}

impl TaskData for GpTask {
    fn features(&self) -> Features {
        let config = self.gp.config();
        Features {
            d_context: 2,
            d_query: 1,
            d_position: 1,
            head: HeadKind::Gaussian {
                dim: 1,
                std: self.std,
            },
            embedding: EmbeddingKind::Points,
            most_tokens: config.max_points - 1 - config.min_targets,
        }
    }

    fn training(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<Problem, TaskError> {
        Ok(self.gp.batch(seed, step, batch_size, device)?.into())
    }

    /// `items` functions of each kernel: those of the training kernel first, without a name of their
    /// own.
    fn evaluation(
        &self,
        items: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        let trained = self.gp.config().kernel;
        let kernels = [
            (Kernel::Rbf, "rbf"),
            (Kernel::Matern52, "matern"),
            (Kernel::Periodic, "periodic"),
        ];
        let batches = items.div_ceil(batch_size.max(1));
        let of = |kernel: Kernel| {
            self.gp
                .with_kernel(kernel)
                .eval_batches(EVALUATION_SEED, batches, batch_size, device)
        };
        let mut problems: Vec<Problem> = of(trained)?.map(Problem::from).collect();
        for (kernel, name) in kernels {
            if kernel != trained {
                problems.extend(of(kernel)?.map(|batch| Problem::from(batch).of_kind(name)));
            }
        }
        Ok(problems)
    }

    fn items(&self) -> &'static str {
        "functions of each kernel"
    }

    fn count(&self) -> Option<usize> {
        None
    }
}

/// Rewards of wheel bandits.
pub struct BanditTask {
    bandit: BanditRegression,
    std: StdKind,
}

impl BanditTask {
    pub fn new(config: BanditConfig, std: StdKind) -> Result<Self> {
        let bandit = BanditRegression::new(config).map_err(|error| with_path("data", error))?;
        Ok(Self { bandit, std })
    }
}

impl TaskData for BanditTask {
    fn features(&self) -> Features {
        Features {
            d_context: X_DIM + 1,
            d_query: X_DIM,
            d_position: X_DIM,
            head: HeadKind::Gaussian {
                dim: 1,
                std: self.std,
            },
            embedding: EmbeddingKind::Points,
            most_tokens: self.bandit.config().max_context,
        }
    }

    fn training(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<Problem, TaskError> {
        Ok(self.bandit.batch(seed, step, batch_size, device)?.into())
    }

    fn evaluation(
        &self,
        items: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        let batches = items.div_ceil(batch_size.max(1));
        let batches = self
            .bandit
            .eval_batches(EVALUATION_SEED, batches, batch_size, device)?;
        Ok(batches.map(Problem::from).collect())
    }

    fn items(&self) -> &'static str {
        "wheels"
    }

    fn count(&self) -> Option<usize> {
        None
    }
}
