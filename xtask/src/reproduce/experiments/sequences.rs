//! Experiments on sequences: attention of every kind beside dense attention, and how trees learn.

use super::{ACCURACY, Column, Experiment, Row, metric};

const CORE: Column = metric("core_flops_percent", "core FLOPs, % of dense", 1);
const LEAVES: Column = metric("effective_leaves", "effective leaves", 1);
const FULLEST: Column = metric("leaf_tokens_max", "tokens in the fullest leaf", 1);

/// The row of trained dense attention that the others start from.
const fn dense(seeds: &'static [u64]) -> Row {
    Row {
        name: "dense",
        title: "dense attention",
        model: "dense",
        preset: None,
        settings: &[],
        seeds,
        at_random: None,
        from: None,
    }
}

/// A row that starts from the dense one.
const fn tuned(
    model: &'static str,
    name: &'static str,
    title: &'static str,
    settings: &'static [&'static str],
    seeds: &'static [u64],
) -> Row {
    Row {
        name,
        title,
        model,
        preset: None,
        settings,
        seeds,
        at_random: None,
        from: Some("dense"),
    }
}

const AGAIN: &str = "dense attention, trained on";
const SEEDS: &[u64] = &[0, 1, 2];

/// Every way to attend, all but the first from the weights of the first.
const WAYS: &[Row] = &[
    dense(SEEDS),
    tuned("dense", "dense-again", AGAIN, &[], SEEDS),
    tuned("tree-fine", "tree-fine", "TF-Attention, binary", &[], SEEDS),
    tuned(
        "tree-fine-kary",
        "tree-fine-kary",
        "TF-Attention, 4-ary, 16 leaves",
        &[],
        SEEDS,
    ),
    tuned(
        "tree-coarse",
        "tree-coarse",
        "TC-Attention, 4-ary, 256 leaves",
        // Means need leaves that differ more than leaves that are full.
        &["trees.lambda_balance=1"],
        SEEDS,
    ),
    tuned("linformer", "linformer", "Linformer, rank 64", &[], SEEDS),
    tuned("big-bird", "big-bird", "BigBird, blocks of 16", &[], SEEDS),
    tuned(
        "performer",
        "performer",
        "Performer, 64 features",
        &[],
        SEEDS,
    ),
];

const COLUMNS: &[Column] = &[
    ACCURACY,
    CORE,
    LEAVES,
    FULLEST,
    Column::Parameters,
    Column::Steps,
];

pub static RECALL: Experiment = Experiment {
    name: "recall",
    title: "Associative recall",
    about: "\
A sequence of 512 tokens shows 64 pairs of a key and a value, and then asks 384 times for the value of a key.
Dense attention is trained first; every other row starts from its weights of the same seed and is trained on
with another way to attend, for fewer steps. Core FLOPs are those of attention without its projections, by the
counts of tokens per leaf that were measured, relative to dense attention. Effective leaves are the inverse of
the share of all pairs of a query and a key that meet in a leaf. They can exceed the leaves there are, where
queries and keys prefer different ones.",
    task: "recall",
    alone: &[],
    settings: &[],
    rows: WAYS,
    columns: COLUMNS,
    reading: None,
    published: "",
    in_readme: false,
};

pub static NEEDLE: Experiment = Experiment {
    name: "needle",
    title: "Needles in a haystack",
    about: "\
A sequence of 512 tokens hides 8 pairs of a key and a value among tokens that mean nothing, and asks 16 times
for the value of a key at its end. Rows and columns are those of associative recall.",
    task: "needle",
    alone: &[],
    settings: &[],
    rows: WAYS,
    columns: COLUMNS,
    reading: None,
    published: "",
    in_readme: false,
};

/// One way to make the gradient of a route, with every balance.
macro_rules! balanced {
    ($name:literal, $title:literal, $($setting:literal),+) => {
        [
            tuned(
                "tree-fine",
                concat!($name, "-unbalanced"),
                concat!($title, "; no balance"),
                &[$($setting),+, "trees.lambda_balance=0"],
                &[0],
            ),
            tuned(
                "tree-fine",
                concat!($name, "-loss"),
                concat!($title, "; balance by a loss"),
                &[$($setting),+, "trees.lambda_balance=4"],
                &[0],
            ),
            tuned(
                "tree-fine",
                concat!($name, "-bias"),
                concat!($title, "; balance by a bias"),
                &[
                    $($setting),+,
                    "trees.lambda_balance=0",
                    "attention.tree_fine.router.balance_rate=0.01",
                ],
                &[0],
            ),
        ]
    };
}

const ABLATION: &[[Row; 3]] = &[
    [
        dense(&[0]),
        tuned("dense", "dense-again", AGAIN, &[], &[0]),
        tuned(
            "tree-fine",
            "default-random",
            "the default from random directions without a split",
            &["trees.median_split=false"],
            &[0],
        ),
    ],
    balanced!(
        "dgt",
        "Dense Gradient Trees",
        "trees.lambda_alignment=0",
        r#"attention.tree_fine.router.surrogate={"kind":"dense-gradient","temperature":0.3,"clip":1.0,"scale":null}"#
    ),
    balanced!(
        "dgt-aligned",
        "Dense Gradient Trees, aligned",
        "trees.lambda_alignment=1",
        r#"attention.tree_fine.router.surrogate={"kind":"dense-gradient","temperature":0.3,"clip":1.0,"scale":null}"#
    ),
    balanced!(
        "top-1",
        "best leaf",
        "trees.lambda_alignment=0",
        "attention.tree_fine.router.surrogate.candidates=1"
    ),
    balanced!(
        "top-1-aligned",
        "best leaf, aligned",
        "trees.lambda_alignment=1",
        "attention.tree_fine.router.surrogate.candidates=1"
    ),
    balanced!(
        "top-2",
        "best 2 leaves",
        "trees.lambda_alignment=0",
        "attention.tree_fine.router.surrogate.candidates=2"
    ),
    balanced!(
        "top-2-aligned",
        "best 2 leaves, aligned",
        "trees.lambda_alignment=1",
        "attention.tree_fine.router.surrogate.candidates=2"
    ),
    balanced!(
        "top-4",
        "best 4 leaves",
        "trees.lambda_alignment=0",
        "attention.tree_fine.router.surrogate.candidates=4"
    ),
    balanced!(
        "top-4-aligned",
        "best 4 leaves, aligned",
        "trees.lambda_alignment=1",
        "attention.tree_fine.router.surrogate.candidates=4"
    ),
    balanced!(
        "annealed",
        "best 4, 2, then 1 leaves",
        "trees.lambda_alignment=0",
        "trees.anneal=true"
    ),
    balanced!(
        "annealed-aligned",
        "best 4, 2, then 1 leaves, aligned",
        "trees.lambda_alignment=1",
        "trees.anneal=true"
    ),
];

pub static RECALL_ABLATION: Experiment = Experiment {
    name: "recall-ablation",
    title: "What teaches the trees",
    about: "\
Associative recall with 256 tokens and 32 pairs. TF-Attention with binary trees of 8 leaves starts from trained
dense attention and is trained for 400 steps. Rows differ in what the gradient of a route is (Dense Gradient
Trees, or a mixture of the best few leaves by their margins), in whether routes are also aligned with dense
attention by a loss, and in what keeps leaves equally full: nothing, a loss, or biases that follow the counts.",
    task: "recall",
    alone: &[],
    settings: &[
        "data.length=256",
        "data.pairs=32",
        "attention.tree_fine.router.branching=[2,2,2]",
    ],
    rows: ABLATION.as_flattened(),
    columns: &[ACCURACY, CORE, LEAVES, FULLEST, Column::Steps],
    reading: None,
    published: "",
    in_readme: false,
};
