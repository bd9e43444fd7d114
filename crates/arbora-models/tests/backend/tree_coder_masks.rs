//! What a TreeCoder must not see: tokens to come, and padding.

use crate::tree_coder_oracle::{assert_near, control, rows, run, small, tokens};
use arbora_attention::baselines::PerformerConfig;
use arbora_attention::{AttentionKindConfig, TreeCoarseConfig, TreeFineConfig};
use arbora_models::tree_coder::{RouteOn, SelectorConfig, SelectorKind};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions, TreeCoderOutput};
use arbora_testing::{allowed, device, values};
use burn::tensor::{Bool, Tensor};

fn causal_kinds() -> [AttentionKindConfig; 4] {
    [
        AttentionKindConfig::Dense,
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2])),
        AttentionKindConfig::Performer(PerformerConfig {
            features: 8,
            ..Default::default()
        }),
    ]
}

/// How far the logits before each token move when the token changes, and whether any route did.
fn leaks(model: &TreeCoder, from: usize) -> (f32, bool) {
    let mut most = 0f32;
    let mut rerouted = false;
    for row in rows::<6>(4) {
        let before = run(model, &[row]);
        let logits = values(before.logits);
        for token in from..6 {
            let mut other = row;
            other[token] = (other[token] + 3) % 7;
            let after = run(model, &[other]);
            rerouted |= after.routing.leaves != before.routing.leaves;
            for (one, other) in logits.iter().zip(values(after.logits)).take(token * 7) {
                most = most.max((one - other).abs());
            }
        }
    }
    (most, rerouted)
}

#[test]
fn no_token_after_the_prompt_changes_a_prediction_before_it_or_a_route() {
    for kind in causal_kinds() {
        for selector in [SelectorKind::Learned, SelectorKind::Hash] {
            let model = control(selector)
                .with_attention(kind.clone())
                .with_seed(17)
                .init(&device());
            let (most, rerouted) = leaks(&model, 2);
            assert!(most < 1e-5 && !rerouted, "{kind:?}: {most}");
        }
    }
}

#[test]
fn no_token_changes_a_prediction_before_it_where_chunks_are_routed_on_the_chunk_before() {
    for kind in causal_kinds() {
        for selector in [SelectorKind::Learned, SelectorKind::Hash] {
            for chunk in [1, 2, 4] {
                let model = control(selector)
                    .with_route_on(RouteOn::PreviousChunk { tokens: chunk })
                    .with_attention(kind.clone())
                    .with_seed(17)
                    .init(&device());
                let (most, rerouted) = leaks(&model, 0);
                assert!(most < allowed(1e-5), "{kind:?}, chunks of {chunk}: {most}");
                assert!(rerouted, "no route depends on a token");
            }
        }
    }
}

#[test]
fn a_route_on_all_tokens_leaks_and_the_tests_above_would_see_it() {
    for route_on in [RouteOn::MeanAll, RouteOn::LastToken] {
        assert!(!route_on.is_causal());
        let (most, rerouted) = leaks(
            &small()
                .with_route_on(route_on)
                .with_seed(17)
                .init(&device()),
            2,
        );
        assert!(most > 1e-3 && rerouted, "{most}");
    }
    // Within the prompt as well, which is why no loss may be taken there.
    let (most, _) = leaks(&small().with_seed(17).init(&device()), 0);
    assert!(most > 1e-3, "{most}");
}

fn padded(model: &TreeCoder, rows: &[[i64; 6]], masked: &[[bool; 6]]) -> TreeCoderOutput {
    let mask = burn::tensor::TensorData::new(masked.concat(), [rows.len(), 6]);
    let mask = Tensor::<2, Bool>::from_data(mask, &device());
    let input = tokens(rows, &device());
    model.forward(input, Some(mask), &TreeCoderOptions::default())
}

/// Configurations whose sequences may be padded behind.
fn paddable() -> Vec<TreeCoderConfig> {
    let mut configs = Vec::new();
    for kind in causal_kinds() {
        let config = small().with_attention(kind);
        let encoder = config.clone().with_causal(false);
        configs.extend([
            config.clone(),
            config
                .clone()
                .with_route_on(RouteOn::PreviousChunk { tokens: 2 }),
            config.with_route_on(RouteOn::LastToken),
            encoder.clone().with_route_on(RouteOn::MeanAll),
            encoder.with_route_on(RouteOn::LastToken),
        ]);
    }
    let hash = SelectorConfig::new().with_kind(SelectorKind::Hash);
    configs.push(small().with_route_on(RouteOn::MeanAll).with_selector(hash));
    configs
}

#[test]
fn padding_changes_neither_logits_nor_routes() {
    for config in paddable() {
        let model = config.clone().with_seed(17).init(&device());
        for (row, length) in rows::<6>(4).into_iter().zip([3, 4, 5, 6]) {
            let alone = model.forward(
                tokens(&[row], &device()).narrow(1, 0, length),
                None,
                &TreeCoderOptions::default(),
            );
            let mask = std::array::from_fn(|at| at >= length);
            let mut noise = row;
            noise[length..].fill(6);
            // In a batch with a whole sequence, whatever stands in the padding.
            let whole = [false; 6];
            let both = padded(&model, &[noise, rows::<6>(9)[8]], &[mask, whole]);
            let chunks = alone.routing.leaves.len();
            assert_eq!(
                both.routing.leaves[..chunks],
                alone.routing.leaves,
                "{config}"
            );
            let expected = values(alone.logits);
            assert_near(&values(both.logits)[..expected.len()], &expected);
        }
    }
}

#[test]
fn sequences_padded_before_their_tokens_keep_their_route() {
    // Positions move with padding, so only what is read can be compared.
    let model = small()
        .with_causal(false)
        .with_route_on(RouteOn::LastToken)
        .with_seed(17)
        .init(&device());
    let masks = [[true, true, false, false, false, false]];
    let one = padded(&model, &[[0, 0, 1, 2, 3, 4]], &masks);
    let other = padded(&model, &[[5, 6, 1, 2, 3, 4]], &masks);
    assert_eq!(one.routing.leaves, other.routing.leaves);
    assert_near(&values(one.logits)[14..], &values(other.logits)[14..]);
}

#[test]
fn a_sequence_of_nothing_but_padding_stays_finite() {
    for config in paddable() {
        let model = config.clone().with_seed(17).init(&device());
        let rows = rows::<6>(2);
        let output = padded(&model, &rows, &[[true; 6], [false; 6]]);
        assert!(
            values(output.logits).iter().all(|logit| logit.is_finite()),
            "{config}"
        );
    }
}

#[test]
#[should_panic(expected = "padding, [batch, count]): axis 1 expected 4, got 3")]
fn a_mask_of_another_shape_is_refused() {
    let model = small().with_seed(17).init(&device());
    let mask = Tensor::<2, Bool>::from_data([[false; 3]], &device());
    let input = tokens(&[[1, 2, 3, 4]], &device());
    model.forward(input, Some(mask), &TreeCoderOptions::default());
}
