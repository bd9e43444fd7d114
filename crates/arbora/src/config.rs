//! Configuration of a run: presets, files and single settings, in layers.

use anyhow::{Context as _, Result, anyhow, bail};
use arbora_attention::GhostNodes;
use arbora_models::{
    CrossAttentionConfig, HeadKind, ModelConfig, ReTreeverConfig, StdKind, init::stable_hash,
};
use arbora_rl::train::TrainerConfig;
use arbora_rl::{BaselineConfig, PolicyGradientConfig};
use arbora_tasks::images::ImageCompletionConfig;
use arbora_tree::{Layout, TokenOrder};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Image completion: predict unseen pixels from seen ones.
    Images,
}

/// Which model learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// ReTreever with its learned route.
    #[value(name = "retreever")]
    #[serde(rename = "retreever")]
    ReTreever,
    /// ReTreever with uniformly random routes, in training and evaluation: the control.
    RandomRoute,
    /// The same encoder and decoder with dense cross attention.
    CrossAttention,
}

impl ModelKind {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReTreever => "retreever",
            Self::RandomRoute => "random-route",
            Self::CrossAttention => "cross-attention",
        }
    }
}

/// Named starting points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// A small encoder and minutes of training on two cores.
    #[default]
    Small,
    /// The published architecture and schedule for grey 28×28 images: hours to days on a CPU.
    Published,
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageSource {
    /// The bundled sample of Fashion-MNIST.
    Sample,
    /// IDX files, gzipped or not.
    Idx {
        /// Training images.
        train: PathBuf,
        /// Test images.
        test: PathBuf,
    },
    /// A folder of PNG or JPEG files.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Height and width that all images are resized to; they must agree without it.
        #[serde(default)]
        size: Option<[usize; 2]>,
        /// Images kept back for testing.
        held_out: usize,
    },
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
pub struct RunConfig {
    /// What is learned.
    pub task: Task,
    /// Which model learns it.
    pub model: ModelKind,
    /// A model trained after it with the same budget, for the pictures; none with `null`.
    pub compare_with: Option<ModelKind>,
    /// Where images come from.
    pub data: ImageSource,
    /// How many pixels are shown and asked for.
    pub points: ImageCompletionConfig,
    /// Images per training step.
    pub batch_size: usize,
    /// Images per evaluation batch.
    pub eval_batch_size: usize,
    /// Test images measured during training; 0 means all. The end and `arbora eval` take all.
    pub eval_images: usize,
    /// The network.
    pub architecture: Architecture,
    /// Weight of the loss on all leaves, λ_CA.
    pub lambda_ca: f64,
    /// Routes sampled per query.
    pub samples: usize,
    /// The optimiser, the policy gradient and the schedule.
    pub trainer: TrainerConfig,
}

/// Far above any size that is of use, and below what overflows an address.
const LARGEST_SIZE: usize = 1 << 16;

impl ImageSource {
    /// The same source by absolute paths, so that a run can be resumed and measured from anywhere.
    ///
    /// # Errors
    /// If the working directory cannot be read.
    pub fn absolute(self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Sample => Self::Sample,
            Self::Idx { train, test } => Self::Idx {
                train: std::path::absolute(train)?,
                test: std::path::absolute(test)?,
            },
            Self::Folder {
                path,
                size,
                held_out,
            } => Self::Folder {
                path: std::path::absolute(path)?,
                size,
                held_out,
            },
        })
    }
}

impl RunConfig {
    /// The settings of a preset.
    pub fn preset(task: Task, preset: Preset) -> Self {
        let architecture = Architecture {
            d_model: 64,
            d_ff: 128,
            heads: 4,
            embedding_depth: 4,
            encoder_layers: 6,
            dropout: 0.0,
            std: StdKind::Bounded,
            branching: 2,
            layout: Layout::Published,
            // The published order of grey images: by column.
            order: TokenOrder::Axis(1),
            ghosts: GhostNodes::Published,
            detach_children: true,
        };
        let published = Self {
            task,
            model: ModelKind::ReTreever,
            compare_with: Some(ModelKind::CrossAttention),
            data: ImageSource::Sample,
            points: ImageCompletionConfig::default(),
            batch_size: 100,
            eval_batch_size: 16,
            eval_images: 0,
            architecture,
            lambda_ca: 1.0,
            samples: 1,
            trainer: TrainerConfig {
                steps: 48_000,
                eval_every: 2_400,
                checkpoint_every: 2_400,
                clip_norm: None,
                ..TrainerConfig::default()
            },
        };
        match preset {
            Preset::Published => published,
            Preset::Small => Self {
                batch_size: 16,
                eval_images: 160,
                architecture: Architecture {
                    encoder_layers: 2,
                    layout: Layout::LeftFilled,
                    order: TokenOrder::KdTree,
                    ghosts: GhostNodes::Masked,
                    ..published.architecture
                },
                trainer: TrainerConfig {
                    steps: 900,
                    eval_every: 150,
                    checkpoint_every: 150,
                    learning_rate: 1e-3,
                    warmup_steps: 50,
                    clip_norm: Some(1.0),
                    // Less noise than the published estimator, which has no baseline.
                    policy_gradient: PolicyGradientConfig {
                        baseline: BaselineConfig::BatchMean,
                        ..published.trainer.policy_gradient
                    },
                    ..published.trainer
                },
                ..published
            },
        }
    }

    /// Puts a configuration file (JSON, any part of the whole) and single settings
    /// (`trainer.steps=100`) over this one.
    ///
    /// # Errors
    /// If the file cannot be read, a key is unknown (the nearest known one is named) or a value has
    /// the wrong type or range.
    pub fn layered(&self, file: Option<&Path>, settings: &[String]) -> Result<Self> {
        let mut value = serde_json::to_value(self)?;
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let layer: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} is not JSON", path.display()))?;
            if !layer.is_object() {
                bail!("{}: expected a JSON object of settings", path.display());
            }
            put(&mut value, layer).with_context(|| format!("in {}", path.display()))?;
        }
        for setting in settings {
            let (key, text) = setting
                .split_once('=')
                .ok_or_else(|| anyhow!("--set {setting}: expected key=value"))?;
            // A bare word is a string, so that names need no quotes.
            let layer = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            let layer = key.rsplit('.').fold(layer, |inner, part| {
                Value::Object([(part.to_owned(), inner)].into_iter().collect())
            });
            put(&mut value, layer).with_context(|| format!("--set {setting}"))?;
        }
        let config: Self = serde_json::from_value(value)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration that a run folder holds.
    ///
    /// # Errors
    /// If the file is missing, is no JSON or holds unknown or invalid settings.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = serde_json::from_str(&text).with_context(|| {
            format!("{} is not a configuration of this version", path.display())
        })?;
        config
            .check()
            .with_context(|| format!("in {}", path.display()))?;
        Ok(config)
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
        for (key, value, least) in sizes {
            if !(least..=LARGEST_SIZE).contains(&value) {
                bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
            }
        }
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
        if let TokenOrder::Axis(axis) = a.order
            && axis > 1
        {
            bail!("architecture.order: images have axes 0 (row) and 1 (column), got {axis}");
        }
        if !self.lambda_ca.is_finite() || self.lambda_ca < 0.0 {
            bail!(
                "lambda_ca: expected a number of at least 0, got {}",
                self.lambda_ca
            );
        }
        let baseline = self.trainer.policy_gradient.baseline;
        if baseline == BaselineConfig::LeaveOneOut && self.samples < 2 {
            bail!(
                "samples: the leave-one-out baseline needs at least 2, got {}",
                self.samples
            );
        }
        // These know their settings by short names; a person needs the path to give to --set.
        self.points
            .check()
            .map_err(|error| anyhow!("points.{error}"))?;
        let trainer = &self.trainer;
        trainer
            .policy_gradient
            .validate()
            .map_err(|error| anyhow!("trainer.policy_gradient.{error}"))?;
        trainer
            .validate()
            .map_err(|error| anyhow!("trainer.{error}"))
    }

    /// The network's full configuration for images with the given channels.
    pub fn model_config(&self, channels: usize) -> ModelConfig {
        let a = &self.architecture;
        let head = HeadKind::Gaussian {
            dim: channels,
            std: a.std,
        };
        ModelConfig::new(2 + channels, 2, head)
            .with_d_model(a.d_model)
            .with_d_ff(a.d_ff)
            .with_heads(a.heads)
            .with_embedding_depth(a.embedding_depth)
            .with_encoder_layers(a.encoder_layers)
            .with_dropout(a.dropout)
    }

    /// ReTreever's configuration for images with the given channels.
    pub fn retreever(&self, channels: usize) -> ReTreeverConfig {
        let a = &self.architecture;
        ReTreeverConfig::new(self.model_config(channels))
            .with_branching(a.branching)
            .with_layout(a.layout)
            .with_order(a.order)
            .with_ghosts(a.ghosts)
            .with_detach_children(a.detach_children)
    }

    /// The dense model's configuration for images with the given channels.
    pub fn cross_attention(&self, channels: usize) -> CrossAttentionConfig {
        CrossAttentionConfig::new(self.model_config(channels))
    }

    /// Names the model's architecture: checkpoints of another are refused.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub fn fingerprint(&self, channels: usize) -> Result<String> {
        let text = match self.model {
            ModelKind::CrossAttention => serde_json::to_string(&self.cross_attention(channels))?,
            _ => serde_json::to_string(&self.retreever(channels))?,
        };
        Ok(format!("{}-{:016x}", self.model.name(), stable_hash(&text)))
    }
}

/// Puts `layer` over the whole configuration `base`, one setting after the other, so that a value of
/// the wrong type is reported with its key.
fn put(base: &mut Value, layer: Value) -> Result<()> {
    let mut found = Vec::new();
    collect(base, layer, &mut Vec::new(), &mut found)?;
    for (path, value) in found {
        let mut slot = &mut *base;
        for key in &path {
            slot = &mut slot[key];
        }
        *slot = value;
        RunConfig::deserialize(&*base).with_context(|| path.join("."))?;
    }
    Ok(())
}

/// The settings of `layer` by their paths in `base`. A choice that carries settings of its own (an
/// object that names its `kind`, or a value that replaces another type) is one setting; single settings
/// of the choice already made can be changed alone.
fn collect(
    base: &Value,
    layer: Value,
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, Value)>,
) -> Result<()> {
    match (base, layer) {
        (Value::Object(base), Value::Object(layer))
            if (!base.contains_key("kind") || !layer.contains_key("kind"))
                && !is_choice(&path.join(".")) =>
        {
            for (key, value) in layer {
                let slot = base.get(&key);
                path.push(key);
                match slot {
                    Some(slot) => collect(slot, value, path, found)?,
                    None => {
                        let wrong = path.join(".");
                        path.pop();
                        let known = base.keys().map(|known| {
                            let parts = path.iter().chain([known]);
                            parts.map(String::as_str).collect::<Vec<_>>().join(".")
                        });
                        bail!("unknown key {wrong}{}", nearest(&wrong, known));
                    }
                }
                path.pop();
            }
        }
        (_, layer) => found.push((path.clone(), layer)),
    }
    Ok(())
}

/// Settings whose value is one of several forms, some of them objects.
fn is_choice(path: &str) -> bool {
    path == "architecture.order"
}

/// `; did you mean …?` with the most similar of the known names.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known
        .map(|known| (strsim::damerau_levenshtein(name, &known), known))
        .min()
        .map(|(_, known)| format!("; did you mean {known}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> RunConfig {
        RunConfig::preset(Task::Images, Preset::Small)
    }

    fn refusal(settings: &[&str]) -> String {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        format!("{:#}", small().layered(None, &settings).unwrap_err())
    }

    #[test]
    fn presets_are_valid_and_survive_json() {
        for preset in [Preset::Small, Preset::Published] {
            let config = RunConfig::preset(Task::Images, preset);
            assert_eq!(config.layered(None, &[]).unwrap(), config);
        }
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
        let config = small().layered(Some(&file), &settings).unwrap();
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
            r#"architecture.order={"random":{"seed":4}}"#.to_string(),
            r#"data={"kind":"folder","path":"x","held_out":3}"#.to_string(),
            r#"trainer.policy_gradient.baseline={"kind":"constant","value":-1.5}"#.to_string(),
        ];
        let config = small().layered(None, &settings).unwrap();
        assert_eq!(config.architecture.order, TokenOrder::Random { seed: 4 });
        assert!(matches!(
            config.data,
            ImageSource::Folder { held_out: 3, .. }
        ));
        let baseline = config.trainer.policy_gradient.baseline;
        assert_eq!(baseline, BaselineConfig::Constant { value: -1.5 });
    }

    #[test]
    fn single_settings_of_a_choice_already_made_can_be_changed_alone() {
        let settings = [
            r#"data={"kind":"folder","path":"x","held_out":3}"#.to_string(),
            "data.held_out=5".to_string(),
        ];
        let config = small().layered(None, &settings).unwrap();
        assert!(matches!(
            config.data,
            ImageSource::Folder { held_out: 5, .. }
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
        assert!(refusal(&["architecture.order={\"axis\":2}"]).contains("axes 0 (row)"));
        assert!(refusal(&["batch_size"]).contains("expected key=value"));
        assert!(
            refusal(&[r#"trainer.policy_gradient.baseline={"kind":"leave_one_out"}"#])
                .contains("needs at least 2")
        );
    }

    #[test]
    fn fingerprints_tell_architectures_apart_and_ignore_the_schedule() {
        let base = small();
        let print = |settings: &[&str], channels| {
            let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
            base.layered(None, &settings)
                .unwrap()
                .fingerprint(channels)
                .unwrap()
        };
        assert_eq!(print(&[], 1), print(&["trainer.steps=5"], 1));
        assert_ne!(print(&[], 1), print(&[], 3));
        assert_ne!(print(&[], 1), print(&["architecture.branching=3"], 1));
        assert_ne!(print(&[], 1), print(&["model=random-route"], 1));
    }
}
