//! What a TreeCoder does not continue, on a device.

use crate::tree_coder_generate::{CONTEXT, FIRST, SEED, VOCABULARY, greedy, prompts, small};
use arbora_models::TreeCoderConfig;
use arbora_models::tree_coder::{GenerateError, RouteOn};
use arbora_testing::device;

#[test]
fn prompts_that_cannot_be_continued_are_errors() {
    let model = small(1, FIRST).with_seed(SEED).init(&device());
    let refused = |prompt: Vec<u32>| {
        let prompts = [vec![1, 2, 3], prompt];
        model.generate(&prompts, &greedy()).unwrap_err()
    };
    assert_eq!(refused(vec![]), GenerateError::EmptyPrompt { prompt: 1 });
    assert_eq!(
        refused(vec![0; CONTEXT + 1]),
        GenerateError::TooLong {
            prompt: 1,
            tokens: CONTEXT + 1,
            context: CONTEXT,
        }
    );
    assert_eq!(
        refused(vec![0, 11]).to_string(),
        "prompt 1 has the token 11: expected tokens below 11"
    );
    assert_eq!(model.generate(&[], &greedy()), Ok(vec![]));
}

#[test]
fn models_that_cannot_generate_are_errors() {
    let refused = |config: TreeCoderConfig| {
        let model = config.with_seed(SEED).init(&device());
        model.generate(&prompts(), &greedy()).unwrap_err()
    };
    assert_eq!(
        refused(small(1, FIRST).with_causal(false)),
        GenerateError::NotCausal
    );
    for route_on in [RouteOn::LastToken, RouteOn::MeanAll] {
        assert_eq!(
            refused(small(1, route_on)),
            GenerateError::RouteNotCausal { route_on }
        );
    }
    assert_eq!(
        refused(small(1, FIRST).with_classes(Some(2))),
        GenerateError::NotALanguageModel {
            classes: 2,
            vocabulary: VOCABULARY
        }
    );
    let route_on = RouteOn::FirstN { tokens: CONTEXT };
    assert_eq!(
        refused(small(1, route_on)).to_string(),
        "reroute: expected a context longer than what the route reads, got a context of 12"
    );
}

#[test]
fn options_out_of_range_are_errors() {
    for (options, expected) in [
        (
            greedy().with_max_tokens(0),
            "max_tokens: expected at least 1, got 0",
        ),
        (
            greedy().with_temperature(-1.0),
            "temperature: expected a number of at least 0, got -1",
        ),
        (
            greedy().with_temperature(f64::NAN),
            "temperature: expected a number of at least 0, got NaN",
        ),
        (
            greedy().with_top_k(Some(0)),
            "top_k: expected at least 1, got 0",
        ),
        (
            greedy().with_top_p(Some(0.0)),
            "top_p: expected above 0 and at most 1, got 0",
        ),
        (
            greedy().with_top_p(Some(1.5)),
            "top_p: expected above 0 and at most 1, got 1.5",
        ),
        (
            greedy().with_stop(vec![vec![]]),
            "stop: expected sequences of at least 1 token, got none",
        ),
        (
            greedy().with_reroute(Some(0)),
            "reroute: expected at least 1, got 0",
        ),
    ] {
        let error = options.check().unwrap_err();
        assert_eq!(error.to_string(), expected);
        let model = small(0, FIRST).with_seed(SEED).init(&device());
        assert_eq!(
            model.generate(&prompts(), &options),
            Err(GenerateError::Setting(error))
        );
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let mut model = small(0, FIRST).with_seed(SEED).init(&device());
    let weight = &mut model.nodes[0].blocks[0].attention.output.weight;
    *weight = weight.clone().map(|weight| weight * f32::NAN);
    assert_eq!(
        model.generate(&prompts(), &greedy()),
        Err(GenerateError::NotFinite {
            prompt: 0,
            tokens: 0
        })
    );
}
