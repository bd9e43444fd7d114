//! Which settings are refused.

use arbora_attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora_attention::{AttentionKindConfig, TreeFineConfig, TreeScope};
use arbora_models::TreeCoderConfig;
use arbora_models::tree_coder::{
    LeafHead, RouteOn, SelectorBalance, SelectorConfig, SelectorGradient,
};
use burn::config::Config;

fn config() -> TreeCoderConfig {
    TreeCoderConfig::new(7, 32)
}

fn learning(gradient: SelectorGradient, balance: SelectorBalance) -> TreeCoderConfig {
    let selector = SelectorConfig::new()
        .with_gradient(gradient)
        .with_balance(balance);
    config().with_selector(selector)
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let loss_free = SelectorBalance::LossFree { rate: 0.1 };
    let infinite = SelectorBalance::LossFree {
        rate: f64::INFINITY,
    };
    let noise = SelectorGradient::GumbelStraightThrough { temperature: 0.0 };
    let linformer = AttentionKindConfig::Linformer(LinformerConfig::default());
    let short = AttentionKindConfig::Linformer(LinformerConfig {
        max_tokens: 31,
        ..Default::default()
    });
    // A context of 32 is filled up to 35 tokens.
    let chunked = AttentionKindConfig::Linformer(LinformerConfig {
        max_tokens: 34,
        ..Default::default()
    });
    // One tree for two heads of queries and one of keys.
    let mut shared = TreeFineConfig::new([2]);
    shared.router.scope = TreeScope::PerLayer;
    let shared = AttentionKindConfig::TreeFine(shared);
    let big_bird = AttentionKindConfig::BigBird(BigBirdConfig::default());
    let none = SelectorBalance::None;
    for (setting, refused) in [
        ("vocabulary", TreeCoderConfig::new(0, 32)),
        ("context", TreeCoderConfig::new(7, 0)),
        ("classes", config().with_classes(Some(0))),
        ("n_heads", config().with_n_heads(0)),
        ("n_heads", config().with_n_heads(3)),
        ("n_kv_heads", config().with_n_kv_heads(Some(0))),
        (
            "n_kv_heads",
            config().with_n_heads(4).with_n_kv_heads(Some(3)),
        ),
        ("branching", config().with_branching(1)),
        ("branching", config().with_branching(0)),
        ("blocks", config().with_blocks(vec![])),
        ("blocks", config().with_blocks(vec![1, 1])),
        ("blocks", config().with_blocks(vec![1, 0, 1])),
        (
            "blocks",
            config().with_height(usize::MAX).with_blocks(vec![1, 1]),
        ),
        ("d_ff", config().with_d_ff(vec![8, 8, 8, 8])),
        ("d_ff", config().with_d_ff(vec![0])),
        // One width per block is for a single node.
        ("d_ff", config().with_blocks(vec![4]).with_d_ff(vec![8; 4])),
        ("d_ff", config().with_height(0).with_d_ff(vec![8; 2])),
        ("height", config().with_height(16)),
        ("height", config().with_height(usize::MAX)),
        ("dropout", config().with_dropout(1.0)),
        ("dropout", config().with_dropout(f64::NAN)),
        (
            "route_on.tokens",
            config().with_route_on(RouteOn::FirstN { tokens: 0 }),
        ),
        (
            "route_on.tokens",
            config().with_route_on(RouteOn::PreviousChunk { tokens: 33 }),
        ),
        (
            "selector.hidden",
            config().with_selector(SelectorConfig::new().with_hidden(Some(0))),
        ),
        ("selector.gradient.temperature", learning(noise, none)),
        (
            "selector.balance.weight",
            learning(
                SelectorGradient::ScaledDelta,
                SelectorBalance::SwitchLoss { weight: 0.0 },
            ),
        ),
        (
            "selector.balance.rate",
            learning(SelectorGradient::ScaledDelta, infinite),
        ),
        (
            "selector.balance",
            learning(SelectorGradient::Soft, loss_free),
        ),
        (
            "selector.balance",
            learning(SelectorGradient::Reinforce, loss_free),
        ),
        (
            "attention.features",
            config().with_attention(AttentionKindConfig::Performer(PerformerConfig {
                features: 0,
                ..Default::default()
            })),
        ),
        (
            "attention.router.sharing",
            config().with_n_kv_heads(Some(1)).with_attention(shared),
        ),
        ("attention", config().with_attention(linformer)),
        ("attention", config().with_attention(big_bird)),
        (
            "attention.max_tokens",
            config().with_causal(false).with_attention(short),
        ),
        (
            "attention.max_tokens",
            config()
                .with_causal(false)
                .with_route_on(RouteOn::PreviousChunk { tokens: 5 })
                .with_attention(chunked),
        ),
    ] {
        let error = refused.check().expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn the_defaults_and_lists_of_all_levels_are_taken() {
    config().check().unwrap();
    let levels = config().with_blocks(vec![1, 2, 3]).with_d_ff(vec![8, 7, 6]);
    levels.check().unwrap();
    assert_eq!(levels.active_blocks(), 6);
    let blocks = config()
        .with_height(0)
        .with_blocks(vec![3])
        .with_d_ff(vec![8, 7, 6]);
    blocks.check().unwrap();
    assert_eq!([0, 1, 2].map(|place| blocks.d_ff_of(0, place)), [8, 7, 6]);
}

#[test]
fn a_configuration_survives_its_text() {
    let noise = SelectorGradient::GumbelStraightThrough { temperature: 0.5 };
    let loss = SelectorBalance::SwitchLoss { weight: 0.01 };
    let config = learning(noise, loss)
        .with_route_on(RouteOn::PreviousChunk { tokens: 8 })
        .with_head(LeafHead::PerLeaf);
    let text = config.to_string();
    assert!(text.contains("gumbel-straight-through") && text.contains("previous-chunk"));
    let read: TreeCoderConfig = TreeCoderConfig::load_binary(text.as_bytes()).unwrap();
    assert_eq!(read.to_string(), text);
}
