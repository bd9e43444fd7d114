//! Pulling arms of the wheel bandit.
//!
//! The loop of Riquelme, Tucker and Snoek ([arXiv 1802.09127](https://arxiv.org/abs/1802.09127), 2018,
//! section 5.4) with a model that learned to predict rewards from interactions, as neural processes are
//! judged (Garnelo and others, [arXiv 1807.01622](https://arxiv.org/abs/1807.01622), 2018, section 4.4):
//! nothing is trained inside the loop.

use super::{Cost, Settings, View, Worlds, play};
use crate::families::retrieval::RetrievalModel;
use anyhow::Result;
use arbora::tasks::bandit::{ARMS, REWARD_SCALE, WheelBandit, X_DIM};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

/// Radii of the core that are published: the greater, the rarer the high reward.
pub const DELTAS: [f32; 5] = [0.5, 0.7, 0.9, 0.95, 0.99];

/// Regrets of one radius.
#[derive(Clone, Debug)]
pub struct Regrets {
    /// What the choice of each round lost against the best arm, in means: `[repeats][rounds]`.
    pub chosen: Vec<Vec<f64>>,
    /// What a uniformly random choice loses in expectation, at the same places: `[repeats][rounds]`.
    pub uniform: Vec<Vec<f64>>,
}

impl Regrets {
    /// The sum of regrets over rounds `from..to`, in per cent of that of uniform choice, for each
    /// repeat.
    pub fn percent(&self, from: usize, to: usize) -> Vec<f64> {
        let sum = |regrets: &[f64]| regrets[from..to].iter().sum::<f64>();
        let repeats = self.chosen.iter().zip(&self.uniform);
        let percent = repeats.map(|(chosen, uniform)| 100.0 * sum(chosen) / sum(uniform));
        percent.collect()
    }
}

/// Lets a model choose arms in `repeats` worlds of each radius in [`DELTAS`].
///
/// The worlds of all radii have the same places and the same noise.
pub fn run(
    model: &RetrievalModel,
    view: View,
    settings: &Settings,
    device: &Device,
    after_round: impl FnMut(),
) -> Result<(Vec<Regrets>, Cost)> {
    let of_delta = |_| Regrets {
        chosen: vec![Vec::new(); settings.repeats],
        uniform: vec![Vec::new(); settings.repeats],
    };
    let wheel = |delta| WheelBandit::new(delta).expect("a radius within the disk");
    let numbers = DELTAS.iter().flat_map(|_| 0..settings.repeats);
    let mut arms = Arms {
        wheels: DELTAS.map(wheel),
        repeats: settings.repeats,
        numbers: numbers.map(|repeat| settings.world(repeat)).collect(),
        places: Vec::new(),
        regrets: DELTAS.map(of_delta).into(),
    };
    let count = arms.numbers.len();
    let cost = play(model, view, &mut arms, count, settings, device, after_round)?;
    Ok((arms.regrets, cost))
}

/// The repeats of the first radius, then of the second.
struct Arms {
    wheels: [WheelBandit; DELTAS.len()],
    repeats: usize,
    /// Of each world.
    numbers: Vec<ChaCha8Rng>,
    /// Where each world is in this round.
    places: Vec<[f32; 2]>,
    regrets: Vec<Regrets>,
}

impl Worlds for Arms {
    fn questions(&mut self, device: &Device) -> Tensor<3> {
        let worlds = self.numbers.iter_mut().enumerate();
        let places = worlds.map(|(at, numbers)| self.wheels[at / self.repeats].context(numbers));
        self.places = places.collect();
        let points = self.places.iter();
        let points =
            points.flat_map(|place| (0..ARMS).flat_map(|arm| WheelBandit::point(*place, arm)));
        let shape = [self.places.len(), ARMS, X_DIM];
        Tensor::from_data(TensorData::new(points.collect::<Vec<_>>(), shape), device)
    }

    fn look(&mut self, world: usize, arm: usize) -> (Vec<f32>, f32) {
        let (delta, repeat) = (world / self.repeats, world % self.repeats);
        let (wheel, place) = (&self.wheels[delta], self.places[world]);
        let reward = wheel.reward(place, arm, &mut self.numbers[world]);
        let means = wheel.mean_rewards(place).map(f64::from);
        let best = means.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let average = means.iter().sum::<f64>() / ARMS as f64;
        let regrets = &mut self.regrets[delta];
        regrets.chosen[repeat].push(best - means[arm]);
        regrets.uniform[repeat].push(best - average);
        (WheelBandit::point(place, arm).into(), reward / REWARD_SCALE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regret_is_in_per_cent_of_uniform_choice_over_the_rounds_asked_for() {
        let regrets = Regrets {
            chosen: vec![vec![4.0, 1.0, 0.0], vec![0.0; 3]],
            uniform: vec![vec![2.0, 4.0, 4.0], vec![1.0; 3]],
        };
        assert_eq!(regrets.percent(0, 3), [50.0, 0.0]);
        assert_eq!(regrets.percent(0, 1), [200.0, 0.0]);
        assert_eq!(regrets.percent(1, 3), [12.5, 0.0]);
    }
}
