//! Pulling arms of the wheel bandit.
//!
//! The loop of Riquelme, Tucker and Snoek ([arXiv 1802.09127](https://arxiv.org/abs/1802.09127), 2018,
//! section 5.4) with a model that learned to predict rewards from interactions, as neural processes are
//! judged (Garnelo and others, [arXiv 1807.01622](https://arxiv.org/abs/1807.01622), 2018, section 4.4):
//! nothing is trained inside the loop.

use super::{Cost, Growing, Settings, View, timed};
use crate::families::retrieval::RetrievalModel;
use anyhow::Result;
use arbora::tasks::bandit::{ARMS, REWARD_SCALE, WheelBandit, X_DIM};
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;

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
        let repeats = self.chosen.iter().zip(&self.uniform);
        repeats
            .map(|(chosen, uniform)| {
                let sum = |regrets: &[f64]| regrets[from..to].iter().sum::<f64>();
                100.0 * sum(chosen) / sum(uniform)
            })
            .collect()
    }
}

/// Lets a model choose arms in `repeats` worlds of each radius in [`DELTAS`].
///
/// The worlds of all radii have the same places and the same noise.
///
/// # Errors
/// If a prediction is not finite.
pub fn run(
    model: &RetrievalModel,
    view: View,
    settings: &Settings,
    device: &Device,
    mut after_round: impl FnMut(),
) -> Result<(Vec<Regrets>, Cost)> {
    let wheels = DELTAS.map(|delta| WheelBandit::new(delta).expect("a radius within the disk"));
    // The repeats of the first radius, then of the second.
    let worlds: Vec<(usize, usize)> = (0..wheels.len())
        .flat_map(|wheel| (0..settings.repeats).map(move |repeat| (wheel, repeat)))
        .collect();
    let mut world_numbers: Vec<_> = worlds
        .iter()
        .map(|(_, repeat)| settings.world(*repeat))
        .collect();
    let mut choice_numbers = settings.choices(worlds.len());
    let mut growing = Growing::new(model, view, worlds.len(), settings.seed, device);
    let mut regrets: Vec<Regrets> = DELTAS
        .iter()
        .map(|_| Regrets {
            chosen: vec![Vec::new(); settings.repeats],
            uniform: vec![Vec::new(); settings.repeats],
        })
        .collect();
    let mut cost = Cost::default();
    for round in 0..settings.rounds {
        timed(&mut cost.seconds, || {
            let places: Vec<[f32; 2]> = worlds
                .iter()
                .zip(&mut world_numbers)
                .map(|((wheel, _), numbers)| wheels[*wheel].context(numbers))
                .collect();
            let predictions = (round >= settings.random_rounds)
                .then(|| growing.predict(questions(&places, device)));
            let mut seen = (Vec::new(), Vec::new());
            for (at, (wheel, repeat)) in worlds.iter().enumerate() {
                let arm = match &predictions {
                    None => choice_numbers[at].random_range(0..ARMS),
                    Some(predictions) => {
                        let arms = &predictions[at * ARMS..(at + 1) * ARMS];
                        settings.choice.take(arms, &mut choice_numbers[at])?
                    }
                };
                let place = places[at];
                let reward = wheels[*wheel].reward(place, arm, &mut world_numbers[at]);
                seen.0.extend(WheelBandit::point(place, arm));
                seen.1.push(reward / REWARD_SCALE);
                let means = wheels[*wheel].optimal(place).map(f64::from);
                let best = means.into_iter().fold(f64::NEG_INFINITY, f64::max);
                regrets[*wheel].chosen[*repeat].push(best - means[arm]);
                let average = means.iter().sum::<f64>() / ARMS as f64;
                regrets[*wheel].uniform[*repeat].push(best - average);
            }
            growing.append(seen.0, seen.1)
        })?;
        after_round();
    }
    cost.nodes_read = growing.nodes_read;
    Ok((regrets, cost))
}

/// What every arm pays at each place, `[worlds, ARMS, X_DIM]`.
fn questions(places: &[[f32; 2]], device: &Device) -> Tensor<3> {
    let points = places
        .iter()
        .flat_map(|place| (0..ARMS).flat_map(|arm| WheelBandit::point(*place, arm)));
    let shape = [places.len(), ARMS, X_DIM];
    Tensor::from_data(TensorData::new(points.collect::<Vec<_>>(), shape), device)
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
