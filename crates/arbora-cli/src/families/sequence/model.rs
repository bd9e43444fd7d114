//! The transformer as the trainer wants it: what a step minimises and what an evaluation measures.

use super::{SequenceBatch, SequenceConfig};
use crate::families::leaves::{UNANSWERED, alone, mean_of_share};
use crate::families::training::{count_asked, mean_of, not_decaying};
use arbora::attention::RoutingReport;
use arbora::attention::flops::RunCost;
use arbora::models::prediction::masked_average;
use arbora::models::{
    Prediction, RewardKind, Target, Treeformer, TreeformerOptions, TreeformerOutput,
};
use arbora::rl::train::{Measurement, ParameterGroup, StepOutput, TrainableModel};
use arbora::tasks::recall::LookupBatch;
use arbora::tree::routing::Surrogate;
use burn::module::Module;
use burn::tensor::Tensor;
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// A transformer with what its training needs.
#[derive(Module, Debug)]
pub struct SequenceModel {
    network: Treeformer,
    #[module(skip)]
    config: SequenceConfig,
}

impl SequenceModel {
    /// A network, trained as a configuration says.
    pub fn new(config: &SequenceConfig, network: Treeformer) -> Self {
        Self {
            network,
            config: config.clone(),
        }
    }

    pub fn into_network(self) -> Treeformer {
        self.network
    }

    /// What the network says of sequences.
    pub fn forward(&self, batch: &LookupBatch, options: &TreeformerOptions) -> TreeformerOutput {
        self.network.forward(batch.tokens.clone(), None, options)
    }

    /// The gradient of routes at this point of a training, where it is annealed: 4 candidates, then 2, then
    /// 1, for a third of the steps each.
    fn surrogate(&self, progress: f64) -> Option<Surrogate> {
        let router = self.config.router().filter(|_| self.config.trees.anneal)?;
        Some(Surrogate::TopMargin {
            candidates: [4, 2, 1][((3.0 * progress) as usize).min(2)],
            temperature: router.surrogate.temperature(),
        })
    }
}

impl TrainableModel for SequenceModel {
    type Batch = SequenceBatch;

    fn training_step(&self, batch: SequenceBatch, rng: &mut ChaCha8Rng) -> StepOutput {
        let SequenceBatch { lookup, progress } = batch;
        let options = TreeformerOptions {
            surrogate: self.surrogate(progress),
            seed: Some(rng.next_u64()),
        };
        let TreeformerOutput { logits, routing } = self.forward(&lookup, &options);
        let prediction = Prediction::Classes { logits };
        let target = Target::Classes(lookup.classes);
        let mask = Some(&lookup.target_mask);
        let task_loss = prediction.loss(&target, mask);
        let right = masked_average(prediction.reward(&target, RewardKind::Accuracy), mask);

        let reports: Vec<RoutingReport> = routing.into_iter().flatten().collect();
        let balance = mean_of(
            reports
                .iter()
                .filter_map(|report| report.balance_loss.clone()),
        );
        let alignment = mean_of(
            reports
                .iter()
                .filter_map(|report| report.alignment_loss.clone()),
        );
        let mut loss = task_loss.clone();
        for (weight, auxiliary) in [
            (self.config.trees.lambda_balance, &balance),
            (self.config.trees.lambda_alignment, &alignment),
        ] {
            if let Some(auxiliary) = auxiliary {
                loss = loss + auxiliary.clone() * weight;
            }
        }
        let mut output = StepOutput::new(loss)
            .with_metric("log_likelihood", -task_loss)
            .with_metric("accuracy", right);
        if !reports.is_empty() {
            let mean = |share: fn(&RoutingReport) -> &Tensor<2>| {
                let shares = reports.iter().map(|report| share(report).clone());
                Tensor::cat(shares.collect(), 1).mean()
            };
            let unanswered = mean(|report| &report.queries_without_key) * 100.0;
            output = output
                .with_metric("cost_ratio", mean(|report| &report.cost_ratio))
                .with_metric(UNANSWERED, unanswered);
        }
        for (name, auxiliary) in [("balance", balance), ("alignment", alignment)] {
            if let Some(auxiliary) = auxiliary {
                output = output.with_metric(name, auxiliary);
            }
        }
        output
    }

    /// Trees do not decay: a hyperplane drawn to 0 sends every token the way of its bias.
    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        let trees = self.network.tree_parameter_ids();
        let group = not_decaying(trees, self.config.trees.rate);
        group.into_iter().collect()
    }

    fn evaluate(&self, batch: SequenceBatch, _: &mut ChaCha8Rng) -> Vec<Measurement> {
        let lookup = batch.lookup;
        let TreeformerOutput { logits, routing } =
            self.forward(&lookup, &TreeformerOptions::default());
        let [examples, tokens] = lookup.tokens.dims();
        let prediction = Prediction::Classes { logits };
        let target = Target::Classes(lookup.classes);
        let mask = lookup.target_mask;
        let asked = count_asked(&mask);
        let mean = |values| f64::from(masked_average(values, Some(&mask)).into_scalar::<f32>());
        let likelihood = mean(prediction.log_likelihood(&target));
        let accuracy = mean(prediction.reward(&target, RewardKind::Accuracy));
        let mut measured = vec![
            Measurement::new("log_likelihood", likelihood * asked, asked),
            Measurement::new("accuracy", accuracy * asked, asked),
        ];
        measured.extend(cost(&self.network, &routing, examples, tokens));
        measured
    }
}

impl SequenceModel {
    /// Where the tokens of a batch went in each layer; `None` for a layer without trees.
    pub fn routing(&self, batch: &SequenceBatch) -> Vec<Option<RoutingReport>> {
        self.forward(&batch.lookup, &TreeformerOptions::default())
            .routing
    }
}

/// What attention cost, by actual counts, and how tokens spread over leaves.
fn cost(
    network: &Treeformer,
    routing: &[Option<RoutingReport>],
    examples: usize,
    tokens: usize,
) -> Vec<Measurement> {
    let weight = examples as f64;
    let mut cost = RunCost::default();
    for (layer, (block, report)) in network.blocks.iter().zip(routing).enumerate() {
        // Costs are linear in the share of pairs that meet, so the mean over examples is exact.
        let share = report
            .as_ref()
            .map(|report| mean_of_share(&report.cost_ratio));
        cost.record(layer, &block.attention, [tokens, tokens], share);
    }
    let of = |name: &str, mean: f64| Measurement::new(name, mean * weight, weight);
    let mut measured = vec![of("core_flops_percent", 100.0 * cost.core_ratio())];
    let reports: Vec<&RoutingReport> = routing.iter().flatten().collect();
    if reports.is_empty() {
        return measured;
    }
    let ratios = reports
        .iter()
        .map(|report| mean_of_share(&report.cost_ratio));
    let ratio = ratios.sum::<f64>() / reports.len() as f64;
    measured.push(of("cost_ratio", ratio));
    measured.extend(alone(&reports).map(|(name, mean)| of(name, mean)));
    // Of the mean ratio, as a cost is: the mean of reciprocals would hide a collapsed tree.
    measured.push(Measurement::new("effective_leaves", weight, ratio * weight));
    type Extreme = fn(Tensor<3>) -> Tensor<3>;
    let extremes: [(&str, Extreme); 2] = [
        ("leaf_tokens_min", |counts| counts.min_dim(2)),
        ("leaf_tokens_max", |counts| counts.max_dim(2)),
    ];
    for (name, extreme) in extremes {
        let counts = reports.iter().map(|report| &report.counts);
        let counts = counts.flat_map(|counts| [counts.queries.clone(), counts.keys.clone()]);
        let means = counts.map(|counts| f64::from(extreme(counts).mean().into_scalar::<f32>()));
        measured.push(of(name, means.sum::<f64>() / (2 * reports.len()) as f64));
    }
    measured
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::super::SequenceModelKind;
    use super::*;
    use crate::families::{Family as _, Preset};
    use crate::settings::layered;
    use burn::module::{ModuleVisitor, Param, ParamId};
    use burn::tensor::Device;

    /// A small network with two layers.
    fn config(model: SequenceModelKind) -> SequenceConfig {
        let preset = SequenceConfig::preset("recall", Preset::Small, None).unwrap();
        let settings = [
            "data.length=16",
            "data.pairs=4",
            "data.keys=6",
            "data.values=3",
            "data.curriculum=[]",
            "architecture.d_model=8",
            "architecture.d_ff=8",
            "architecture.layers=2",
            "attention.tree_fine.router.branching=[2,2]",
            "trees.rate=2.5",
        ];
        let config = layered(&preset, None, &settings.map(String::from)).unwrap();
        SequenceConfig { model, ..config }
    }

    fn model(config: &SequenceConfig, device: &Device) -> SequenceModel {
        config.untrained(&config.load(None).unwrap(), device)
    }

    fn ids<M: Module>(module: &M) -> Vec<ParamId> {
        struct Ids(Vec<ParamId>);
        impl ModuleVisitor for Ids {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(param.id);
            }
        }
        let mut ids = Ids(Vec::new());
        module.visit(&mut ids);
        ids.0
    }

    #[test]
    fn trees_alone_are_a_group_that_does_not_decay_and_learns_at_its_rate() {
        let model = model(&config(SequenceModelKind::TreeFine), &Device::flex());
        let groups = model.parameter_groups();
        assert_eq!(groups.len(), 1);
        let group = &groups[0];
        assert!(!group.decays);
        assert_eq!(group.rate, 2.5);
        let of_trees = model.network.tree_parameter_ids();
        assert_eq!(
            of_trees.len(),
            2 * 2 * 2,
            "weights and biases of two levels in two layers"
        );
        for id in ids(&model) {
            assert_eq!(group.parameters.matches(&id, None), of_trees.contains(&id));
        }
        let dense = self::model(&config(SequenceModelKind::Dense), &Device::flex());
        assert!(dense.parameter_groups().is_empty());
    }

    #[test]
    fn annealed_candidates_fall_at_thirds_of_a_training() {
        let mut config = config(SequenceModelKind::TreeFine);
        let fixed = model(&config, &Device::flex());
        assert!(fixed.surrogate(0.0).is_none());
        config.trees.anneal = true;
        let annealed = model(&config, &Device::flex());
        let expected = config.router().unwrap().surrogate.temperature();
        for (progress, candidates) in [
            (0.0, 4),
            (0.33, 4),
            (0.34, 2),
            (0.66, 2),
            (0.67, 1),
            (1.0, 1),
        ] {
            let found = annealed.surrogate(progress);
            let expected = Surrogate::TopMargin {
                candidates,
                temperature: expected,
            };
            assert_eq!(found, Some(expected), "{progress}");
        }
    }
}
