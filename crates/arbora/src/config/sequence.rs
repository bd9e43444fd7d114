//! Configuration of a run on sequences: a transformer classifies tokens, and its attention is of some kind.

mod run;

use super::{LARGEST_SIZE, Preset};
use anyhow::{Result, anyhow, bail};
use arbora_attention::{
    AlignmentConfig, AttentionKindConfig, BigBirdConfig, LinformerConfig, PerformerConfig,
    RouterConfig, TreeCoarseConfig, TreeFineConfig, TreeScope, TreeSharing,
};
use arbora_models::TreeformerConfig;
use arbora_models::init::stable_hash;
use arbora_rl::train::{OptimizerConfig, TrainerConfig};
use arbora_tasks::recall::{Lookup, NeedleConfig, RecallConfig, Stage};
use arbora_tree::routing::Surrogate;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceTask {
    /// Multi-query associative recall: many pairs of a key and a value, then keys that ask for theirs.
    Recall,
    /// Needles in a haystack: few pairs among tokens that mean nothing, asked for at the end.
    Needle,
}

impl SequenceTask {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recall => "recall",
            Self::Needle => "needle",
        }
    }
}

/// How the transformer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceModelKind {
    /// To all tokens.
    Dense,
    /// Within the leaves of binary trees: TF-Attention.
    TreeFine,
    /// Within the leaves of k-ary trees.
    TreeFineKary,
    /// To means over the nodes of trees: TC-Attention.
    TreeCoarse,
    /// To learned mixtures of tokens.
    Linformer,
    /// To a window, random blocks and global ones.
    BigBird,
    /// By random features.
    Performer,
}

impl SequenceModelKind {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::TreeFine => "tree-fine",
            Self::TreeFineKary => "tree-fine-kary",
            Self::TreeCoarse => "tree-coarse",
            Self::Linformer => "linformer",
            Self::BigBird => "big-bird",
            Self::Performer => "performer",
        }
    }
}

/// Where the sequences come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SequenceSource {
    /// Associative recall, drawn.
    Recall(RecallConfig),
    /// Needles in a haystack, drawn.
    Needle(NeedleConfig),
}

impl SequenceSource {
    fn task(&self) -> SequenceTask {
        match self {
            Self::Recall(_) => SequenceTask::Recall,
            Self::Needle(_) => SequenceTask::Needle,
        }
    }

    fn lookup(&self) -> Result<Lookup> {
        // They know their settings by short names; a person needs the path to give to --set.
        match self {
            Self::Recall(recall) => Lookup::recall(recall.clone()),
            Self::Needle(needle) => Lookup::needle(needle.clone()),
        }
        .map_err(|error| anyhow!("data.{error}"))
    }
}

/// The network, less what the data decide and how it attends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceArchitecture {
    /// Width of tokens.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Width inside the MLPs.
    pub d_ff: usize,
    /// Whether tokens have learned positions.
    pub positions: bool,
    /// Whether every token gets a learned map of the one before it.
    pub local_mixing: bool,
    /// Whether a token sees none after it.
    pub causal: bool,
    /// Dropout in MLPs and after attention and MLPs.
    pub dropout: f64,
    /// Blocks that attend densely whatever the model, counted from the tokens.
    pub dense_layers: usize,
}

/// The settings of every way to attend; a run uses those of its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSettings {
    /// Of `tree-fine`.
    pub tree_fine: TreeFineConfig,
    /// Of `tree-fine-kary`.
    pub tree_fine_kary: TreeFineConfig,
    /// Of `tree-coarse`, which takes no alignment.
    pub tree_coarse: TreeCoarseConfig,
    /// Of `linformer`; the most tokens are those of the data.
    pub linformer: LinformerConfig,
    /// Of `big-bird`.
    pub big_bird: BigBirdConfig,
    /// Of `performer`.
    pub performer: PerformerConfig,
}

/// How trees learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeTraining {
    /// Weight of the loss against skewed trees.
    pub lambda_balance: f64,
    /// Weight of the loss that aligns routes with dense attention.
    pub lambda_alignment: f64,
    /// Whether the candidates of `top-margin` fall from 4 to 2 to 1 at thirds of the run, whatever the
    /// surrogate says.
    pub anneal: bool,
    /// Learning rate of trees relative to that of all other parameters.
    pub rate: f64,
    /// Whether new trees start by splitting a batch evenly; otherwise their directions are random and their
    /// biases 0.
    pub median_split: bool,
}

/// Everything that determines a run's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceConfig {
    /// What is learned.
    pub task: SequenceTask,
    /// How the transformer attends.
    pub model: SequenceModelKind,
    /// The trained run whose weights this one starts from; none with `null`.
    pub from: Option<PathBuf>,
    /// Where the sequences come from.
    pub data: SequenceSource,
    /// Sequences of full length per training step.
    pub batch_size: usize,
    /// Sequences per evaluation batch.
    pub eval_batch_size: usize,
    /// Sequences measured during training.
    pub eval_items: usize,
    /// Sequences measured at the end and by `arbora eval`.
    pub test_items: usize,
    /// The network.
    pub architecture: SequenceArchitecture,
    /// Every way to attend.
    pub attention: AttentionSettings,
    /// How trees learn.
    pub trees: TreeTraining,
    /// The optimiser and the schedule.
    pub trainer: TrainerConfig,
}

impl SequenceConfig {
    /// The settings that a task starts from.
    ///
    /// # Errors
    /// For the published preset: no paper has published these tasks for these models.
    pub fn preset(task: SequenceTask, preset: Preset) -> Result<Self> {
        if preset == Preset::Published {
            bail!(
                "--preset published: {} has no published settings for these models; use small",
                task.name()
            );
        }
        let stage = |length, steps| Stage { length, steps };
        let (data, steps, rows) = match task {
            SequenceTask::Recall => {
                let recall = RecallConfig {
                    curriculum: vec![stage(64, 200), stage(128, 100), stage(256, 50)],
                    ..RecallConfig::default()
                };
                (SequenceSource::Recall(recall), 450, 64)
            }
            SequenceTask::Needle => {
                let needle = NeedleConfig {
                    curriculum: vec![stage(64, 300), stage(256, 100)],
                    ..NeedleConfig::default()
                };
                // All rows: few of them ask.
                (SequenceSource::Needle(needle), 450, 512)
            }
        };
        Ok(Self {
            task,
            model: SequenceModelKind::Dense,
            from: None,
            data,
            batch_size: 8,
            eval_batch_size: 8,
            eval_items: 32,
            test_items: 128,
            architecture: SequenceArchitecture {
                d_model: 64,
                heads: 2,
                kv_heads: 2,
                layers: 1,
                d_ff: 128,
                positions: false,
                local_mixing: true,
                causal: false,
                dropout: 0.0,
                dense_layers: 0,
            },
            attention: AttentionSettings {
                tree_fine: trees([2, 2, 2], rows),
                tree_fine_kary: trees([4, 4], rows),
                tree_coarse: means([2, 2, 2, 2]),
                // About a quarter of the cost of dense attention, or less.
                linformer: LinformerConfig {
                    rank: 64,
                    ..LinformerConfig::default()
                },
                big_bird: BigBirdConfig {
                    block: 16,
                    global: 1,
                    ..BigBirdConfig::default()
                },
                performer: PerformerConfig {
                    features: 64,
                    ..PerformerConfig::default()
                },
            },
            trees: TreeTraining {
                lambda_balance: 1.0,
                lambda_alignment: 1.0,
                anneal: false,
                rate: 3.0,
                median_split: true,
            },
            trainer: TrainerConfig {
                steps,
                eval_every: 50,
                checkpoint_every: 100,
                learning_rate: 5e-3,
                final_learning_rate: 1.5e-4,
                warmup_steps: 30,
                optimizer: OptimizerConfig {
                    beta_2: 0.98,
                    ..OptimizerConfig::default()
                },
                ..TrainerConfig::default()
            },
        })
    }

    /// The same settings for a run that starts from the weights of another one: fewer steps at a lower rate,
    /// all on whole sequences.
    #[must_use]
    pub fn started_from(mut self, run: PathBuf) -> Self {
        match &mut self.data {
            SequenceSource::Recall(recall) => recall.curriculum.clear(),
            SequenceSource::Needle(needle) => needle.curriculum.clear(),
        }
        self.from = Some(run);
        self.trainer = TrainerConfig {
            steps: 200,
            eval_every: 25,
            learning_rate: 3e-3,
            final_learning_rate: 9e-5,
            warmup_steps: 10,
            ..self.trainer
        };
        self
    }

    /// The sequences.
    ///
    /// # Errors
    /// If they do not fit together.
    pub fn lookup(&self) -> Result<Lookup> {
        self.data.lookup()
    }

    /// How all but the lowest layers attend, with seeds of the run.
    pub fn attention_kind(&self, tokens: usize) -> AttentionKindConfig {
        let purpose = arbora_rl::seed::Purpose::Parameters;
        let seed = arbora_rl::seed::derive(self.trainer.seed, purpose);
        let settings = &self.attention;
        let seeded = |router: &RouterConfig| RouterConfig {
            seed: router.seed.wrapping_add(seed),
            // What no loss reads is not computed.
            balance_loss: self.trees.lambda_balance > 0.0,
            alignment: router
                .alignment
                .filter(|_| self.trees.lambda_alignment > 0.0),
            ..router.clone()
        };
        let fine = |tree: &TreeFineConfig| {
            AttentionKindConfig::TreeFine(TreeFineConfig {
                router: seeded(&tree.router),
                ..tree.clone()
            })
        };
        match self.model {
            SequenceModelKind::Dense => AttentionKindConfig::Dense,
            SequenceModelKind::TreeFine => fine(&settings.tree_fine),
            SequenceModelKind::TreeFineKary => fine(&settings.tree_fine_kary),
            SequenceModelKind::TreeCoarse => AttentionKindConfig::TreeCoarse(TreeCoarseConfig {
                router: seeded(&settings.tree_coarse.router),
                ..settings.tree_coarse.clone()
            }),
            SequenceModelKind::Linformer => AttentionKindConfig::Linformer(LinformerConfig {
                max_tokens: tokens,
                ..settings.linformer.clone()
            }),
            SequenceModelKind::BigBird => AttentionKindConfig::BigBird(BigBirdConfig {
                seed: settings.big_bird.seed.wrapping_add(seed),
                ..settings.big_bird.clone()
            }),
            SequenceModelKind::Performer => AttentionKindConfig::Performer(PerformerConfig {
                seed: settings.performer.seed.wrapping_add(seed),
                ..settings.performer.clone()
            }),
        }
    }

    /// The settings of the model's trees, if it has any.
    pub fn router(&self) -> Option<&RouterConfig> {
        match self.model {
            SequenceModelKind::TreeFine => Some(&self.attention.tree_fine.router),
            SequenceModelKind::TreeFineKary => Some(&self.attention.tree_fine_kary.router),
            SequenceModelKind::TreeCoarse => Some(&self.attention.tree_coarse.router),
            _ => None,
        }
    }

    /// The network's full configuration for these sequences.
    pub fn treeformer(&self, lookup: &Lookup) -> TreeformerConfig {
        let a = &self.architecture;
        TreeformerConfig::new(lookup.vocabulary(), lookup.classes())
            .with_d_model(a.d_model)
            .with_heads(a.heads)
            .with_kv_heads(Some(a.kv_heads))
            .with_layers(a.layers)
            .with_d_ff(a.d_ff)
            .with_max_positions(if a.positions { lookup.length() } else { 0 })
            .with_local_mixing(a.local_mixing)
            .with_causal(a.causal)
            .with_dropout(a.dropout)
            .with_attention(self.attention_kind(lookup.length()))
            .with_dense_layers(a.dense_layers)
    }

    fn check_settings(&self) -> Result<()> {
        if self.data.task() != self.task {
            bail!("data: of another task than {}", self.task.name());
        }
        let a = &self.architecture;
        let sizes = [
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("eval_items", self.eval_items, 1),
            ("test_items", self.test_items, 1),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.heads", a.heads, 1),
            ("architecture.kv_heads", a.kv_heads, 1),
            ("architecture.layers", a.layers, 1),
            ("architecture.d_ff", a.d_ff, 1),
        ];
        for (key, value, least) in sizes {
            if !(least..=LARGEST_SIZE).contains(&value) {
                bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
            }
        }
        for (key, whole, part) in [
            ("architecture.heads", a.d_model, a.heads),
            ("architecture.kv_heads", a.heads, a.kv_heads),
        ] {
            if !whole.is_multiple_of(part) {
                bail!("{key}: expected a divisor of {whole}, got {part}");
            }
        }
        if let Some(router) = self.router()
            && router.scope == TreeScope::PerLayer
            && router.sharing == TreeSharing::Shared
            && a.kv_heads != a.heads
        {
            bail!(
                "architecture.kv_heads: expected {} for a tree per layer that queries and keys share, got {}",
                a.heads,
                a.kv_heads
            );
        }
        if a.dense_layers > a.layers {
            bail!(
                "architecture.dense_layers: expected at most {}, got {}",
                a.layers,
                a.dense_layers
            );
        }
        in_unit("architecture.dropout", a.dropout)?;
        let trees = &self.trees;
        for (key, number) in [
            ("trees.lambda_balance", trees.lambda_balance),
            ("trees.lambda_alignment", trees.lambda_alignment),
            ("trees.rate", trees.rate),
        ] {
            if !(number.is_finite() && number >= 0.0) {
                bail!("{key}: expected a number of at least 0, got {number}");
            }
        }
        for (key, tree) in [
            ("attention.tree_fine", &self.attention.tree_fine),
            ("attention.tree_fine_kary", &self.attention.tree_fine_kary),
        ] {
            check_router(key, &tree.router)?;
            in_unit(&format!("{key}.dropout"), tree.dropout)?;
        }
        let others = &self.attention;
        check_router("attention.tree_coarse", &others.tree_coarse.router)?;
        if others.tree_coarse.router.alignment.is_some() {
            bail!("attention.tree_coarse.router.alignment: means are not aligned, expected null");
        }
        for (key, value) in [
            ("attention.linformer.rank", others.linformer.rank),
            ("attention.big_bird.block", others.big_bird.block),
            ("attention.big_bird.window", others.big_bird.window),
            ("attention.performer.features", others.performer.features),
        ] {
            if !(1..=LARGEST_SIZE).contains(&value) {
                bail!("{key}: expected 1 to {LARGEST_SIZE}, got {value}");
            }
        }
        if others.big_bird.window.is_multiple_of(2) {
            bail!(
                "attention.big_bird.window: expected an odd number, got {}",
                others.big_bird.window
            );
        }
        self.lookup()?;
        if a.causal
            && matches!(
                self.model,
                SequenceModelKind::Linformer | SequenceModelKind::BigBird
            )
        {
            bail!(
                "architecture.causal: {} has no causal form",
                self.model.name()
            );
        }
        let trainer = &self.trainer;
        trainer
            .validate()
            .map_err(|error| anyhow!("trainer.{error}"))
    }

    fn architecture_fingerprint(&self, lookup: &Lookup) -> Result<String> {
        let text = serde_json::to_string(&self.treeformer(lookup))?;
        Ok(format!("{}-{:016x}", self.model.name(), stable_hash(&text)))
    }
}

/// Trees of TF-Attention as they start out.
///
/// - rows: queries and keys whose routes are aligned with dense attention in a step
fn trees<const H: usize>(branching: [usize; H], rows: usize) -> TreeFineConfig {
    TreeFineConfig {
        router: RouterConfig {
            surrogate: SURROGATE,
            alignment: Some(AlignmentConfig { rows }),
            ..RouterConfig::new(branching)
        },
        ..TreeFineConfig::default()
    }
}

/// Trees of TC-Attention as they start out. Rows are normalised, since trees learn better so; folding the
/// projections into the trees would need them as they are.
fn means<const H: usize>(branching: [usize; H]) -> TreeCoarseConfig {
    let defaults = TreeCoarseConfig::default();
    TreeCoarseConfig {
        router: RouterConfig {
            branching: branching.into(),
            surrogate: SURROGATE,
            normalize: true,
            ..defaults.router
        },
        ..defaults
    }
}

const SURROGATE: Surrogate = Surrogate::TopMargin {
    candidates: 2,
    temperature: 0.3,
};

fn check_router(key: &str, router: &RouterConfig) -> Result<()> {
    let mut leaves = 1usize;
    for factor in &router.branching {
        if *factor < 2 {
            bail!("{key}.router.branching: expected factors of at least 2, got {factor}");
        }
        leaves = leaves.saturating_mul(*factor);
    }
    if leaves > LARGEST_SIZE {
        bail!("{key}.router.branching: expected at most {LARGEST_SIZE} leaves, got {leaves}");
    }
    if !(router.balance_rate.is_finite() && router.balance_rate >= 0.0) {
        bail!(
            "{key}.router.balance_rate: expected a number of at least 0, got {}",
            router.balance_rate
        );
    }
    if let Some(alignment) = router.alignment
        && alignment.rows == 0
    {
        bail!("{key}.router.alignment.rows: expected at least 1, got 0");
    }
    let surrogate = &router.surrogate;
    let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => bail!("{key}.router.surrogate.{name}: expected a positive number, got {value}"),
    };
    positive("temperature", surrogate.temperature())?;
    match *surrogate {
        Surrogate::TopMargin { candidates: 0, .. } => {
            bail!("{key}.router.surrogate.candidates: expected at least 1, got 0")
        }
        Surrogate::DenseGradient { clip, scale, .. } => {
            positive("clip", clip)?;
            positive("scale", scale.unwrap_or(1.0))?;
        }
        _ => {}
    }
    Ok(())
}

fn in_unit(key: &str, rate: f64) -> Result<()> {
    if !(0.0..1.0).contains(&rate) {
        bail!("{key}: expected 0 to below 1, got {rate}");
    }
    Ok(())
}
