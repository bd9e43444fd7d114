//! How many latents a Perceiver IO has, and its configuration as text.

use arbora_models::{HeadKind, ModelConfig, PerceiverIoConfig, StdKind, latents_for};
use arbora_tree::{Layout, TokenTreeShape};
use burn::config::Config;
use proptest::prelude::*;

const LAYOUTS: [Layout; 2] = [Layout::LeftFilled, Layout::Published];

#[test]
fn there_are_as_many_latents_as_published_retreever_retrieves_tokens() {
    let published = [(128, 8), (256, 9), (512, 10), (47, 7), (197, 9), (50, 7)];
    for (tokens, expected) in published {
        for layout in LAYOUTS {
            let got = latents_for(tokens, 2, layout);
            assert_eq!(got, expected, "{tokens} tokens, {layout:?}");
        }
    }
}

#[test]
fn trees_without_a_decision_are_retrieved_whole() {
    for layout in LAYOUTS {
        for tokens in 1..=4 {
            assert_eq!(latents_for(tokens, 4, layout), tokens, "{layout:?}");
        }
    }
}

#[test]
fn groups_that_are_short_at_the_root_count_what_exists() {
    // Five leaves below two nodes: the other node and four leaves, and not three and four.
    assert_eq!(latents_for(5, 4, Layout::LeftFilled), 5);
    // Ten leaves below three nodes: two others and four leaves.
    assert_eq!(latents_for(10, 4, Layout::LeftFilled), 6);
    // Groups of two leaves below four nodes, ghosts included.
    assert_eq!(latents_for(5, 4, Layout::Published), 5);
}

#[test]
#[should_panic(expected = "tokens: expected at least 1, got 0")]
fn no_tokens_need_no_number_of_latents() {
    latents_for(0, 2, Layout::LeftFilled);
}

proptest! {
    #[test]
    fn latents_follow_the_published_formula_and_never_exceed_tokens(
        tokens in 2usize..5000,
        branching in 2usize..9,
    ) {
        let published = TokenTreeShape::new(tokens, branching, Layout::Published);
        let formula = published.decisions() * (branching - 1) + published.leaf_group();
        prop_assert_eq!(latents_for(tokens, branching, Layout::Published), formula);
        prop_assert!(latents_for(tokens, branching, Layout::LeftFilled) <= tokens);
    }
}

#[test]
fn a_configuration_survives_its_text() {
    let head = HeadKind::Gaussian {
        dim: 1,
        std: StdKind::Exp,
    };
    let config = PerceiverIoConfig::new(ModelConfig::new(3, 2, head).with_d_model(32), 9);
    let read = PerceiverIoConfig::load_binary(config.to_string().as_bytes()).unwrap();
    assert_eq!(read.latents, 9);
    assert_eq!(read.to_string(), config.to_string());
}
