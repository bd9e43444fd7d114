//! Language models as the trainer wants them: what a step minimises and what an evaluation measures.

use super::{LanguageBatch, LanguageConfig};
use crate::families::FamilyModel;
use crate::families::leaves::alone;
use crate::families::training::{mean_of, not_decaying};
use anyhow::{Result, bail};
use arbora::models::prediction::masked_average;
use arbora::models::tree_coder::{
    Placement, RouteOn, SelectorGradient, SelectorKind, TreeCoderRouting,
};
use arbora::models::{Prediction, Target, TreeCoder, TreeCoderOptions, TreeCoderOutput};
use arbora::rl::train::{Decisions, Measurement, ParameterGroup, StepOutput, TrainableModel};
use burn::module::Module;
use burn::tensor::Tensor;
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// Leaves up to which the share of each is a metric of every training step. Of more, evaluations alone tell.
const LISTED_LEAVES: usize = 64;
/// Leaves up to which evaluations measure the share of each, and with it the smallest, the largest and how many are in
/// use. Of more, nothing is measured: means over batches are all that is kept, so the extremes need all shares.
const MEASURED_LEAVES: usize = 4096;

/// A TreeCoder with what its training needs.
#[derive(Module, Debug)]
pub struct LanguageModel {
    network: TreeCoder,
    #[module(skip)]
    config: LanguageConfig,
    /// Whether all sequences go to random leaves, whatever the selectors say.
    #[module(skip)]
    random_route: bool,
}

impl LanguageModel {
    /// A network, trained as a configuration says.
    pub fn new(config: &LanguageConfig, network: TreeCoder) -> Self {
        Self {
            network,
            config: config.clone(),
            random_route: false,
        }
    }

    pub fn network(&self) -> &TreeCoder {
        &self.network
    }

    /// What the network says of sequences.
    pub fn forward(&self, batch: &LanguageBatch, rng: &mut ChaCha8Rng) -> TreeCoderOutput {
        let mut options = TreeCoderOptions {
            seed: rng.next_u64(),
            leaves: None,
        };
        if self.random_route {
            let [rows, window] = batch.text.tokens.dims();
            let leaves = self.network.tree().leaves() as u64;
            let items = rows * self.network.config().items(window);
            // The bias of a remainder is below one in 2^47.
            let draw = |_| (rng.next_u64() % leaves) as usize;
            options.leaves = Some((0..items).map(draw).collect());
        }
        let tokens = batch.text.tokens.clone();
        self.network.forward(tokens, batch.padding(), &options)
    }

    /// The log-likelihood of each target in nats, `[batch, window]`, whether it is asked for or not, and where
    /// the sequences went.
    pub fn log_likelihood(
        &self,
        batch: &LanguageBatch,
        rng: &mut ChaCha8Rng,
    ) -> (Tensor<2>, TreeCoderRouting) {
        let TreeCoderOutput { logits, routing } = self.forward(batch, rng);
        let targets = Target::Classes(batch.text.targets.clone());
        let likelihoods = Prediction::Classes { logits }.log_likelihood(&targets);
        (likelihoods, routing)
    }

    /// The routes that were sampled, each rewarded with the mean log-likelihood of the tokens that it was taken
    /// for. Routes of ignored targets do not count.
    fn decisions(
        &self,
        batch: &LanguageBatch,
        likelihoods: Tensor<2>,
        routing: &TreeCoderRouting,
    ) -> Option<Decisions> {
        let mut rollout = routing.rollout()?;
        let [rows, window] = likelihoods.dims();
        let chunks = routing.chunks;
        let chunk = self.chunk(window);
        let padded = chunks * chunk;
        let device = likelihoods.device();
        let asked = batch.ignored.clone().bool_not().float();
        let by_item = |values: Tensor<2>| {
            let rest = Tensor::zeros([rows, padded - window], &device);
            let values = if padded == window {
                values
            } else {
                Tensor::cat(vec![values, rest], 1)
            };
            values.reshape([rows * chunks, chunk]).sum_dim(1)
        };
        let counts = by_item(asked.clone());
        let sums = by_item(likelihoods.detach() * asked);
        let silent = counts.clone().lower_elem(0.5);
        rollout.mask = Some(silent);
        Some(Decisions {
            rollout,
            reward: sums / counts.clamp_min(1.0),
            greedy_reward: None,
        })
    }
}

impl FamilyModel for LanguageModel {
    fn timed_forward(&self, batch: &LanguageBatch, rng: &mut ChaCha8Rng) -> usize {
        drop(self.forward(batch, rng));
        batch.text.tokens.dims().iter().product()
    }

    fn walking_at_random(self) -> Result<Self> {
        let tree = self.network.config();
        if tree.height == 0 {
            bail!("has no tree");
        }
        if tree.selector.gradient == SelectorGradient::Soft {
            bail!("has soft selectors, and soft selectors go to all leaves");
        }
        Ok(Self {
            random_route: true,
            ..self
        })
    }

    fn place(self, placement: &Placement) -> Result<Self> {
        let network = self.network.place(placement)?;
        Ok(Self { network, ..self })
    }
}

impl TrainableModel for LanguageModel {
    type Batch = LanguageBatch;

    fn training_step(&self, batch: LanguageBatch, rng: &mut ChaCha8Rng) -> StepOutput {
        let (likelihoods, routing) = self.log_likelihood(&batch, rng);
        let task_loss = -masked_average(likelihoods.clone(), Some(&batch.ignored));
        let mut loss = task_loss.clone();
        if let Some(balance) = &routing.balance_loss {
            loss = loss + balance.clone();
        }
        let attention = routing.attention.iter();
        let attention = mean_of(attention.filter_map(|report| report.balance_loss.clone()));
        if let Some(attention) = &attention {
            loss = loss + attention.clone() * self.config.lambda_attention;
        }
        let device = task_loss.device().without_autodiff();
        let mut output = StepOutput::new(loss).with_metric("log_likelihood", -task_loss);
        for (name, value) in [
            ("balance", routing.balance_loss.clone()),
            ("attention_balance", attention),
        ] {
            if let Some(value) = value {
                output = output.with_metric(name, value);
            }
        }
        for Measurement { name, sum, weight } in self.routes(&batch, &routing, LISTED_LEAVES) {
            let mean = (sum / weight) as f32;
            output = output.with_metric(name, Tensor::from_floats([mean], &device));
        }
        if let Some(decisions) = self.decisions(&batch, likelihoods, &routing) {
            output = output.with_decisions(decisions);
        }
        output
    }

    /// What decides where something goes does not decay, neither between nodes nor within attention: decay draws
    /// scores together.
    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        let rate = self.config.selector.rate;
        let selectors = not_decaying(self.network.selector_parameter_ids(), rate);
        let trees = not_decaying(self.network.tree_parameter_ids(), 1.0);
        selectors.into_iter().chain(trees).collect()
    }

    fn evaluate(&self, batch: LanguageBatch, rng: &mut ChaCha8Rng) -> Vec<Measurement> {
        let (likelihoods, routing) = self.log_likelihood(&batch, rng);
        let sum = likelihoods.mask_fill(batch.ignored.clone(), 0.0).sum();
        let sum = f64::from(sum.into_scalar::<f32>());
        let mut measured = vec![
            Measurement::new("log_likelihood", sum, batch.targets() as f64),
            Measurement::new(BITS_PER_BYTE, -sum / 2f64.ln(), batch.bytes() as f64),
        ];
        measured.extend(self.routes(&batch, &routing, MEASURED_LEAVES));
        measured
    }

    /// The loss and its perplexity, which is no mean over batches; the smallest and the largest leaf, and how many
    /// leaves of equal shares would have the entropy of theirs.
    fn derive(&self, means: &[(String, f64)]) -> Vec<(String, f64)> {
        let mut derived = Vec::new();
        if let Some((_, likelihood)) = means.iter().find(|(name, _)| name == "log_likelihood") {
            derived.push(("loss".into(), -likelihood));
            derived.push(("perplexity".into(), (-likelihood).exp()));
        }
        let shares = || {
            let shares = means
                .iter()
                .filter(|(name, _)| name.starts_with(LEAF_SHARE));
            shares.map(|(_, share)| *share)
        };
        if shares().next().is_some() {
            let (least, most) = (f64::INFINITY, f64::NEG_INFINITY);
            derived.push(("leaf_share_min".into(), shares().fold(least, f64::min)));
            derived.push(("leaf_share_max".into(), shares().fold(most, f64::max)));
            let leaves = shares().count() as f64;
            let entropy: f64 = shares()
                .filter(|share| *share > 0.0)
                .map(|share| -share / leaves * (share / leaves).ln())
                .sum();
            derived.push(("effective_leaves".into(), entropy.exp()));
        }
        derived
    }
}

/// The name of bits per byte of text, whatever the tokenizer.
pub const BITS_PER_BYTE: &str = "bits_per_byte";
/// What the names of leaf shares start with; the number of the leaf follows.
pub const LEAF_SHARE: &str = "leaf_share.";
/// What the names of the selectors' entropies start with; the depth follows.
pub const ENTROPY: &str = "route_entropy.";

impl LanguageModel {
    /// Tokens of a routed item in windows of some length: of a chunk, or of a sequence.
    fn chunk(&self, window: usize) -> usize {
        match self.network.config().route_on {
            RouteOn::PreviousChunk { tokens } => tokens,
            _ => window,
        }
    }

    /// The routed items of a batch that hold text: the sequence of each, and its leaf. Chunks of padding alone are
    /// routed as well, and say nothing of how leaves are used.
    pub fn routed(
        &self,
        batch: &LanguageBatch,
        routing: &TreeCoderRouting,
    ) -> impl Iterator<Item = (usize, usize)> {
        let [_, window] = batch.text.tokens.dims();
        let (chunk, chunks) = (self.chunk(window), routing.chunks);
        let leaves = routing.leaves.iter().enumerate();
        leaves.filter_map(move |(item, leaf)| {
            let (sequence, start) = (item / chunks, item % chunks * chunk);
            (start < batch.text.counts[sequence]).then_some((sequence, *leaf))
        })
    }

    /// The share of items at each leaf, relative to a fair share, in trees of at most `most` leaves, and the entropy
    /// of the selectors at each depth. Nothing without a tree.
    fn routes(
        &self,
        batch: &LanguageBatch,
        routing: &TreeCoderRouting,
        most: usize,
    ) -> Vec<Measurement> {
        let leaves = self.network.tree().leaves();
        let mut measured = Vec::new();
        if leaves > 1 && leaves <= most {
            let mut counts = vec![0usize; leaves];
            self.routed(batch, routing)
                .for_each(|(_, leaf)| counts[leaf] += 1);
            let items = counts.iter().sum::<usize>() as f64;
            for (leaf, count) in counts.into_iter().enumerate() {
                let share = (count * leaves) as f64;
                measured.push(Measurement::new(
                    format!("{LEAF_SHARE}{leaf}"),
                    share,
                    items,
                ));
            }
        }
        // The selectors' means are over items with text.
        let items = routing.real_items() as f64;
        let reports: Vec<_> = routing.attention.iter().collect();
        if !reports.is_empty() {
            let shares =
                alone(&reports).map(|(name, mean)| Measurement::new(name, mean * items, items));
            measured.extend(shares);
        }
        if self.network.config().selector.kind == SelectorKind::Learned {
            for (depth, level) in routing.levels.iter().enumerate() {
                let (name, sum) = (format!("{ENTROPY}{depth}"), level.entropy * items);
                measured.push(Measurement::new(name, sum, items));
            }
        }
        measured
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::families::{Family as _, Preset};
    use crate::settings::layered;
    use arbora::tasks::text::{Corpus, Document, Text, TextConfig, Tokenizer};
    use burn::tensor::Device;
    use rand::SeedableRng;

    const WINDOW: usize = 10;

    fn config(settings: &[&str]) -> LanguageConfig {
        let preset = LanguageConfig::preset("lm", Preset::Small, None).unwrap();
        let small = [
            "data.tokenizer.kind=bytes",
            "data.window=10",
            "architecture.d_model=8",
            "architecture.d_ff=[8]",
            "architecture.route_on.tokens=4",
        ];
        let settings: Vec<String> = small
            .iter()
            .chain(settings)
            .map(|one| (*one).into())
            .collect();
        layered(&preset, None, &settings).unwrap()
    }

    /// Two windows: a whole one, and one of 6 bytes.
    fn batch(prompt: usize, device: &Device) -> LanguageBatch {
        let corpus = |text: &str| {
            let document = Document {
                name: "one".into(),
                text: text.into(),
            };
            Corpus::from_documents(vec![document]).unwrap()
        };
        let windows = TextConfig {
            window: WINDOW,
            ..TextConfig::default()
        };
        let held_out = corpus("0123456789abcdef");
        let text =
            Text::from_parts(&corpus("training"), &held_out, Tokenizer::bytes(), windows).unwrap();
        let batch = text.eval_batches(2, device).unwrap().next().unwrap();
        LanguageBatch::new(batch, prompt)
    }

    /// A model, two windows and what it says of them: log-likelihoods and routes.
    fn routed(
        settings: &[&str],
        device: &Device,
    ) -> (LanguageModel, LanguageBatch, Tensor<2>, TreeCoderRouting) {
        let config = config(settings);
        let model = config.untrained_for(257, device);
        let batch = batch(config.prompt(), device);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (likelihoods, routing) = model.log_likelihood(&batch, &mut rng);
        (model, batch, likelihoods, routing)
    }

    const CHUNKS: &str = r#"architecture.route_on={"kind":"previous-chunk","tokens":4}"#;

    #[test]
    fn neither_padding_nor_what_chooses_the_route_is_asked_for() {
        let device = Device::flex();
        let places = |prompt: usize| {
            let batch = batch(prompt, &device);
            let asked: Vec<usize> = (0..2 * WINDOW).filter(|at| !batch.skipped[*at]).collect();
            assert_eq!(asked.len(), batch.targets());
            let ignored: Vec<bool> = batch.ignored.clone().into_data().iter::<bool>().collect();
            assert_eq!(ignored, batch.skipped);
            (asked, batch.bytes())
        };
        // The document has 16 bytes and an end, which stands for none and is the last target.
        let (all, bytes) = places(0);
        assert_eq!(all, (0..16).collect::<Vec<_>>());
        assert_eq!(bytes, 15);
        // The first four tokens are the prompt. The fourth of them predicts the fifth.
        let (asked, bytes) = places(4);
        assert_eq!(asked, [&[3, 4, 5, 6, 7, 8, 9][..], &[13, 14, 15]].concat());
        assert_eq!(bytes, 9);
    }

    #[test]
    fn each_route_is_rewarded_for_the_tokens_that_it_was_taken_for() {
        let device = Device::flex().autodiff();
        let settings = [
            CHUNKS,
            "selector.balance.kind=none",
            "selector.gradient.kind=reinforce",
        ];
        let (model, batch, likelihoods, routing) = routed(&settings, &device);
        let host: Vec<f32> = likelihoods.clone().into_data().iter::<f32>().collect();
        let decisions = model.decisions(&batch, likelihoods, &routing).unwrap();
        assert_eq!(decisions.reward.dims(), [6, 1]);
        let rewards: Vec<f32> = decisions.reward.into_data().iter::<f32>().collect();
        let masked = decisions.rollout.mask.unwrap().into_data();
        let masked: Vec<bool> = masked.iter::<bool>().collect();
        // Chunks of 4, 4 and 2 tokens; the second window ends in its second chunk.
        assert_eq!(masked, [false, false, false, false, false, true]);
        for (item, places) in [(0, 0..4), (1, 4..8), (2, 8..10), (3, 10..14), (4, 14..16)] {
            let count = places.len() as f32;
            let mean = host[places].iter().sum::<f32>() / count;
            assert!((rewards[item] - mean).abs() < 1e-5, "item {item}");
        }
    }

    #[test]
    fn entropies_weigh_as_much_as_they_have_items_with_text() {
        let (model, batch, _, routing) = routed(&[CHUNKS], &Device::flex());
        let measured = model.routes(&batch, &routing, LISTED_LEAVES);
        let entropies = measured.iter().filter(|one| one.name.starts_with(ENTROPY));
        // Three chunks, and two of the window of six bytes.
        let weights: Vec<f64> = entropies.map(|one| one.weight).collect();
        assert!(!weights.is_empty() && weights.iter().all(|weight| *weight == 5.0));
        let sequences: Vec<usize> = model.routed(&batch, &routing).map(|(one, _)| one).collect();
        assert_eq!(sequences, [0, 0, 0, 1, 1]);
    }

    #[test]
    fn selectors_do_not_decay_and_learn_at_their_rate() {
        let device = Device::flex();
        let model = config(&["selector.rate=0.25"]).untrained_for(257, &device);
        let groups = model.parameter_groups();
        assert_eq!(groups.len(), 1);
        assert!(!groups[0].decays);
        assert_eq!(groups[0].rate, 0.25);
        let of_selectors = model.network.selector_parameter_ids();
        assert!(!of_selectors.is_empty());
        let matches = |id| groups[0].parameters.matches(id, None);
        assert!(of_selectors.iter().all(matches));
        let linear = config(&["model=linear-active"]).untrained_for(257, &device);
        assert!(linear.parameter_groups().is_empty());
    }
}
