//! What the generated tasks have in common: streams of random numbers and numbers of points.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::TaskError;
use crate::error::{check_batch, check_points};

/// What a stream of random numbers is for. Evaluation never repeats the draws of training, even with
/// the same seed.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Training = 0,
    Evaluation = 0x6576_616C,
    Picture = 0x7069_6374,
}

/// The stream of one step or one evaluation batch.
pub(crate) fn generator(seed: u64, purpose: Purpose, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ ((purpose as u64) << 32));
    rng.set_stream(stream);
    rng
}

/// The stream of a training step whose batch is drawn.
pub(crate) fn training(seed: u64, step: u64, batch_size: usize) -> Result<ChaCha8Rng, TaskError> {
    check_batch(batch_size)?;
    Ok(generator(seed, Purpose::Training, step))
}

/// The stream of each evaluation batch that is drawn.
pub(crate) fn evaluation(
    seed: u64,
    batches: usize,
    batch_size: usize,
) -> Result<impl ExactSizeIterator<Item = ChaCha8Rng>, TaskError> {
    check_batch(batch_size)?;
    Ok((0..batches).map(move |index| generator(seed, Purpose::Evaluation, index as u64)))
}

/// How many context points and targets there may be.
pub(crate) struct PointCounts {
    pub(crate) max_points: usize,
    pub(crate) min_context: usize,
    pub(crate) min_targets: usize,
}

impl PointCounts {
    /// Refuses ranges without context, without targets or without room for both.
    pub(crate) fn check(&self) -> Result<(), TaskError> {
        check_points(
            ("min_context", self.min_context),
            ("min_targets", self.min_targets),
        )?;
        let least = self.min_context.saturating_add(self.min_targets);
        if self.max_points <= least {
            let expected = format!("more than min_context + min_targets = {least}");
            return Err(TaskError::config("max_points", expected, self.max_points));
        }
        Ok(())
    }

    /// Numbers of context points and of targets, the second uniform given the first.
    pub(crate) fn draw(&self, rng: &mut ChaCha8Rng) -> (usize, usize) {
        let most = self.max_points - 1;
        let context = rng.random_range(self.min_context..=most - self.min_targets);
        (context, rng.random_range(self.min_targets..=most - context))
    }
}
