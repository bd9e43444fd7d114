//! Configuration of a run: presets, files and single settings, in layers.

use super::data::{Features, Source};
use crate::families::{LARGEST_SIZE, Preset, check_sizes, check_weights};
use anyhow::{Result, anyhow, bail};
use arbora::attention::GhostNodes;
use arbora::models::{
    CrossAttentionConfig, HeadKind, Initialization, ModelConfig, PerceiverIoConfig,
    ReTreeverConfig, RewardKind, StdKind, init::stable_hash, latents_for,
};
use arbora::rl::BaselineConfig;
use arbora::rl::train::TrainerConfig;
use arbora::tasks::images::ImageCompletionConfig;
use arbora::tree::{Layout, TokenOrder};
use clap::ValueEnum;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

mod presets;

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RetrievalTask {
    /// Image completion: predict unseen pixels from seen ones.
    Images,
    /// Copying: read a random sequence, write it in reverse.
    Copy,
    /// Regression on functions drawn from Gaussian processes.
    Gp,
    /// Classification of time series by windows.
    Series,
    /// Regression on the rewards of the wheel bandit, for loops that learn while they choose.
    Bandit,
}

impl RetrievalTask {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Copy => "copy",
            Self::Gp => "gp",
            Self::Series => "series",
            Self::Bandit => "bandit",
        }
    }
}

/// Which model learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RetrievalModelKind {
    /// ReTreever with its learned route.
    #[value(name = "retreever")]
    #[serde(rename = "retreever")]
    ReTreever,
    /// ReTreever with uniformly random routes, in training and evaluation: the control.
    RandomRoute,
    /// ReTreever told which leaf answers a query, in training and evaluation: the control at the other
    /// end, for tasks that know it.
    OracleRoute,
    /// The same encoder and decoder with dense cross attention.
    CrossAttention,
    /// Perceiver IO with as many latents as ReTreever selects nodes.
    Perceiver,
}

impl RetrievalModelKind {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReTreever => "retreever",
            Self::RandomRoute => "random-route",
            Self::OracleRoute => "oracle-route",
            Self::CrossAttention => "cross-attention",
            Self::Perceiver => "perceiver",
        }
    }

    /// Whether it is ReTreever with some way down its tree.
    pub fn has_tree(self) -> bool {
        matches!(
            self,
            Self::ReTreever | Self::RandomRoute | Self::OracleRoute
        )
    }
}

/// The network, less what the data decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Width of embeddings and tokens.
    pub d_model: usize,
    /// Width of feed-forward layers.
    pub d_ff: usize,
    /// Attention heads.
    pub heads: usize,
    /// Linear layers of an embedding.
    pub embedding_depth: usize,
    /// Transformer blocks of the encoder.
    pub encoder_layers: usize,
    /// Dropout.
    pub dropout: f64,
    /// How standard deviations are read.
    pub std: StdKind,
    /// How far weights are drawn from 0.
    pub initialization: Initialization,
    /// Branching factor of the tree.
    pub branching: usize,
    /// How leaves are grouped.
    pub layout: Layout,
    /// In what order pixels become leaves.
    pub order: TokenOrder,
    /// What attention does with nodes over no pixel.
    pub ghosts: GhostNodes,
    /// Whether gradients stop at the aggregator's input.
    pub detach_children: bool,
}

/// Everything that determines a run's numbers, and where its data are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalConfig {
    /// What is learned.
    pub task: RetrievalTask,
    /// Which model learns it.
    pub model: RetrievalModelKind,
    /// Runs of before named a second model here. `arbora compare` trains several.
    #[serde(default, skip_serializing)]
    compare_with: IgnoredAny,
    /// Where the data come from.
    pub data: Source,
    /// For images: how many pixels are shown and asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<ImageCompletionConfig>,
    /// Items (images, sequences, functions) per training step.
    pub batch_size: usize,
    /// Items per evaluation batch.
    pub eval_batch_size: usize,
    /// Evaluation items measured during training; 0 means all of a finite set.
    pub eval_items: usize,
    /// Evaluation items measured at the end and by `arbora eval`; 0 means all of a finite set.
    pub test_items: usize,
    /// The network.
    pub architecture: Architecture,
    /// Weight of the loss on all leaves, λ_CA.
    pub lambda_ca: f64,
    /// Weight of the loss that teaches the policy to walk where the model's own attention to all leaves
    /// looks. Not in the paper: 0 there.
    pub lambda_guide: f64,
    /// What the policy is rewarded for.
    pub reward: RewardKind,
    /// Routes sampled per query.
    pub samples: usize,
    /// The optimiser, the policy gradient and the schedule.
    pub trainer: TrainerConfig,
}

impl RetrievalConfig {
    /// The settings of a preset.
    pub fn of_task(task: RetrievalTask, preset: Preset) -> Self {
        match task {
            RetrievalTask::Images => presets::images(preset),
            RetrievalTask::Copy => presets::copy(preset),
            RetrievalTask::Gp => presets::gp(preset),
            RetrievalTask::Series => presets::series(preset),
            RetrievalTask::Bandit => presets::bandit(preset),
        }
    }

    /// Checks what types alone do not.
    ///
    /// # Errors
    /// With the first setting that is out of range.
    pub fn check(&self) -> Result<()> {
        let a = &self.architecture;
        let sizes = [
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("samples", self.samples, 1),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.d_ff", a.d_ff, 1),
            ("architecture.heads", a.heads, 1),
            ("architecture.embedding_depth", a.embedding_depth, 1),
            ("architecture.encoder_layers", a.encoder_layers, 0),
            ("architecture.branching", a.branching, 2),
        ];
        let fits = match self.task {
            RetrievalTask::Images => matches!(
                self.data,
                Source::Sample | Source::Idx { .. } | Source::Folder { .. }
            ),
            RetrievalTask::Copy => matches!(self.data, Source::Copy(_)),
            RetrievalTask::Gp => matches!(self.data, Source::Gp(_)),
            RetrievalTask::Series => self.data.windows().is_some(),
            RetrievalTask::Bandit => matches!(self.data, Source::Bandit(_)),
        };
        if !fits {
            bail!("data: of another task than {}", self.task.name());
        }
        check_sizes(sizes)?;
        if !a.d_model.is_multiple_of(a.heads) {
            bail!(
                "architecture.heads: expected a divisor of {}, got {}",
                a.d_model,
                a.heads
            );
        }
        if !(0.0..1.0).contains(&a.dropout) {
            bail!(
                "architecture.dropout: expected 0 to below 1, got {}",
                a.dropout
            );
        }
        if a.ghosts == GhostNodes::Published && a.layout != Layout::Published {
            bail!("architecture.ghosts: published ghosts need architecture.layout=published");
        }
        check_weights([
            ("lambda_ca", self.lambda_ca),
            ("lambda_guide", self.lambda_guide),
        ])?;
        let baseline = self.trainer.policy_gradient.baseline;
        if baseline == BaselineConfig::LeaveOneOut && self.samples < 2 {
            bail!(
                "samples: the leave-one-out baseline needs at least 2, got {}",
                self.samples
            );
        }
        // These know their settings by short names; a person needs the path to give to --set.
        let checked = match &self.data {
            Source::Copy(copy) => copy.check(),
            Source::Gp(gp) => gp.check(),
            Source::Bandit(bandit) => bandit.check(),
            data => data.windows().map_or(Ok(()), |windows| windows.check()),
        };
        checked.map_err(|error| anyhow!("data.{error}"))?;
        if let Source::Bandit(bandit) = &self.data {
            for (key, value) in [
                ("data.max_context", bandit.max_context),
                ("data.target_contexts", bandit.target_contexts),
            ] {
                if value > LARGEST_SIZE {
                    bail!("{key}: expected at most {LARGEST_SIZE}, got {value}");
                }
            }
        }
        if let Some(points) = &self.points {
            points.check().map_err(|error| anyhow!("points.{error}"))?;
        }
        let trainer = &self.trainer;
        trainer
            .policy_gradient
            .check()
            .map_err(|error| anyhow!("trainer.policy_gradient.{error}"))?;
        trainer.check().map_err(|error| anyhow!("trainer.{error}"))
    }

    /// Checks what depends on the data.
    ///
    /// # Errors
    /// With the first setting that does not fit them.
    pub fn check_features(&self, features: &Features) -> Result<()> {
        if let TokenOrder::Axis(axis) = self.architecture.order
            && axis >= features.d_position
        {
            bail!(
                "architecture.order: positions have {} coordinates, counted from 0, got {axis}",
                features.d_position
            );
        }
        let classes = matches!(features.head, HeadKind::Classes { .. });
        match self.reward {
            RewardKind::Accuracy if !classes => {
                bail!("reward: accuracy needs classes; this task predicts values")
            }
            RewardKind::NegativeMse if classes => {
                bail!("reward: negative-mse needs values; this task predicts classes")
            }
            _ => Ok(()),
        }
    }

    /// The network's full configuration for data with the given features.
    pub fn model_config(&self, features: &Features) -> ModelConfig {
        let a = &self.architecture;
        ModelConfig::new(features.d_context, features.d_query, features.head)
            .with_embedding(features.embedding)
            .with_d_model(a.d_model)
            .with_d_ff(a.d_ff)
            .with_n_heads(a.heads)
            .with_embedding_depth(a.embedding_depth)
            .with_encoder_layers(a.encoder_layers)
            .with_dropout(a.dropout)
            .with_initialization(a.initialization)
            .with_max_positions(features.most_tokens.max(5000))
    }

    /// ReTreever's configuration.
    pub fn retreever(&self, features: &Features) -> ReTreeverConfig {
        let a = &self.architecture;
        ReTreeverConfig::new(self.model_config(features))
            .with_branching(a.branching)
            .with_layout(a.layout)
            .with_order(a.order)
            .with_ghosts(a.ghosts)
            .with_detach_children(a.detach_children)
    }

    /// The dense model's configuration.
    pub fn cross_attention(&self, features: &Features) -> CrossAttentionConfig {
        CrossAttentionConfig::new(self.model_config(features))
    }

    /// Perceiver IO's configuration, with as many latents as ReTreever selects of the largest context.
    pub fn perceiver(&self, features: &Features) -> PerceiverIoConfig {
        let a = &self.architecture;
        let latents = latents_for(features.most_tokens, a.branching, a.layout);
        PerceiverIoConfig::new(self.model_config(features), latents)
    }

    /// Names the model's architecture: checkpoints of another are refused.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub fn architecture_fingerprint(&self, features: &Features) -> Result<String> {
        let text = match self.model {
            RetrievalModelKind::CrossAttention => {
                serde_json::to_string(&self.cross_attention(features))?
            }
            RetrievalModelKind::Perceiver => serde_json::to_string(&self.perceiver(features))?,
            _ => serde_json::to_string(&self.retreever(features))?,
        };
        Ok(format!("{}-{:016x}", self.model.name(), stable_hash(&text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::layered;

    fn small() -> RetrievalConfig {
        RetrievalConfig::of_task(RetrievalTask::Images, Preset::Small)
    }

    fn grey(channels: usize) -> Features {
        Features {
            d_context: 2 + channels,
            d_query: 2,
            d_position: 2,
            head: HeadKind::Gaussian {
                dim: channels,
                std: StdKind::Bounded,
            },
            embedding: arbora::models::EmbeddingKind::Points,
            most_tokens: 196,
        }
    }

    fn with(settings: &[&str]) -> Result<RetrievalConfig> {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        layered(&small(), None, &settings)
    }

    fn refusal(settings: &[&str]) -> String {
        format!("{:#}", with(settings).unwrap_err())
    }

    #[test]
    fn presets_are_valid_and_survive_json() {
        for task in RetrievalTask::value_variants() {
            for preset in [Preset::Small, Preset::Published] {
                let config = RetrievalConfig::of_task(*task, preset);
                assert_eq!(layered(&config, None, &[]).unwrap(), config);
                assert_eq!(config.task, *task);
            }
        }
    }

    #[test]
    fn data_of_another_task_and_settings_that_do_not_fit_the_data_are_refused() {
        assert!(refusal(&[r#"data={"kind":"copy"}"#]).contains("of another task than images"));
        let features = grey(1);
        let fits = |setting: &str| {
            let checked = with(&[setting]).unwrap().check_features(&features);
            checked.map_err(|error| error.to_string())
        };
        let message = fits(r#"architecture.order={"axis":2}"#).unwrap_err();
        assert!(
            message.contains("positions have 2 coordinates"),
            "{message}"
        );
        let message = fits("reward=accuracy").unwrap_err();
        assert!(message.contains("needs classes"), "{message}");
        assert_eq!(fits("reward=negative-mse"), Ok(()));
    }

    #[test]
    fn later_layers_win_and_untouched_settings_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(
            &file,
            r#"{"trainer": {"steps": 7, "seed": 3}, "batch_size": 4}"#,
        )
        .unwrap();
        let settings = [
            "trainer.steps=9".to_string(),
            "architecture.order=morton".to_string(),
        ];
        let config = layered(&small(), Some(&file), &settings).unwrap();
        assert_eq!(
            (config.trainer.steps, config.trainer.seed, config.batch_size),
            (9, 3, 4)
        );
        assert_eq!(config.architecture.order, TokenOrder::Morton);
        assert_eq!(config.trainer.learning_rate, small().trainer.learning_rate);
    }

    #[test]
    fn settings_with_forms_of_their_own_are_replaced_whole() {
        let settings = [
            r#"architecture.order={"random":{"seed":4}}"#,
            r#"data={"kind":"folder","path":"x","held_out":3}"#,
            r#"trainer.policy_gradient.baseline={"kind":"constant","value":-1.5}"#,
        ];
        let config = with(&settings).unwrap();
        assert_eq!(config.architecture.order, TokenOrder::Random { seed: 4 });
        assert!(matches!(config.data, Source::Folder { held_out: 3, .. }));
        let baseline = config.trainer.policy_gradient.baseline;
        assert_eq!(baseline, BaselineConfig::Constant { value: -1.5 });
    }

    #[test]
    fn single_settings_of_a_choice_already_made_can_be_changed_alone() {
        let folder = r#"data={"kind":"folder","path":"x","held_out":3}"#;
        let config = with(&[folder, "data.held_out=5"]).unwrap();
        assert!(matches!(config.data, Source::Folder { held_out: 5, .. }));
        let config = with(&[folder, "data.channels=1"]).unwrap();
        assert!(matches!(
            config.data,
            Source::Folder {
                channels: Some(1),
                ..
            }
        ));
        assert!(refusal(&["data.held_out=5"]).contains("unknown key data.held_out"));
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one() {
        assert!(refusal(&["trainer.stepz=3"]).contains("did you mean trainer.steps?"));
        assert!(refusal(&["bach_size=3"]).contains("did you mean batch_size?"));
    }

    #[test]
    fn values_of_the_wrong_type_or_range_are_refused() {
        assert!(refusal(&["batch_size=many"]).contains("batch_size: invalid type: string"));
        assert!(refusal(&["batch_size=0"]).contains("batch_size: expected 1 to 65536"));
        assert!(refusal(&["batch_size=99999999999"]).contains("batch_size: expected 1 to 65536"));
        assert!(refusal(&["trainer.clip_norm=0"]).starts_with("trainer.clip_norm: expected"));
        assert!(refusal(&["points.min_targets=0"]).starts_with("points.min_targets = 0: there"));
        assert!(refusal(&["architecture.heads=5"]).contains("expected a divisor of 64"));
        assert!(refusal(&["batch_size"]).contains("expected key=value"));
        assert!(
            refusal(&[r#"trainer.policy_gradient.baseline={"kind":"leave_one_out"}"#])
                .contains("needs at least 2")
        );
    }

    #[test]
    fn fingerprints_tell_architectures_apart_and_ignore_the_schedule() {
        let print = |settings: &[&str], channels| {
            let config = with(settings).unwrap();
            config.architecture_fingerprint(&grey(channels)).unwrap()
        };
        assert_eq!(print(&[], 1), print(&["trainer.steps=5"], 1));
        assert_ne!(print(&[], 1), print(&[], 3));
        assert_ne!(print(&[], 1), print(&["architecture.branching=3"], 1));
        assert_ne!(print(&[], 1), print(&["model=random-route"], 1));
    }
}
