//! Looking for the maximum of functions drawn from Gaussian processes.
//!
//! As neural processes are judged (Garnelo and others,
//! [arXiv 1807.01622](https://arxiv.org/abs/1807.01622), 2018, section 4.3): the model predicts a
//! function from the values seen so far, and the prediction says where to look next.

use super::{Cost, Settings, View, Worlds, play};
use crate::families::retrieval::RetrievalModel;
use anyhow::Result;
use arbora::tasks::gp::Kernel;
use arbora::tasks::optimisation::GpObjective;
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;

/// Where a function may be looked at: 401 places 0.01 apart on [-2, 2], where its maximum is too.
pub const CANDIDATES: usize = 401;

fn candidate(at: usize) -> f64 {
    (at as f64 / 100.0 - 2.0).clamp(-2.0, 2.0)
}

/// The functions of all repeats.
pub fn objectives(kernel: Kernel, settings: &Settings) -> Vec<GpObjective> {
    (0..settings.repeats)
        .map(|repeat| GpObjective::new(kernel, settings.world_seed(repeat)))
        .collect()
}

/// Simple regrets: by how much the best value seen until each round falls short of the maximum, in
/// units of the function, `[repeats][rounds]`.
pub type Regrets = Vec<Vec<f64>>;

/// Lets a model choose where to look.
pub fn run(
    model: &RetrievalModel,
    view: View,
    objectives: &[GpObjective],
    settings: &Settings,
    device: &Device,
    after_round: impl FnMut(),
) -> Result<(Regrets, Cost)> {
    let mut search = Search::new(objectives);
    let count = objectives.len();
    let cost = play(
        model,
        view,
        &mut search,
        count,
        settings,
        device,
        after_round,
    )?;
    Ok((search.regrets, cost))
}

/// Looks at places drawn uniformly. The first ones are those of every model.
pub fn random_search(objectives: &[GpObjective], settings: &Settings) -> Regrets {
    let mut numbers = settings.choices(objectives.len());
    let mut search = Search::new(objectives);
    for _ in 0..settings.rounds {
        for (world, numbers) in numbers.iter_mut().enumerate() {
            search.look(world, numbers.random_range(0..CANDIDATES));
        }
    }
    search.regrets
}

/// What was seen of each function.
struct Search<'a> {
    objectives: &'a [GpObjective],
    maxima: Vec<f64>,
    regrets: Regrets,
}

impl<'a> Search<'a> {
    fn new(objectives: &'a [GpObjective]) -> Self {
        Self {
            objectives,
            maxima: objectives.iter().map(|one| one.maximum().1).collect(),
            regrets: vec![Vec::new(); objectives.len()],
        }
    }
}

impl Worlds for Search<'_> {
    fn questions(&mut self, device: &Device) -> Tensor<3> {
        let places = (0..CANDIDATES).map(|at| candidate(at) as f32);
        let places = TensorData::new(places.collect::<Vec<_>>(), [1, CANDIDATES, 1]);
        Tensor::<3>::from_data(places, device).expand([self.objectives.len(), CANDIDATES, 1])
    }

    fn look(&mut self, world: usize, choice: usize) -> (Vec<f32>, f32) {
        let place = candidate(choice);
        let value = self.objectives[world].value(place);
        let before = self.regrets[world].last().copied().unwrap_or(f64::INFINITY);
        // Reading a value off the function's grid rounds it.
        let regret = (self.maxima[world] - value).max(0.0);
        self.regrets[world].push(regret.min(before));
        (vec![place as f32], value as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grow::Choice;

    #[test]
    fn candidates_reach_the_maximum_and_regret_never_grows() {
        let settings = Settings {
            rounds: 30,
            repeats: 3,
            random_rounds: 3,
            choice: Choice::Thompson,
            seed: 5,
        };
        let objectives = objectives(Kernel::Rbf, &settings);
        assert_ne!(objectives[0], objectives[1]);
        for objective in &objectives {
            let best = (0..CANDIDATES)
                .map(|at| objective.value(candidate(at)))
                .fold(f64::NEG_INFINITY, f64::max);
            assert!((best - objective.maximum().1).abs() < 1e-9);
        }
        let regrets = random_search(&objectives, &settings);
        assert_eq!(regrets, random_search(&objectives, &settings));
        for regrets in regrets {
            assert_eq!(regrets.len(), 30);
            assert!(regrets.windows(2).all(|pair| pair[0] >= pair[1]));
            assert!(*regrets.last().unwrap() >= 0.0);
        }
    }
}
