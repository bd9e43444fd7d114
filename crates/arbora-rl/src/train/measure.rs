//! From the measurements of batches to the means of an evaluation.

use rand_chacha::ChaCha8Rng;

use super::{Measurement, TrainableModel};
use crate::seed::{self, Purpose};

/// Sums of measurements over batches, by name, in the order in which the names came.
#[derive(Debug, Default)]
pub(crate) struct Totals(Vec<Measurement>);

impl Totals {
    pub(crate) fn add(&mut self, measured: &[Measurement]) {
        for Measurement { name, sum, weight } in measured {
            match self.0.iter_mut().find(|total| total.name == *name) {
                Some(total) => {
                    total.sum += sum;
                    total.weight += weight;
                }
                None => self.0.push(Measurement::new(name, *sum, *weight)),
            }
        }
    }

    /// The means, and behind them what a model derives from these.
    pub(crate) fn means<M: TrainableModel>(self, model: &M) -> Vec<(String, f64)> {
        let totals = self.0.into_iter();
        let mut means: Vec<(String, f64)> = totals
            .map(|total| (total.name, total.sum / total.weight))
            .collect();
        means.extend(model.derive(&means));
        means
    }
}

/// The generator of an evaluation batch.
pub(crate) fn generator(seed: u64, index: u64) -> ChaCha8Rng {
    seed::rng(seed, Purpose::Evaluation, index)
}

/// Means of every measurement over batches, and what follows from them: what an evaluation of a [`Trainer`] with the
/// same seed reports.
///
/// - model: in validation mode, on the device of the batches
///
/// [`Trainer`]: super::Trainer
pub fn measure<M: TrainableModel>(
    model: &M,
    batches: impl IntoIterator<Item = M::Batch>,
    seed: u64,
) -> Vec<(String, f64)> {
    let mut totals = Totals::default();
    for (index, batch) in batches.into_iter().enumerate() {
        totals.add(&model.evaluate(batch, &mut generator(seed, index as u64)));
    }
    totals.means(model)
}
