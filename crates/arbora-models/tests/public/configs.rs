//! Which settings of models are refused, and by which names.

use arbora_attention::baselines::{BigBirdConfig, PerformerConfig};
use arbora_attention::{AttentionKindConfig, GhostNodes};
use arbora_models::{
    ConfigError, CrossAttentionConfig, EmbeddingKind, HeadKind, ModelConfig, PerceiverIoConfig,
    ReTreeverConfig, TransformerBlockConfig, TreeformerConfig,
};
use arbora_tree::Layout;

fn model() -> ModelConfig {
    ModelConfig::new(2, 1, HeadKind::Classes { count: 3 })
}

fn block() -> TransformerBlockConfig {
    TransformerBlockConfig::new(8, 2, 16)
}

fn assert_refused<const N: usize>(cases: [(&str, Result<(), ConfigError>); N]) {
    for (setting, checked) in cases {
        let error = checked.expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
    }
}

#[test]
fn what_models_of_retrieval_share_is_checked() {
    model().check().unwrap();
    model().with_encoder_layers(0).check().unwrap();
    assert_refused([
        (
            "d_context",
            ModelConfig::new(0, 1, HeadKind::Classes { count: 3 }).check(),
        ),
        ("d_model", model().with_d_model(0).check()),
        (
            "d_model",
            model()
                .with_embedding(EmbeddingKind::Sequence)
                .with_d_model(9)
                .with_n_heads(3)
                .check(),
        ),
        ("d_ff", model().with_d_ff(0).check()),
        ("embedding_depth", model().with_embedding_depth(0).check()),
        ("max_positions", model().with_max_positions(0).check()),
        ("n_heads", model().with_n_heads(0).check()),
        ("n_heads", model().with_n_heads(5).check()),
        ("dropout", model().with_dropout(1.0).check()),
        ("dropout", model().with_dropout(f64::NAN).check()),
    ]);
}

#[test]
fn models_of_retrieval_refuse_settings_by_their_paths() {
    let refused = || model().with_n_heads(5);
    let published = || ReTreeverConfig::new(model()).with_ghosts(GhostNodes::Published);
    published().with_layout(Layout::Published).check().unwrap();
    assert_refused([
        ("model.n_heads", ReTreeverConfig::new(refused()).check()),
        (
            "model.n_heads",
            CrossAttentionConfig::new(refused()).check(),
        ),
        (
            "model.n_heads",
            PerceiverIoConfig::new(refused(), 2).check(),
        ),
        ("latents", PerceiverIoConfig::new(model(), 0).check()),
        (
            "branching",
            ReTreeverConfig::new(model()).with_branching(1).check(),
        ),
        ("ghosts", published().check()),
    ]);
}

#[test]
fn transformers_refuse_settings_by_their_paths() {
    let features = AttentionKindConfig::Performer(PerformerConfig {
        features: 0,
        ..Default::default()
    });
    let big_bird = AttentionKindConfig::BigBird(BigBirdConfig::default());
    let treeformer = || TreeformerConfig::new(4, 3);
    block().check().unwrap();
    treeformer().with_dense_layers(1).check().unwrap();
    assert_refused([
        ("d_ff", TransformerBlockConfig::new(8, 2, 0).check()),
        ("n_heads", TransformerBlockConfig::new(8, 3, 16).check()),
        ("n_kv_heads", block().with_n_kv_heads(Some(0)).check()),
        ("dropout", block().with_dropout(-0.1).check()),
        (
            "attention.features",
            block().with_attention(features.clone()).check(),
        ),
        ("vocabulary", TreeformerConfig::new(0, 3).check()),
        ("classes", TreeformerConfig::new(4, 0).check()),
        ("layers", treeformer().with_layers(0).check()),
        ("dense_layers", treeformer().with_dense_layers(2).check()),
        ("d_model", treeformer().with_d_model(0).check()),
        (
            "attention.features",
            treeformer().with_attention(features).check(),
        ),
        (
            "attention",
            treeformer()
                .with_attention(big_bird)
                .with_causal(true)
                .check(),
        ),
    ]);
}
