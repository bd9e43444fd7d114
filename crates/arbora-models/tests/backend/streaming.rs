//! Contexts that grow and change answer as contexts encoded at once.

use crate::small;
use arbora_attention::Route;
use arbora_models::{
    Context, EmbeddingKind, ModelConfig, Prediction, ReTreever, ReTreeverConfig, ReTreeverStream,
    ReTreeverStreamError,
};
use arbora_testing::{assert_close, device, padding, random};
use arbora_tree::{Layout, StreamError, TokenOrder};
use burn::tensor::Tensor;

const EMBEDDINGS: [EmbeddingKind; 2] = [EmbeddingKind::Points, EmbeddingKind::Sequence];

fn config(embedding: EmbeddingKind) -> ModelConfig {
    small().with_encoder_layers(0).with_embedding(embedding)
}

fn model(embedding: EmbeddingKind, branching: usize) -> ReTreever {
    ReTreeverConfig::new(config(embedding))
        .with_branching(branching)
        .with_seed(1)
        .init(&device())
}

/// A context of the first `lengths[example]` tokens of each example.
fn context(features: &Tensor<3>, lengths: &[usize]) -> Context {
    let longest = *lengths.iter().max().unwrap();
    let features = features.clone().narrow(1, 0, longest);
    Context::sequence(features, Some(padding(lengths, longest, &device())))
}

fn part(features: &Tensor<3>, from: usize, to: usize) -> Tensor<3> {
    features.clone().narrow(1, from, to - from)
}

fn assert_same(got: Prediction, expected: Prediction) {
    let (
        Prediction::Gaussian { mean, std },
        Prediction::Gaussian {
            mean: expected_mean,
            std: expected_std,
        },
    ) = (got, expected)
    else {
        panic!("expected two Gaussian predictions");
    };
    assert_close(mean, expected_mean, 2e-5, 2e-5);
    assert_close(std, expected_std, 2e-5, 2e-5);
}

/// Search and attention to all leaves give what they give over the whole context, encoded at once.
fn assert_same_answers(
    model: &ReTreever,
    stream: &ReTreeverStream,
    features: &Tensor<3>,
    lengths: &[usize],
) {
    assert_eq!(stream.lengths(), lengths);
    let queries = random([lengths.len(), 4, 2], 5, &device());
    let whole = model.index(&context(features, lengths));
    let got = stream.predict(queries.clone(), Route::Greedy);
    let expected = model.predict(queries.clone(), &whole, Route::Greedy);
    assert_same(got.prediction, expected.prediction);
    assert_close(
        got.search.selected.float(),
        expected.search.selected.float(),
        0.0,
        0.0,
    );
    assert_same(
        model.predict_from_leaves(queries.clone(), stream.index()),
        model.predict_from_leaves(queries, &whole),
    );
}

#[test]
fn a_context_that_grew_and_changed_answers_as_one_encoded_at_once() {
    for embedding in EMBEDDINGS {
        for branching in [2, 3] {
            let model = model(embedding, branching);
            let mut features = random([2, 11, 3], 1, &device());
            let mut stream = model.stream(&context(&features, &[4, 2])).unwrap();
            assert_same_answers(&model, &stream, &features, &[4, 2]);
            // One by one, several at once, and to one example alone.
            let uneven = Tensor::cat(
                vec![
                    part(&features, 4, 5).narrow(0, 0, 1),
                    part(&features, 2, 3).narrow(0, 1, 1),
                ],
                0,
            );
            stream.append(uneven).unwrap();
            assert_same_answers(&model, &stream, &features, &[5, 3]);
            stream
                .append_ragged(part(&features, 5, 11), &[6, 0])
                .unwrap();
            assert_same_answers(&model, &stream, &features, &[11, 3]);

            let new = random([2, 3], 7, &device());
            stream.update(&[(1, 1), (0, 9)], new.clone()).unwrap();
            for (row, (example, token)) in [(1, 1), (0, 9)].into_iter().enumerate() {
                let new = new.clone().narrow(0, row, 1).unsqueeze_dim::<3>(0);
                features =
                    features.slice_assign([example..example + 1, token..token + 1, 0..3], new);
            }
            assert_same_answers(&model, &stream, &features, &[11, 3]);
        }
    }
}

#[test]
fn a_context_grows_from_nothing() {
    for embedding in EMBEDDINGS {
        let model = model(embedding, 2);
        let features = random([2, 6, 3], 1, &device());
        let mut stream = model.stream_empty(2, 1, &device()).unwrap();
        assert!(stream.is_empty());
        for token in 0..6 {
            stream.append(part(&features, token, token + 1)).unwrap();
            assert_eq!(stream.len(), token + 1);
            assert_same_answers(&model, &stream, &features, &[token + 1; 2]);
        }
    }
}

#[test]
fn a_stored_stream_grows_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stream.safetensors");
    for embedding in EMBEDDINGS {
        let model = model(embedding, 2);
        let features = random([2, 9, 3], 1, &device());
        let mut stream = model.stream(&context(&features, &[5, 5])).unwrap();
        stream.append(part(&features, 5, 7)).unwrap();
        stream.save(&path).unwrap();
        let mut stored = model.stream_load(&path, &device()).unwrap();
        assert_same_answers(&model, &stored, &features, &[7, 7]);
        stored.append(part(&features, 7, 9)).unwrap();
        assert_same_answers(&model, &stored, &features, &[9, 9]);

        let other = ReTreeverConfig::new(config(embedding))
            .with_seed(2)
            .init(&device());
        assert!(matches!(
            other.stream_load(&path, &device()),
            Err(ReTreeverStreamError::Stored(_))
        ));
    }
}

#[test]
fn changes_beyond_the_limit_or_of_absent_tokens_are_refused_and_change_nothing() {
    let sequences = ReTreeverConfig::new(config(EmbeddingKind::Sequence).with_max_positions(6));
    let sequences = sequences.with_seed(1).init(&device());
    let points = model(EmbeddingKind::Points, 2);
    let features = random([2, 9, 3], 1, &device());
    let whole = context(&features, &[5, 3]);
    // Positions limit sequences by themselves, and whatever else is asked for.
    let streams = [
        (&points, points.stream(&whole).unwrap().with_max_tokens(6)),
        (&sequences, sequences.stream(&whole).unwrap()),
        (
            &sequences,
            sequences.stream(&whole).unwrap().with_max_tokens(100),
        ),
    ];
    for (model, mut stream) in streams {
        let full = StreamError::Full {
            example: 0,
            length: 5,
            appended: 2,
            max_tokens: 6,
        };
        assert_eq!(stream.append(part(&features, 5, 7)).unwrap_err(), full);
        for leaves in [[(0, 5), (0, 1)], [(1, 3), (0, 1)], [(2, 0), (0, 1)]] {
            let (example, token) = leaves[0];
            let refused = stream.update(&leaves, random([2, 3], 7, &device()));
            let absent = StreamError::NoSuchToken {
                example,
                token,
                batch: 2,
            };
            assert_eq!(refused.unwrap_err(), absent);
        }
        let twice = stream.update(&[(0, 1), (0, 1)], random([2, 3], 7, &device()));
        assert!(matches!(twice, Err(StreamError::Repeated { .. })));
        assert_same_answers(model, &stream, &features, &[5, 3]);
        stream
            .append_ragged(part(&features, 5, 6), &[1, 0])
            .unwrap();
        assert_same_answers(model, &stream, &features, &[6, 3]);
    }
}

#[test]
fn models_whose_tokens_change_when_one_comes_are_refused() {
    let base = || ReTreeverConfig::new(config(EmbeddingKind::Points));
    let refusal = |config: ReTreeverConfig| {
        let model = config.with_seed(1).init(&device());
        let refused = model.stream_empty(1, 4, &device()).unwrap_err();
        let features = random([1, 4, 3], 1, &device());
        let same = model.stream(&context(&features, &[4])).unwrap_err();
        assert_eq!(refused.to_string(), same.to_string());
        refused
    };
    let deep = ReTreeverConfig::new(small().with_encoder_layers(2));
    assert!(matches!(
        refusal(deep),
        ReTreeverStreamError::Encoder { layers: 2 }
    ));
    let sorted = base().with_order(TokenOrder::Axis(0));
    assert!(matches!(
        refusal(sorted),
        ReTreeverStreamError::Order {
            order: TokenOrder::Axis(0)
        }
    ));
    let published = base().with_layout(Layout::Published);
    assert!(matches!(
        refusal(published),
        ReTreeverStreamError::Layout {
            layout: Layout::Published
        }
    ));
}

#[test]
#[should_panic(expected = "retreever stream: append: axis 0 of features: expected 2, got 1")]
fn appending_to_another_number_of_examples_panics() {
    let model = model(EmbeddingKind::Points, 2);
    let mut stream = model.stream_empty(2, 4, &device()).unwrap();
    let _ = stream.append(random([1, 1, 3], 1, &device()));
}
