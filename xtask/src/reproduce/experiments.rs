//! What is reproduced, as data: which runs, and what the table of each experiment shows.

mod language;
mod sequences;

use clap::ValueEnum;

/// The experiments by their names on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Image completion on the bundled sample: every model and the random control.
    Images,
    /// Image completion by the order in which pixels become leaves.
    Orders,
    /// Time-series classification: every model and the random control.
    Series,
    /// Regression on functions drawn from Gaussian processes: every model.
    Gp,
    /// The copy task by length: our settings and the published ones.
    Copy,
    /// The copy task by what teaches the policy: rewards, weights, baselines, the guide.
    CopyAblation,
    /// Associative recall: every way to attend, from trained dense attention.
    Recall,
    /// Needles in a haystack, likewise.
    Needle,
    /// Associative recall by what teaches the trees: surrogates, alignment, balance.
    RecallAblation,
    /// A TreeCoder by what teaches its selectors and what keeps its leaves in use.
    LmBalance,
}

/// A table and the runs behind it.
pub struct Experiment {
    /// Its name on the command line, and that of its page and its runs' folder.
    pub name: &'static str,
    /// The heading of its page, for a page that is not there yet.
    pub title: &'static str,
    /// The first paragraph of its page, likewise.
    pub about: &'static str,
    /// What `arbora train` trains.
    pub task: &'static str,
    /// What keeps a run from training a second model for pictures, where its task has one.
    pub alone: &'static [&'static str],
    /// Settings of every run, as `arbora train --set` takes them.
    pub settings: &'static [&'static str],
    pub rows: &'static [Row],
    /// The columns of the table, after the name of the row.
    pub columns: &'static [Column],
    /// How the rows are compared in words.
    pub reading: Option<Reading>,
    /// What others report, as the page shows it.
    pub published: &'static str,
    /// Whether the README shows the table.
    pub in_readme: bool,
}

/// The runs of one row, one per seed, in `<name>-seed<k>`.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub model: &'static str,
    /// Where settings start; the default of the command line without it.
    pub preset: Option<&'static str>,
    /// Settings of this row's runs; they win over those of the experiment.
    pub settings: &'static [&'static str],
    pub seeds: &'static [u64],
    /// A second line of the table: the same weights walking at random.
    pub at_random: Option<&'static str>,
    /// An earlier row whose run with the same seed this one starts from.
    pub from: Option<&'static str>,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// A number that `arbora eval` measures, times `scale`.
    Metric {
        name: &'static str,
        title: &'static str,
        scale: f64,
        digits: usize,
    },
    Parameters,
    Steps,
    /// Step and minutes of training at which the held-out accuracy first was this high.
    Reached(f64),
}

/// What the sentences under a table compare, seed by seed.
pub struct Reading {
    /// What is compared: a metric, times `scale`.
    pub metric: &'static str,
    pub scale: f64,
    pub digits: usize,
    pub name: &'static str,
    pub unit: &'static str,
    /// What tokens are, in the plural.
    pub tokens: &'static str,
    /// The line that is compared with the others.
    pub learned: &'static str,
    /// The line that reads every token.
    pub dense: &'static str,
    /// The others, and what they are in a sentence.
    pub others: &'static [(&'static str, &'static str)],
}

/// What the name of a line with the same weights walking at random ends with.
pub const AT_RANDOM: &str = "-walking-at-random";

const fn metric(name: &'static str, title: &'static str, digits: usize) -> Column {
    Column::Metric {
        name,
        title,
        scale: 1.0,
        digits,
    }
}

const ACCURACY: Column = Column::Metric {
    name: "accuracy",
    title: "held-out accuracy, %",
    scale: 100.0,
    digits: 2,
};
const TOKENS: Column = metric("tokens_percent", "% tokens", 1);
const SELECTED: Column = metric("nodes_selected", "nodes selected", 1);
const READ: Column = metric("nodes_read", "nodes read", 1);

/// A row of one model with nothing else about it.
const fn model(name: &'static str, title: &'static str, seeds: &'static [u64]) -> Row {
    Row {
        name,
        title,
        model: name,
        preset: None,
        settings: &[],
        seeds,
        at_random: None,
        from: None,
    }
}

/// A row of ReTreever with settings of its own.
const fn variant(
    name: &'static str,
    title: &'static str,
    settings: &'static [&'static str],
) -> Row {
    Row {
        name,
        title,
        model: "retreever",
        preset: None,
        settings,
        seeds: &[0],
        at_random: None,
        from: None,
    }
}

const CROSS_ATTENTION: &str = "CrossAttentionModel (all tokens)";
const RETREEVER: &str = "ReTreever (learned route)";
const WALKING_AT_RANDOM: &str = "the same ReTreever, walking at random";
const RANDOM_ROUTE: &str = "ReTreever trained with random routes";
const PERCEIVER: &str = "Perceiver IO (as many latents as ReTreever selects nodes)";

const OTHERS: &[(&str, &str)] = &[
    ("cross-attention", "dense attention with the same encoder"),
    (
        "retreever-walking-at-random",
        "the same trained weights walking at random",
    ),
    ("random-route", "ReTreever trained with random routes"),
    ("perceiver", "Perceiver IO with as many latents"),
];

/// Every row of the models, over the given seeds.
macro_rules! models {
    ($seeds:expr) => {
        [
            model("cross-attention", CROSS_ATTENTION, $seeds),
            Row {
                at_random: Some(WALKING_AT_RANDOM),
                ..model("retreever", RETREEVER, $seeds)
            },
            model("random-route", RANDOM_ROUTE, $seeds),
            model("perceiver", PERCEIVER, $seeds),
        ]
    };
}

static IMAGES: Experiment = Experiment {
    name: "images",
    title: "Image completion on the bundled sample",
    about: "A model sees some pixels of an image and predicts others, each as a normal distribution.",
    task: "images",
    alone: &["compare_with=null"],
    settings: &[],
    rows: &models!(&[0, 1, 2]),
    columns: &[
        metric(
            "log_likelihood",
            "held-out log-likelihood, nats per pixel",
            3,
        ),
        TOKENS,
        SELECTED,
        READ,
        Column::Parameters,
    ],
    reading: Some(Reading {
        metric: "log_likelihood",
        scale: 1.0,
        digits: 3,
        name: "log-likelihood",
        unit: "nats per pixel",
        tokens: "pixels",
        learned: "retreever",
        dense: "cross-attention",
        others: OTHERS,
    }),
    published: "\
Other data, a larger encoder and far more training: the values cannot be compared with those above,
only the order of the models can.

| data | Transformer + Cross Attention | ReTreever | Perceiver IO | ReTreever, % tokens |
|---|---:|---:|---:|---:|
| CelebA, 32×32 | 3.88 ± 0.01 | 3.52 ± 0.01 | 3.20 ± 0.01 | 4.6 |
| EMNIST | 1.41 ± 0.00 | 1.30 ± 0.01 | 1.25 ± 0.01 | 4.6 |

Log-likelihood in nats per pixel. Source: the authors' blog post on Tree Cross Attention (the paper is
arXiv 2309.17388). The share of tokens is derived from the method, not quoted.
",
    in_readme: true,
};

const fn order(name: &'static str, title: &'static str, settings: &'static [&'static str]) -> Row {
    Row {
        seeds: &[0, 1],
        ..variant(name, title, settings)
    }
}

static ORDERS: Experiment = Experiment {
    name: "orders",
    title: "Leaf orders",
    about: "Image completion with ReTreever, by the order in which pixels become leaves.",
    task: "images",
    alone: &["compare_with=null"],
    settings: &["trainer.steps=900"],
    rows: &[
        order(
            "random",
            "random, one permutation for all (control)",
            &[r#"architecture.order={"random":{"seed":0}}"#],
        ),
        order("axis", "by row", &[r#"architecture.order={"axis":0}"#]),
        order("k-d", "k-d tree", &["architecture.order=kd-tree"]),
        order("ball", "ball tree", &["architecture.order=ball-tree"]),
        order("morton", "Morton curve", &["architecture.order=morton"]),
        order(
            "learned",
            "balanced k-means on the encodings",
            &[r#"architecture.order={"learned":{"iterations":4}}"#],
        ),
    ],
    columns: &[
        metric(
            "log_likelihood",
            "held-out log-likelihood, nats per pixel",
            3,
        ),
        TOKENS,
        SELECTED,
        READ,
    ],
    reading: None,
    published: "",
    in_readme: false,
};

static SERIES: Experiment = Experiment {
    name: "series",
    title: "Time-series classification",
    about: "A model reads a window of a time series and names its class.",
    task: "series",
    alone: &["compare_with=null"],
    settings: &[],
    rows: &models!(&[0, 1, 2]),
    columns: &[
        ACCURACY,
        metric("log_likelihood", "log-likelihood, nats", 3),
        TOKENS,
        SELECTED,
        READ,
        Column::Parameters,
    ],
    reading: Some(Reading {
        metric: "accuracy",
        scale: 100.0,
        digits: 2,
        name: "accuracy",
        unit: "percentage points",
        tokens: "time points",
        learned: "retreever",
        dense: "cross-attention",
        others: OTHERS,
    }),
    published: "\
Other data (Human Activity, windows of 50 time points): the values cannot be compared with those above,
only the order of the models can.

| | Transformer + Cross Attention | ReTreever | Perceiver IO | ReTreever, % tokens |
|---|---:|---:|---:|---:|
| accuracy, % | 89.1 ± 1.3 | 88.9 ± 0.4 | 87.6 ± 0.3 | 14 |

Accuracies from a secondary source. The share of tokens is derived from the method, not quoted.
",
    in_readme: false,
};

static GP: Experiment = Experiment {
    name: "gp",
    title: "Regression on functions drawn from Gaussian processes",
    about: "\
A model sees some points of a function and predicts others, each as a normal distribution. It is trained on
functions of the RBF kernel; those of the other kernels it has never seen.",
    task: "gp",
    alone: &["compare_with=null"],
    settings: &["architecture.encoder_layers=6"],
    rows: &[
        model("cross-attention", CROSS_ATTENTION, &[0]),
        Row {
            at_random: Some(WALKING_AT_RANDOM),
            ..model("retreever", RETREEVER, &[0])
        },
        model("perceiver", PERCEIVER, &[0]),
    ],
    columns: &[
        metric("log_likelihood", "log-likelihood, RBF", 3),
        metric("log_likelihood_matern", "log-likelihood, Matérn 5/2", 3),
        metric("log_likelihood_periodic", "log-likelihood, periodic", 3),
        TOKENS,
        SELECTED,
        READ,
        Column::Parameters,
    ],
    reading: Some(Reading {
        metric: "log_likelihood",
        scale: 1.0,
        digits: 3,
        name: "log-likelihood on RBF",
        unit: "nats per point",
        tokens: "points",
        learned: "retreever",
        dense: "cross-attention",
        others: OTHERS,
    }),
    published: "\
With the published network and more training.

| | Transformer + Cross Attention | ReTreever | Perceiver IO | ReTreever, % tokens |
|---|---:|---:|---:|---:|
| log-likelihood, RBF | 1.35 | 1.25 | 1.06 | 14.9 |

Log-likelihoods in nats per point from a secondary source, which also has ReTreever 0.23 above Perceiver IO on
Matérn. The share of tokens is derived from the method, not quoted.
",
    in_readme: false,
};

/// A length of the copy task with our settings.
macro_rules! ours {
    ($length:literal, $steps:literal) => {
        variant(
            concat!("ours-", $length),
            concat!("N = ", $length, ", our settings"),
            &[
                concat!("data.length=", $length),
                concat!("trainer.steps=", $steps),
                "trainer.eval_every=25",
            ],
        )
    };
}

/// A length of the copy task with the published settings.
macro_rules! published {
    ($length:literal) => {
        Row {
            preset: Some("published"),
            ..variant(
                concat!("published-", $length),
                concat!("N = ", $length, ", published settings"),
                &[
                    concat!("data.length=", $length),
                    "trainer.steps=1000",
                    "trainer.eval_every=50",
                ],
            )
        }
    };
}

static COPY: Experiment = Experiment {
    name: "copy",
    title: "The copy task",
    about: "\
A model reads a random sequence of N / 2 characters and writes it in reverse: the token that answers each query
is known, and no other helps. Our settings differ from the published ones in the curriculum, the initialisation,
the guide of the policy and its baseline, the tree's layout, and the optimiser; both are below.",
    task: "copy",
    alone: &["compare_with=null"],
    settings: &[],
    rows: &[
        ours!("64", "600"),
        ours!("128", "600"),
        ours!("256", "600"),
        variant(
            "ours-512",
            "N = 512, our settings, curriculum twice as long",
            &[
                "data.length=512",
                "trainer.steps=700",
                "trainer.eval_every=25",
                r#"data.curriculum={"start":16,"steps":80}"#,
            ],
        ),
        published!("64"),
        published!("128"),
        published!("256"),
    ],
    columns: &[
        Column::Steps,
        ACCURACY,
        metric("log_likelihood", "log-likelihood, nats", 4),
        TOKENS,
        READ,
        Column::Reached(0.99),
        Column::Reached(0.999),
    ],
    reading: None,
    published: "\
Accuracy in %, by the length N of the whole sequence.

| | N = 256 | N = 512 | N = 1,024 |
|---|---:|---:|---:|
| Transformer + Cross Attention | 100.0 ± 0.0 [B] | 100.0 ± 0.0 [B] | 99.9 ± 0.2 [B] |
| ReTreever | 100.0 ± 0.0 [B] | 100.0 ± 0.0 [B] | 99.6 ± 0.6 [B] |
| ReTreever, % tokens | 6.3 [D] | 3.5 [D] | 2.0 [D] |
| Perceiver IO, as many latents | 15.2 [2] | | 11.6 [2] |

[B] the authors' blog post on Tree Cross Attention (the paper is arXiv 2309.17388); [D] derived from the method;
[2] secondary source.
",
    in_readme: false,
};

static COPY_ABLATION: Experiment = Experiment {
    name: "copy-ablation",
    title: "What teaches the policy",
    about: "\
The copy task with N = 256, trained without the guide but for one row. Rows differ in one setting: the reward,
the weight of the policy gradient (λ_RL) or its baseline. The others have the accuracy as reward, weight 1 and
the mean of the batch as baseline.",
    task: "copy",
    alone: &["compare_with=null"],
    settings: &[
        "data.length=256",
        "batch_size=32",
        "trainer.steps=1000",
        "trainer.eval_every=50",
        "lambda_guide=0",
        // A fifth of the usual sequences: twelve rows are measured.
        "test_items=2048",
    ],
    rows: &[
        variant(
            "reward-accuracy",
            "reward: accuracy",
            &["reward=accuracy"],
        ),
        variant(
            "reward-nce",
            "reward: negative cross-entropy",
            &["reward=log-likelihood"],
        ),
        variant("lambda-0", "λ_RL = 0", &["trainer.lambda_rl=0"]),
        variant("lambda-0.1", "λ_RL = 0.1", &["trainer.lambda_rl=0.1"]),
        variant("lambda-10", "λ_RL = 10", &["trainer.lambda_rl=10"]),
        variant(
            "baseline-none",
            "baseline: none",
            &[r#"trainer.policy_gradient.baseline={"kind":"none"}"#],
        ),
        variant(
            "baseline-constant",
            "baseline: constant, the accuracy of chance",
            &[r#"trainer.policy_gradient.baseline={"kind":"constant","value":0.1}"#],
        ),
        variant(
            "baseline-moving-average",
            "baseline: moving average",
            &[r#"trainer.policy_gradient.baseline={"kind":"moving_average","decay":0.9}"#],
        ),
        variant(
            "baseline-batch-mean",
            "baseline: mean of the batch",
            &[r#"trainer.policy_gradient.baseline={"kind":"batch_mean"}"#],
        ),
        variant(
            "baseline-leave-one-out",
            "baseline: leave one out, 2 samples",
            &[
                "samples=2",
                r#"trainer.policy_gradient.baseline={"kind":"leave_one_out"}"#,
            ],
        ),
        variant(
            "baseline-self-critical",
            "baseline: self-critical",
            &[r#"trainer.policy_gradient.baseline={"kind":"self_critical"}"#],
        ),
        variant("guide", "with the guide", &["lambda_guide=1"]),
    ],
    columns: &[
        ACCURACY,
        metric("log_likelihood", "log-likelihood, nats", 4),
        TOKENS,
        Column::Reached(0.99),
        Column::Reached(0.999),
    ],
    reading: None,
    published: "\
Accuracy in % with each reward, by the length N of the whole sequence. λ_RL of 0, 0.1 and 10 fail on the copy
task and 1 works [2].

| reward | N = 256 | N = 512 | N = 1,024 |
|---|---:|---:|---:|
| accuracy | 100.0 [B] | 100.0 [B] | 99.6 [B] |
| negative cross-entropy | 99.8 ± 0.3 [B] | 95.5 ± 3.8 [B] | 80.3 ± 14.8 [B] |

[B] the authors' blog post on Tree Cross Attention (the paper is arXiv 2309.17388); [2] secondary source.
",
    in_readme: false,
};

impl Name {
    pub fn experiment(self) -> &'static Experiment {
        match self {
            Self::Images => &IMAGES,
            Self::Orders => &ORDERS,
            Self::Series => &SERIES,
            Self::Gp => &GP,
            Self::Copy => &COPY,
            Self::CopyAblation => &COPY_ABLATION,
            Self::Recall => &sequences::RECALL,
            Self::Needle => &sequences::NEEDLE,
            Self::RecallAblation => &sequences::RECALL_ABLATION,
            Self::LmBalance => &language::LM_BALANCE,
        }
    }
}

impl Experiment {
    /// What the generated part of its page is marked with.
    pub fn generator(&self) -> String {
        format!("cargo xtask reproduce {}", self.name)
    }

    /// The name and the title of every line of the table, in its order.
    pub fn lines(&self) -> Vec<(String, &'static str)> {
        let mut lines = Vec::new();
        for row in self.rows {
            lines.push((row.name.to_string(), row.title));
            lines.extend(
                row.at_random
                    .map(|title| (format!("{}{AT_RANDOM}", row.name), title)),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn experiments_are_called_what_the_command_line_calls_them() {
        for name in Name::value_variants() {
            let value = name.to_possible_value().unwrap();
            assert_eq!(value.get_name(), name.experiment().name);
        }
    }

    #[test]
    fn no_two_rows_share_a_folder_and_readings_name_lines_that_there_are() {
        for experiment in Name::value_variants().iter().map(|name| name.experiment()) {
            let lines = experiment.lines();
            let names: BTreeSet<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names.len(), lines.len(), "{}", experiment.name);
            if let Some(reading) = &experiment.reading {
                assert!(names.contains(reading.learned) && names.contains(reading.dense));
            }
            for (at, row) in experiment.rows.iter().enumerate() {
                assert!(!row.seeds.is_empty());
                if let Some(from) = row.from {
                    let earlier = experiment.rows[..at].iter().find(|row| row.name == from);
                    let earlier = earlier.expect("runs are trained in the order of rows");
                    assert!(row.seeds.iter().all(|seed| earlier.seeds.contains(seed)));
                }
                for setting in experiment.settings.iter().chain(row.settings) {
                    super::super::runs::setting(setting).unwrap();
                }
            }
        }
    }
}
