//! Attention to learned mixtures of keys.

use crate::kinds::{self, D_MODEL, HEADS, layer};
use arbora_attention::baselines::{Linformer, LinformerConfig};
use arbora_attention::{AttentionKind, AttentionKindConfig, SelfAttentionInput};
use arbora_testing::{assert_close, autodiff_device, device, padding, random};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

fn config(per_head: bool, share_key_value: bool) -> AttentionKindConfig {
    AttentionKindConfig::Linformer(LinformerConfig {
        max_tokens: 16,
        rank: 3,
        per_head,
        share_key_value,
    })
}

fn variants() -> impl Iterator<Item = AttentionKindConfig> {
    [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .map(|(per_head, shared)| config(per_head, shared))
}

#[test]
fn linformer_does_what_every_kind_does() {
    kinds::check(&config(false, false));
    kinds::check(&config(true, true));
}

/// The paper's equation, head by head: query head `h` of 4 reads key and value head `h / 2`.
fn by_equation(
    linformer: &Linformer,
    [query, key, value]: [Tensor<3>; 3],
    hidden: Tensor<2, Bool>,
) -> Tensor<3> {
    let [batch, tokens, width] = query.dims();
    let head_dim = width / HEADS;
    let values = if linformer.value.is_empty() {
        &linformer.key
    } else {
        &linformer.value
    };
    let contexts = (0..HEADS).map(|head| {
        let kv_head = head / 2;
        let weight = |of: &[burn::nn::Linear]| {
            let weight = of[kv_head % of.len()].weight.val();
            let first = weight.narrow(0, 0, tokens).transpose();
            first.unsqueeze::<3>().repeat_dim(0, batch)
        };
        let slice = |rows: &Tensor<3>, at: usize| {
            rows.clone()
                .slice([0..batch, 0..tokens, at * head_dim..(at + 1) * head_dim])
        };
        let zeroed = |rows: Tensor<3>| {
            let hidden = hidden.clone().unsqueeze_dim::<3>(2).expand(rows.dims());
            rows.mask_fill(hidden, 0.0)
        };
        let keys = weight(&linformer.key).matmul(zeroed(slice(&key, kv_head)));
        let mixed = weight(values).matmul(zeroed(slice(&value, kv_head)));
        let logits = slice(&query, head).matmul(keys.swap_dims(1, 2));
        softmax(logits / (head_dim as f64).sqrt(), 2).matmul(mixed)
    });
    Tensor::cat(contexts.collect(), 2)
}

#[test]
fn linformer_is_the_equation_of_its_paper() {
    for kind in variants() {
        let device = autodiff_device();
        let layer = layer(&kind, &device);
        let AttentionKind::Linformer(linformer) = &layer.kind else {
            panic!("not a Linformer");
        };
        let hidden = padding(&[11, 4], 11, &device);
        let run = |expected: bool| {
            let input = random([2, 11, D_MODEL], 3, &device).require_grad();
            let context = if expected {
                let rows = [&layer.query, &layer.key, &layer.value];
                let rows = rows.map(|linear| linear.forward(input.clone()));
                let context = by_equation(linformer, rows, hidden.clone());
                layer.output.forward(context)
            } else {
                let input = SelfAttentionInput::new(input.clone()).mask_pad(hidden.clone());
                layer.forward(input).context
            };
            let gradients = context.clone().powi_scalar(2).sum().backward();
            let of = |param: &burn::module::Param<Tensor<2>>| {
                param.val().grad(&gradients).expect("it is used")
            };
            let tokens = input.grad(&gradients).expect("it is used");
            let mixing = of(&linformer.key[0].weight);
            (context.inner(), tokens, mixing)
        };
        let (got, expected) = (run(false), run(true));
        assert_close(got.0, expected.0, 1e-4, 1e-4);
        assert_close(got.1, expected.1, 1e-3, 1e-3);
        assert_close(got.2, expected.2, 1e-3, 1e-3);
    }
}

#[test]
fn cutting_padding_off_changes_nothing() {
    for kind in variants() {
        let layer = layer(&kind, &device());
        let input = random([2, 12, D_MODEL], 4, &device());
        let padded =
            SelfAttentionInput::new(input.clone()).mask_pad(padding(&[7, 7], 12, &device()));
        let short = SelfAttentionInput::new(input.slice([0..2, 0..7]));
        let padded = layer.forward(padded).context.slice([0..2, 0..7]);
        assert_close(padded, layer.forward(short).context, 1e-5, 1e-5);
    }
}

#[test]
fn an_example_of_padding_alone_gets_the_bias_of_the_output() {
    let layer = layer(&config(false, false), &device());
    let input = SelfAttentionInput::new(random([1, 4, D_MODEL], 4, &device()));
    let context = layer
        .forward(input.mask_pad(padding(&[0], 4, &device())))
        .context;
    let bias = layer.output.bias.as_ref().expect("there is one").val();
    let bias = bias.reshape([1, 1, D_MODEL]).expand([1, 4, D_MODEL]);
    assert_close(context, bias, 1e-6, 1e-6);
}

#[test]
fn a_query_may_read_a_context_of_another_length() {
    let layer = layer(&config(true, false), &device());
    let (queries, context) = (
        random([2, 3, D_MODEL], 1, &device()),
        random([2, 16, D_MODEL], 2, &device()),
    );
    let output = layer.forward(SelfAttentionInput::cross(queries, context));
    assert_eq!(output.context.dims(), [2, 3, D_MODEL]);
}

#[test]
#[should_panic(expected = "linformer: keys: expected at most max_tokens = 16, got 17")]
fn more_keys_than_the_projections_have_are_refused() {
    let input = SelfAttentionInput::new(random([1, 17, D_MODEL], 1, &device()));
    layer(&config(false, false), &device()).forward(input);
}

#[test]
#[should_panic(expected = "linformer does not support causal masks")]
fn a_causal_linformer_is_refused() {
    let input = SelfAttentionInput::new(random([1, 4, D_MODEL], 1, &device()));
    layer(&config(false, false), &device()).forward(input.causal());
}

#[test]
#[should_panic(expected = "linformer does not support masks of pairs")]
fn a_linformer_with_a_mask_of_pairs_is_refused() {
    let pairs = Tensor::<3, Bool>::full([1, 4, 4], false, &device());
    let input = SelfAttentionInput::new(random([1, 4, D_MODEL], 1, &device()));
    layer(&config(false, false), &device()).forward(input.mask_attn(pairs));
}

#[test]
fn settings_are_read_from_json_and_unknown_ones_refused() {
    let read = |text: &str| serde_json::from_str::<AttentionKindConfig>(text);
    let kind = read(r#"{"kind":"linformer","rank":7}"#).expect("it is valid");
    let expected = LinformerConfig {
        rank: 7,
        ..LinformerConfig::default()
    };
    assert_eq!(kind, AttentionKindConfig::Linformer(expected));
    assert!(read(r#"{"kind":"linformer","ranks":7}"#).is_err());
    assert!(read(r#"{"kind":"linformers"}"#).is_err());
}

#[test]
#[should_panic(expected = "cache: linformer does not support causal decoding")]
fn a_cache_is_refused() {
    let _ = layer(&config(false, false), &device()).cache(1, &device());
}
