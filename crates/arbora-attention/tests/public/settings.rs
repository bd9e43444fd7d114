//! Which settings of attention are refused, and by which names.

use arbora_attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora_attention::{
    AlignmentConfig, AttentionKindConfig, PreNormAttentionConfig, RouterConfig,
    SelfAttentionConfig, TreeCoarseConfig, TreeCrossAttentionConfig, TreeFineConfig, TreeScope,
    TreeSharing,
};
use arbora_tree::routing::Surrogate;

fn router(of: impl FnOnce(&mut RouterConfig)) -> AttentionKindConfig {
    let mut tree = TreeFineConfig::default();
    of(&mut tree.router);
    AttentionKindConfig::TreeFine(tree)
}

fn dropout(dropout: f64, surrogate: Surrogate) -> AttentionKindConfig {
    let mut tree = TreeFineConfig {
        dropout,
        ..Default::default()
    };
    tree.router.surrogate = surrogate;
    AttentionKindConfig::TreeFine(tree)
}

fn surrogate(surrogate: Surrogate) -> AttentionKindConfig {
    router(|router| router.surrogate = surrogate)
}

#[test]
fn settings_that_no_layer_can_be_made_of_are_refused_by_name() {
    let big_bird = |block, window| {
        AttentionKindConfig::BigBird(BigBirdConfig {
            block,
            window,
            ..Default::default()
        })
    };
    let linformer = |max_tokens, rank| {
        AttentionKindConfig::Linformer(LinformerConfig {
            max_tokens,
            rank,
            ..Default::default()
        })
    };
    let dense = |temperature, clip, scale| {
        surrogate(Surrogate::DenseGradient {
            temperature,
            clip,
            scale,
        })
    };
    let mut aligned = TreeCoarseConfig::default();
    aligned.router.alignment = Some(AlignmentConfig::default());
    let soft = Surrogate::Soft { temperature: 1.0 };
    for (setting, refused) in [
        (
            "features",
            AttentionKindConfig::Performer(PerformerConfig {
                features: 0,
                ..Default::default()
            }),
        ),
        ("max_tokens", linformer(0, 1)),
        ("rank", linformer(1, 0)),
        ("block", big_bird(0, 3)),
        ("window", big_bird(1, 0)),
        ("window", big_bird(1, 2)),
        ("dropout", dropout(1.0, Surrogate::default())),
        ("dropout", dropout(f64::NAN, Surrogate::default())),
        ("dropout", dropout(0.1, soft)),
        ("router.alignment", AttentionKindConfig::TreeCoarse(aligned)),
        ("router.branching", router(|it| it.branching = vec![2, 1])),
        ("router.branching", router(|it| it.branching = vec![2; 17])),
        ("router.branching", router(|it| it.branching = vec![2; 99])),
        ("router.balance_rate", router(|it| it.balance_rate = -1.0)),
        (
            "router.alignment.rows",
            router(|it| it.alignment = Some(AlignmentConfig { rows: 0 })),
        ),
        ("router.surrogate.temperature", dense(0.0, 1.0, None)),
        ("router.surrogate.clip", dense(1.0, 0.0, None)),
        ("router.surrogate.scale", dense(1.0, 1.0, Some(f64::NAN))),
        (
            "router.surrogate.candidates",
            surrogate(Surrogate::TopMargin {
                candidates: 0,
                temperature: 1.0,
            }),
        ),
    ] {
        let error = refused.check(4, 4).expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
    }
}

#[test]
fn layers_refuse_settings_by_name() {
    let layer = || SelfAttentionConfig::new(8, 4);
    layer().with_n_kv_heads(Some(2)).check().unwrap();
    let cross = TreeCrossAttentionConfig::new(8, 4).check();
    cross.unwrap();
    let refused_kind = router(|it| it.branching = vec![1]);
    for (setting, checked) in [
        ("d_model", SelfAttentionConfig::new(0, 1).check()),
        ("n_heads", SelfAttentionConfig::new(8, 0).check()),
        ("n_heads", SelfAttentionConfig::new(8, 3).check()),
        ("n_kv_heads", layer().with_n_kv_heads(Some(3)).check()),
        ("n_kv_heads", layer().with_n_kv_heads(Some(0)).check()),
        (
            "kind.router.branching",
            layer().with_kind(refused_kind).check(),
        ),
        ("d_model", PreNormAttentionConfig::new(0, 1).check()),
        ("n_heads", PreNormAttentionConfig::new(8, 3).check()),
        ("n_heads", TreeCrossAttentionConfig::new(8, 3).check()),
    ] {
        let error = checked.expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
    }
}

#[test]
fn one_tree_of_a_layer_is_shared_where_queries_and_keys_have_as_many_heads() {
    let shared = router(|router| router.scope = TreeScope::PerLayer);
    shared.check(4, 4).unwrap();
    assert_eq!(shared.check(4, 2).unwrap_err().setting, "router.sharing");
    let separate = router(|router| {
        router.scope = TreeScope::PerLayer;
        router.sharing = TreeSharing::Separate;
    });
    separate.check(4, 2).unwrap();
    router(|_| {}).check(4, 2).unwrap();
}

#[test]
fn the_defaults_of_all_kinds_are_taken() {
    for kind in [
        AttentionKindConfig::Dense,
        AttentionKindConfig::Linformer(LinformerConfig::default()),
        AttentionKindConfig::BigBird(BigBirdConfig::default()),
        AttentionKindConfig::Performer(PerformerConfig::default()),
        AttentionKindConfig::TreeFine(TreeFineConfig::default()),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::default()),
        router(|router| router.branching = vec![]),
        router(|router| router.branching = vec![2; 16]),
    ] {
        kind.check(4, 2).unwrap();
    }
}
