//! An experiment on language: what keeps the leaves of a tree in use.

use super::{Experiment, Row, metric};

/// A tree with a way to learn decisions and a way to keep leaves in use.
const fn tree(name: &'static str, title: &'static str, settings: &'static [&'static str]) -> Row {
    Row {
        name,
        title,
        model: "tree-coder",
        preset: None,
        settings,
        seeds: &[0, 1, 2],
        at_random: None,
        from: None,
    }
}

/// One gradient with every balance: the weight of the loss and the rate of the bias.
macro_rules! balanced {
    ($name:literal, $title:literal, $gradient:literal, $weight:literal, $rate:literal) => {
        [
            tree(
                concat!($name, "-unbalanced"),
                concat!($title, "; no balance"),
                &[$gradient, r#"selector.balance={"kind":"none"}"#],
            ),
            tree(
                concat!($name, "-loss"),
                concat!($title, "; balance by a loss, weight ", $weight),
                &[
                    $gradient,
                    concat!(
                        r#"selector.balance={"kind":"switch-loss","weight":"#,
                        $weight,
                        "}"
                    ),
                ],
            ),
            tree(
                concat!($name, "-bias"),
                concat!($title, "; balance by a bias, rate ", $rate),
                &[
                    $gradient,
                    concat!(
                        r#"selector.balance={"kind":"loss-free","rate":"#,
                        $rate,
                        "}"
                    ),
                ],
            ),
        ]
    };
}

const BALANCED: &[[Row; 3]] = &[
    balanced!(
        "scaled-delta",
        "scaled delta",
        r#"selector.gradient={"kind":"scaled-delta"}"#,
        "0.01",
        "0.001"
    ),
    balanced!(
        "value-preserving",
        "value preserving",
        r#"selector.gradient={"kind":"value-preserving"}"#,
        "0.01",
        "0.001"
    ),
    balanced!(
        "gumbel",
        "Gumbel straight-through",
        r#"selector.gradient={"kind":"gumbel-straight-through","temperature":1.0}"#,
        "0.01",
        "0.003"
    ),
    balanced!(
        "reinforce",
        "REINFORCE",
        r#"selector.gradient={"kind":"reinforce"}"#,
        "0.1",
        "0.001"
    ),
];

/// Less the last, REINFORCE with a bias: `arbora` refuses it, since samples follow the probabilities alone.
const ROWS: &[Row] = match BALANCED.as_flattened() {
    [rows @ .., _refused] => rows,
    [] => &[],
};

pub static LM_BALANCE: Experiment = Experiment {
    name: "lm-balance",
    title: "What keeps leaves in use",
    about: "\
A TreeCoder with 4 leaves learns Moby-Dick. Rows differ in how its selectors get a gradient through their
decisions, and in what keeps leaves equally full: nothing, the loss of Switch Transformers at every node, or a bias
that is moved against the load. The smallest and the largest leaf are shares of the held-out sequences relative to a
fair share, which is 1. Effective leaves are as many leaves of equal shares as have the entropy of the shares.",
    task: "lm",
    alone: &[],
    settings: &[
        "architecture.branching=2",
        "architecture.height=2",
        "architecture.blocks=[1]",
        "architecture.d_model=32",
        "architecture.d_ff=[128]",
        "data.window=64",
        "batch_size=16",
        "trainer.steps=300",
        "trainer.learning_rate=0.03",
        "trainer.final_learning_rate=0.0015",
        "trainer.warmup_steps=30",
        "trainer.eval_every=150",
        "trainer.checkpoint_every=300",
        "eval_items=64",
        "test_items=768",
    ],
    rows: ROWS,
    columns: &[
        metric("loss", "held-out loss, nats per token", 3),
        metric("bits_per_byte", "bits per byte", 3),
        metric("leaf_share_min", "smallest leaf", 2),
        metric("leaf_share_max", "largest leaf", 2),
        metric("effective_leaves", "effective leaves", 2),
    ],
    reading: None,
    published: "",
    in_readme: false,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::grid;

    /// The check itself is `arbora`'s, which this crate does not build.
    #[test]
    fn sampled_decisions_are_balanced_by_no_bias() {
        assert_eq!(LM_BALANCE.rows.len(), 11);
        for row in LM_BALANCE.rows {
            let says = |word: &str| row.settings.iter().any(|setting| setting.contains(word));
            assert!(!(says("reinforce") && says("loss-free")), "{}", row.name);
        }
        let sampled = LM_BALANCE.rows.iter().map(|row| row.name);
        let sampled: Vec<_> = sampled
            .filter(|name| name.starts_with("reinforce"))
            .collect();
        assert_eq!(sampled, ["reinforce-unbalanced", "reinforce-loss"]);
    }

    #[test]
    fn runs_are_those_of_the_grid_but_for_their_gradients_and_balance() {
        for setting in grid::SETTINGS {
            assert!(LM_BALANCE.settings.contains(&setting), "{setting}");
        }
    }
}
