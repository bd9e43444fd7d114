//! What every task hands to every model: a batch of questions about contexts.

use arbora::models::{Context, Target};
use arbora::tasks::RegressionBatch;
use arbora::tasks::copy::CopyBatch;
use burn::tensor::{Bool, Int, Tensor, TensorData};

/// A batch of questions, their contexts and the truth.
#[derive(Clone, Debug)]
pub struct Problem {
    pub context: Context,
    /// `[batch, queries, d_query]`
    pub queries: Tensor<3>,
    pub target: Target,
    /// `[batch, queries]`, `true` = masked out; `None` where none is.
    pub target_mask: Option<Tensor<2, Bool>>,
    /// Context tokens per example, padding not counted, the mean over the batch.
    pub tokens: f64,
    /// For measuring: which of several kinds this batch is of; appended to the names of what is
    /// measured.
    pub kind: Option<&'static str>,
    /// `[batch, queries]`: the token that answers each query, where a task knows it. Read by the
    /// oracle control alone.
    pub answers: Option<Tensor<2, Int>>,
}

impl From<RegressionBatch> for Problem {
    fn from(batch: RegressionBatch) -> Self {
        let tokens = mean(&batch.context_counts);
        let context_mask = needed(batch.context_mask, &batch.context_counts);
        Self {
            context: Context::points(batch.context_x, batch.context_y, context_mask),
            queries: batch.target_x,
            target: Target::Values(batch.target_y),
            target_mask: needed(batch.target_mask, &batch.target_counts),
            tokens,
            kind: None,
            answers: None,
        }
    }
}

/// A batch of the copy task, and the token that answers each of its queries.
pub fn copy_problem(batch: CopyBatch, answers: &[usize]) -> Problem {
    let [examples, count] = batch.classes.dims();
    let answers: Vec<i64> = answers.iter().map(|token| *token as i64).collect();
    let answers = TensorData::new(answers, [1, count]);
    let device = batch.classes.device();
    Problem {
        target_mask: batch.target_mask(),
        context: Context::sequence(batch.tokens.clone(), batch.context_mask()),
        queries: batch.queries,
        target: Target::Classes(batch.classes),
        tokens: batch.active_tokens as f64,
        kind: None,
        answers: Some(Tensor::<2, Int>::from_data(answers, &device).expand([examples, count])),
    }
}

pub(crate) fn mean(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64
}

/// The mask, unless it masks nothing: unmasked attention is faster.
pub(crate) fn needed(mask: Tensor<2, Bool>, counts: &[usize]) -> Option<Tensor<2, Bool>> {
    let [_, padded] = mask.dims();
    counts.iter().any(|count| *count < padded).then_some(mask)
}
