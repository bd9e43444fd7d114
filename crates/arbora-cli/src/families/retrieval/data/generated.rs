//! Tasks whose problems are drawn, without end.

use super::problem::{Problem, copy_problem};
use super::{Evaluation, Features, TaskData, Training};
use crate::families::EVALUATION_SEED;
use anyhow::Result;
use arbora::models::{EmbeddingKind, HeadKind, StdKind};
use arbora::tasks::bandit::{BanditConfig, BanditRegression, X_DIM};
use arbora::tasks::copy::{CopyConfig, SequenceCopy};
use arbora::tasks::gp::{GpConfig, GpRegression, Kernel};

/// Sequences to be mirrored.
pub fn copy(config: CopyConfig) -> Result<TaskData> {
    let copy = SequenceCopy::new(config)?;
    let (answers, classes) = (copy.answers(), copy.classes());
    let features = Features {
        d_context: classes,
        d_query: classes,
        d_position: 1,
        head: HeadKind::Classes { count: classes },
        embedding: EmbeddingKind::Sequence,
        most_tokens: copy.context(),
    };
    let held_out_answers = answers.clone();
    let training: Training = Box::new(move |seed, step, batch_size, device| {
        let batch = copy.batch(seed, step, batch_size, device)?;
        Ok(copy_problem(batch, &answers))
    });
    let evaluation: Evaluation = Box::new(move |batches, batch_size, device| {
        let problem = |index| {
            let batch = copy.eval_batch(EVALUATION_SEED, index, batch_size, device)?;
            Ok(copy_problem(batch, &held_out_answers))
        };
        (0..batches as u64).map(problem).collect()
    });
    Ok(TaskData {
        knows_answers: true,
        ..TaskData::new("sequences", features, training, evaluation)
    })
}

/// Functions drawn from Gaussian processes. They are measured on as many of each kernel: those of the training
/// kernel first, without a name of their own.
pub fn gp(config: GpConfig, std: StdKind) -> Result<TaskData> {
    let gp = GpRegression::new(config)?;
    let config = gp.config();
    let features = Features {
        d_context: 2,
        d_query: 1,
        d_position: 1,
        head: HeadKind::Gaussian { dim: 1, std },
        embedding: EmbeddingKind::Points,
        most_tokens: config.max_points - 1 - config.min_targets,
    };
    let trained = config.kernel;
    let training: Training = Box::new(move |seed, step, batch_size, device| {
        Ok(gp.batch(seed, step, batch_size, device)?.into())
    });
    let evaluation: Evaluation = Box::new(move |batches, batch_size, device| {
        let of = |kernel: Kernel| {
            gp.with_kernel(kernel)
                .eval_batches(EVALUATION_SEED, batches, batch_size, device)
        };
        let mut problems: Vec<Problem> = of(trained)?.map(Problem::from).collect();
        for (kernel, name) in [
            (Kernel::Rbf, "rbf"),
            (Kernel::Matern52, "matern"),
            (Kernel::Periodic, "periodic"),
        ] {
            if kernel != trained {
                problems.extend(of(kernel)?.map(|batch| Problem {
                    kind: Some(name),
                    ..batch.into()
                }));
            }
        }
        Ok(problems)
    });
    let items = "functions of each kernel";
    Ok(TaskData::new(items, features, training, evaluation))
}

/// Rewards of wheel bandits.
pub fn bandit(config: BanditConfig, std: StdKind) -> Result<TaskData> {
    let bandit = BanditRegression::new(config)?;
    let features = Features {
        d_context: X_DIM + 1,
        d_query: X_DIM,
        d_position: X_DIM,
        head: HeadKind::Gaussian { dim: 1, std },
        embedding: EmbeddingKind::Points,
        most_tokens: bandit.config().max_context,
    };
    let training: Training = Box::new(move |seed, step, batch_size, device| {
        Ok(bandit.batch(seed, step, batch_size, device)?.into())
    });
    let evaluation: Evaluation = Box::new(move |batches, batch_size, device| {
        let batches = bandit.eval_batches(EVALUATION_SEED, batches, batch_size, device)?;
        Ok(batches.map(Problem::from).collect())
    });
    Ok(TaskData::new("wheels", features, training, evaluation))
}
