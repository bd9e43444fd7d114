//! Continuing prompts with a TreeCoder, on a device.

use arbora_attention::baselines::PerformerConfig;
use arbora_attention::{AttentionKindConfig, TreeCoarseConfig, TreeFineConfig};
use arbora_models::tree_coder::{
    FinishReason, GREEDY_EPSILON, GenerateOptions, Generated, LeafHead, RouteOn, SelectorBalance,
    SelectorConfig, SelectorGradient, SelectorKind,
};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions};
use arbora_testing::{allowed, autodiff_device, device, values};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Int, Tensor, TensorData};

pub const VOCABULARY: usize = 11;
pub const CONTEXT: usize = 12;
/// Of weights that send the sequences below to several leaves.
pub const SEED: u64 = 16;

pub fn small(height: usize, route_on: RouteOn) -> TreeCoderConfig {
    TreeCoderConfig::new(VOCABULARY, CONTEXT)
        .with_d_model(8)
        .with_d_ff(vec![8])
        .with_height(height)
        .with_route_on(route_on)
}

pub const FIRST: RouteOn = RouteOn::FirstN { tokens: 3 };
const CHUNKS: RouteOn = RouteOn::PreviousChunk { tokens: 2 };

fn rows(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// Logits after every token of one sequence, by one call over all of it, and its leaves.
fn whole(model: &TreeCoder, tokens: &[u32]) -> (Vec<Vec<f32>>, Vec<usize>) {
    let tokens = rows(&[tokens.to_vec()], &device());
    let output = model.forward(tokens, None, &TreeCoderOptions::default());
    let logits = values(output.logits);
    let logits = logits.chunks(VOCABULARY).map(<[f32]>::to_vec).collect();
    (logits, output.routing.leaves)
}

fn assert_near(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() < allowed(1e-4),
            "{got} for {expected}: {what}"
        );
    }
}

fn sequences() -> [Vec<u32>; 3] {
    [
        vec![1, 5, 2, 9, 0, 3, 3, 7],
        vec![4, 4, 10, 6, 8, 1, 0, 2],
        vec![9, 7, 3, 0, 2, 10, 5, 5],
    ]
}

fn assert_decodes(config: &TreeCoderConfig, ends: &[usize]) -> usize {
    assert_model_decodes(&config.clone().with_seed(SEED).init(&device()), ends)
}

/// Feeds sequences in pieces that end at these places, side by side. What comes after each piece must be what one
/// call over the whole sequence gives there. Returns how many different leaves there were.
fn assert_model_decodes(model: &TreeCoder, ends: &[usize]) -> usize {
    let config = model.config();
    let sequences = sequences();
    let expected = sequences.each_ref().map(|tokens| whole(model, tokens));
    let mut decoder = model.decoder().unwrap();
    for at in 0..sequences.len() {
        assert_eq!(decoder.add(0), at);
    }
    let mut start = 0;
    for &end in ends {
        let fed: Vec<(usize, &[u32])> = sequences
            .iter()
            .enumerate()
            .map(|(at, tokens)| (at, &tokens[start..end]))
            .collect();
        let logits = decoder.feed(&fed).unwrap();
        for (at, logits) in logits.iter().enumerate() {
            let what = format!("sequence {at} after {end} tokens of {config}");
            // Before the route is settled, it is that of the tokens so far.
            let expected = if end < config.route_on.prompt() {
                whole(model, &sequences[at][..end]).0[end - 1].clone()
            } else {
                expected[at].0[end - 1].clone()
            };
            assert_near(logits, &expected, &what);
        }
        start = end;
    }
    let mut leaves: Vec<usize> = Vec::new();
    for (at, (_, expected)) in expected.iter().enumerate() {
        if config.height > 0 {
            assert_eq!(decoder.leaves(at), expected, "{config}");
        }
        leaves.extend(decoder.leaves(at));
    }
    leaves.sort_unstable();
    leaves.dedup();
    leaves.len()
}

fn every_end() -> Vec<usize> {
    (1..=8).collect()
}

#[test]
fn decoding_gives_the_logits_of_one_call_at_every_height() {
    for route_on in [FIRST, CHUNKS] {
        for height in 0..=2 {
            let leaves = assert_decodes(&small(height, route_on), &every_end());
            assert_eq!(leaves > 1, height > 0, "{route_on:?}, height {height}");
        }
    }
}

#[test]
fn decoding_gives_the_logits_of_one_call_in_pieces_of_any_length() {
    for route_on in [FIRST, CHUNKS] {
        for ends in [&[8][..], &[3, 8], &[5, 6, 8], &[2, 7, 8]] {
            assert_decodes(&small(2, route_on), ends);
        }
    }
}

#[test]
fn decoding_gives_the_logits_of_one_call_with_every_causal_attention() {
    for attention in [
        AttentionKindConfig::Performer(PerformerConfig::default()),
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2])),
    ] {
        for route_on in [FIRST, CHUNKS] {
            let config = small(1, route_on).with_attention(attention.clone());
            assert_decodes(&config, &[4, 5, 6, 7, 8]);
        }
    }
}

#[test]
fn decoding_gives_the_logits_of_one_call_with_every_selector_and_head() {
    let selector = |gradient| SelectorConfig::new().with_gradient(gradient);
    for route_on in [FIRST, CHUNKS] {
        for selector in [
            selector(SelectorGradient::ValuePreserving),
            selector(SelectorGradient::GumbelStraightThrough { temperature: 1.0 }),
            selector(SelectorGradient::Reinforce),
            selector(SelectorGradient::Soft),
            SelectorConfig::new().with_kind(SelectorKind::Random),
            SelectorConfig::new().with_kind(SelectorKind::Hash),
        ] {
            let config = small(2, route_on)
                .with_selector(selector)
                .with_blocks(vec![1, 2, 1])
                .with_n_kv_heads(Some(1))
                .with_head(LeafHead::PerLeaf);
            assert_decodes(&config, &[4, 5, 8]);
        }
    }
}

#[test]
fn decoding_reaches_the_head_of_every_leaf() {
    for route_on in [FIRST, CHUNKS] {
        for head in [LeafHead::Shared, LeafHead::PerLeaf] {
            let config = small(1, route_on).with_head(head);
            assert_eq!(assert_decodes(&config, &every_end()), 2, "{config}");
        }
    }
}

#[test]
fn decoding_gives_the_logits_of_one_call_with_balanced_loads() {
    for route_on in [FIRST, CHUNKS] {
        // Far enough that the bias alone decides: what it is must be the same in both.
        let balance = SelectorBalance::LossFree { rate: 2.0 };
        let selector = SelectorConfig::new().with_balance(balance);
        let config = small(1, route_on).with_selector(selector);
        let training = config.clone().with_seed(SEED).init(&autodiff_device());
        let tokens = rows(&sequences()[..1], &autodiff_device());
        let before = whole(&training.valid(), &sequences()[0]);
        training.forward(tokens, None, &TreeCoderOptions::default());
        let model = training.valid();
        assert_model_decodes(&model, &[4, 5, 6, 7, 8]);
        let after = whole(&model, &sequences()[0]);
        assert_ne!(before.1, after.1, "the bias changes routes");
    }
}

#[test]
fn sequences_that_end_or_wait_leave_the_others_alone() {
    for route_on in [FIRST, CHUNKS] {
        let model = small(1, route_on).with_seed(SEED).init(&device());
        let sequences = sequences();
        let mut decoder = model.decoder().unwrap();
        let [a, b, c] = [decoder.add(0), decoder.add(0), decoder.add(0)];
        let all = sequences.each_ref().map(|tokens| &tokens[..4]);
        decoder
            .feed(&[(c, all[2]), (a, all[0]), (b, all[1])])
            .unwrap();
        decoder.clear(b);
        assert!(decoder.tokens(b).is_empty() && decoder.leaves(b).is_empty());
        decoder.feed(&[(a, &sequences[0][4..6])]).unwrap();
        let next = [(b, &sequences[1][..5]), (c, &sequences[2][4..5])];
        let logits = decoder.feed(&next).unwrap();
        assert_near(&logits[0], &whole(&model, &sequences[1]).0[4], "b");
        assert_near(&logits[1], &whole(&model, &sequences[2]).0[4], "c");
        let logits = decoder.feed(&[(a, &sequences[0][6..7])]).unwrap();
        assert_near(&logits[0], &whole(&model, &sequences[0]).0[6], "a");
    }
}

pub fn prompts() -> Vec<Vec<u32>> {
    vec![
        vec![1, 5, 2, 9],
        vec![4, 4, 10, 6],
        vec![9, 7],
        vec![3, 8, 1, 0, 2],
        vec![9, 7],
    ]
}

/// Some options: greedy, beyond the context.
pub fn greedy() -> GenerateOptions {
    GenerateOptions::new()
        .with_max_tokens(16)
        .with_reroute(Some(5))
}

fn drawn() -> GenerateOptions {
    greedy()
        .with_temperature(1.0)
        .with_top_k(Some(8))
        .with_top_p(Some(0.95))
        .with_seed(7)
}

#[test]
fn greedy_decoding_is_the_same_with_and_without_a_cache() {
    for route_on in [FIRST, CHUNKS] {
        let model = small(2, route_on).with_seed(SEED).init(&device());
        let cached = model.generate(&prompts(), &greedy()).unwrap();
        let plain = greedy().with_cache(false);
        let anew = model.generate(&prompts(), &plain).unwrap();
        for (cached, anew) in cached.iter().zip(&anew) {
            assert_eq!(cached.tokens.len(), 16);
            assert_eq!(cached.finish, FinishReason::Length);
            assert_near_generated(cached, anew);
        }
    }
}

#[test]
fn a_route_margin_is_that_of_the_closest_decision() {
    for route_on in [FIRST, CHUNKS] {
        let mut model = small(2, route_on).with_seed(SEED).init(&device());
        for node in &mut model.nodes {
            if let Some(selector) = &mut node.selector {
                // First chunks have nothing to read: without this both of their children are alike.
                let bias = Tensor::<1>::from_floats([0.0, 0.4], &device());
                selector.output.bias = Some(Param::initialized(ParamId::new(), bias));
            }
        }
        let sequence = &sequences()[0];
        let routing = model
            .forward(
                rows(std::slice::from_ref(sequence), &device()),
                None,
                &TreeCoderOptions::default(),
            )
            .routing;
        let margins = routing.levels.iter().flat_map(|level| &level.margins);
        let closest = margins.copied().fold(f64::INFINITY, f64::min);
        assert!(closest > 0.0 && closest < 1.0, "{closest}");
        let mut decoder = model.decoder().unwrap();
        let number = decoder.add(0);
        assert_eq!(decoder.route_margin(number), f64::INFINITY);
        decoder.feed(&[(number, sequence.as_slice())]).unwrap();
        assert!(((decoder.route_margin(number) - closest).abs() as f32) < allowed(1e-4));
        decoder.clear(number);
        assert_eq!(decoder.route_margin(number), f64::INFINITY);
    }
    // Given leaves are nobody's decision.
    let model = small(2, FIRST).with_seed(SEED).init(&device());
    let options = TreeCoderOptions {
        leaves: Some(vec![3]),
        ..Default::default()
    };
    let routing = model
        .forward(rows(&[sequences()[0].clone()], &device()), None, &options)
        .routing;
    let mut margins = routing.levels.iter().flat_map(|level| &level.margins);
    assert!(margins.all(|margin| *margin == f64::INFINITY));
}

/// As far as margins allow.
fn assert_near_generated(one: &Generated, other: &Generated) {
    assert!(one.smallest_margin > GREEDY_EPSILON, "{one:?}");
    let close =
        ((one.smallest_route_margin - other.smallest_route_margin).abs() as f32) < allowed(1e-4);
    assert!(
        close || one.smallest_route_margin == other.smallest_route_margin,
        "{one:?} {other:?}"
    );
    assert_eq!(one.tokens, other.tokens);
    assert_eq!(one.leaves, other.leaves);
    assert_eq!(one.finish, other.finish);
    assert_eq!(one.short_prompt, other.short_prompt);
    for (one, other) in one.log_probabilities.iter().zip(&other.log_probabilities) {
        assert!(
            ((one - other).abs() as f32) < allowed(1e-4),
            "{one} for {other}"
        );
    }
}

#[test]
fn each_prompt_of_a_batch_gets_what_it_gets_alone() {
    if arbora_testing::skipped_in_half_precision(
        "other groups of sequences round otherwise, and near choices change",
    ) {
        return;
    }
    for route_on in [FIRST, CHUNKS] {
        for kind in [SelectorKind::Learned, SelectorKind::Random] {
            let selector = SelectorConfig::new().with_kind(kind);
            let config = small(2, route_on).with_selector(selector);
            let model = config.clone().with_seed(SEED).init(&device());
            let together = model.generate(&prompts(), &drawn()).unwrap();
            for (index, (prompt, expected)) in prompts().into_iter().zip(&together).enumerate() {
                let options = drawn().with_seed(7 + index as u64);
                let alone = model.generate(&[prompt], &options).unwrap();
                assert_eq!(alone[0].tokens, expected.tokens, "{config}");
                assert_eq!(alone[0].leaves, expected.leaves, "{config}");
            }
            // The same prompt twice.
            assert_ne!(together[2].tokens, together[4].tokens);
        }
    }
}

#[test]
fn what_is_drawn_depends_on_the_seed() {
    let model = small(1, FIRST).with_seed(SEED).init(&device());
    let by = |seed| {
        let options = drawn().with_seed(seed);
        model.generate(&prompts(), &options).unwrap()
    };
    assert_eq!(by(1), by(1));
    assert_ne!(by(1), by(2));
}

#[test]
fn one_token_kept_is_greedy_at_any_temperature() {
    let model = small(1, CHUNKS).with_seed(SEED).init(&device());
    let expected = model.generate(&prompts(), &greedy()).unwrap();
    let options = greedy().with_temperature(3.0).with_top_k(Some(1));
    assert_eq!(model.generate(&prompts(), &options).unwrap(), expected);
}

#[test]
fn a_stop_sequence_ends_its_own_prompt_alone() {
    let model = small(1, FIRST).with_seed(SEED).init(&device());
    let free = model.generate(&prompts(), &drawn()).unwrap();
    let stop = free[0].tokens[4..7].to_vec();
    let first = |tokens: &[u32]| tokens.windows(3).position(|part| part == stop);
    // Its beginning alone stops nothing.
    let never = vec![stop[0], VOCABULARY as u32];
    let options = drawn().with_stop(vec![never, stop.clone()]);
    let stopped = model.generate(&prompts(), &options).unwrap();
    for (free, stopped) in free.iter().zip(&stopped) {
        match first(&free.tokens) {
            // Once the other is gone it is computed in another batch, so its probabilities may differ in a last bit.
            None => {
                assert_eq!(free.tokens, stopped.tokens);
                assert_eq!(free.finish, stopped.finish);
            }
            Some(at) => {
                assert_eq!(stopped.tokens, free.tokens[..at + 3]);
                assert_eq!(stopped.before_stop(), &free.tokens[..at]);
                assert_eq!(stopped.finish, FinishReason::Stop { length: 3 });
                assert_eq!(stopped.log_probabilities.len(), at + 3);
            }
        }
    }
    assert_ne!(stopped[0].finish, FinishReason::Length);
    assert!(stopped.iter().any(|one| one.finish == FinishReason::Length));
}

#[test]
fn without_a_new_route_the_context_is_the_end() {
    let model = small(1, CHUNKS).with_seed(SEED).init(&device());
    let options = greedy().with_reroute(None);
    let found = model.generate(&prompts(), &options).unwrap();
    for (prompt, found) in prompts().iter().zip(&found) {
        // The last token has no place any more, and needs none.
        assert_eq!(found.tokens.len(), CONTEXT - prompt.len() + 1);
        assert_eq!(found.finish, FinishReason::Context);
        assert_eq!(found.leaves.len(), CONTEXT / 2);
    }
    let full = vec![vec![1; CONTEXT]];
    let found = model.generate(&full, &options).unwrap();
    assert_eq!(
        (found[0].tokens.len(), found[0].finish),
        (1, FinishReason::Context)
    );
}

#[test]
fn a_new_route_is_that_of_the_last_tokens_as_a_prompt() {
    let model = small(2, FIRST).with_seed(SEED).init(&device());
    let prompt = vec![1, 5, 2, 9, 0, 3];
    let begin = |prompt: &[u32], count| {
        let options = greedy().with_max_tokens(count).with_reroute(None);
        model
            .generate(&[prompt.to_vec()], &options)
            .unwrap()
            .remove(0)
    };
    let first = begin(&prompt, 4);
    let all = [prompt.clone(), first.tokens.clone()].concat();
    let second = begin(&all[all.len() - CONTEXT / 2..], 3);
    let options = greedy().with_max_tokens(7).with_reroute(Some(4));
    let found = model.generate(&[prompt], &options).unwrap().remove(0);
    assert_eq!(found.tokens, [first.tokens, second.tokens].concat());
    assert_eq!(found.leaves, [first.leaves, second.leaves].concat());
}

#[test]
fn a_new_route_drops_the_oldest_tokens_of_a_short_text_and_keeps_what_it_reads() {
    let model = small(2, FIRST).with_seed(SEED).init(&device());
    let continued = |prompt: &[u32], count: usize, reroute: Option<usize>| {
        let options = greedy().with_max_tokens(count).with_reroute(reroute);
        let found = model.generate(&[prompt.to_vec()], &options).unwrap();
        (found[0].tokens.clone(), found[0].leaves.clone())
    };
    // The prompt, after how many tokens, and what is kept: up to six tokens, of which the route reads three.
    for (prompt, after, kept) in [
        (vec![1, 5, 2, 9], 2, 4),
        (vec![4, 10, 6], 1, 3),
        (vec![4, 10, 6], 3, 3),
        (vec![1, 5, 2, 9], 3, 6),
    ] {
        let (mut all, mut leaves) = (prompt.clone(), Vec::new());
        for piece in 0..2 {
            let begins = if piece == 0 { 0 } else { all.len() - kept };
            let (new, on) = continued(&all[begins..], after, None);
            all.extend(new);
            leaves.extend(on);
        }
        let (tokens, on) = continued(&prompt, 2 * after, Some(after));
        assert_eq!(tokens, all[prompt.len()..], "{prompt:?} after {after}");
        assert_eq!(on, leaves);
    }
    // A prompt shorter than what the route reads goes on until there is more.
    let (tokens, on) = continued(&[9], 3, Some(1));
    let (first, settled) = continued(&[9], 3, None);
    assert_eq!((tokens, on), (first, settled));
}

#[test]
fn random_routes_are_drawn_anew_where_a_sequence_begins_anew() {
    let selector = SelectorConfig::new().with_kind(SelectorKind::Random);
    let model = small(2, FIRST)
        .with_selector(selector)
        .with_seed(1)
        .init(&device());
    let found = model.generate(&prompts(), &greedy()).unwrap();
    let changed = found.iter().filter(|one| {
        assert!(one.leaves.len() > 1);
        one.leaves.iter().any(|leaf| *leaf != one.leaves[0])
    });
    assert!(changed.count() > 2);
}

#[test]
fn tokens_are_told_of_as_they_come() {
    let model = small(1, FIRST).with_seed(SEED).init(&device());
    let mut told = vec![Vec::new(); prompts().len()];
    let mut ends = vec![None; prompts().len()];
    let mut steps = Vec::new();
    let found = model
        .generate_each(&prompts(), &drawn(), |new| {
            assert_eq!(ends[new.prompt], None, "nothing comes after the last token");
            ends[new.prompt] = new.finish;
            told[new.prompt].push((new.token, new.log_probability));
            steps.push(told[new.prompt].len());
        })
        .unwrap();
    assert!(steps.is_sorted());
    for ((found, told), end) in found.iter().zip(told).zip(ends) {
        let (tokens, log_probabilities): (Vec<_>, Vec<_>) = told.into_iter().unzip();
        assert_eq!(
            (&found.tokens, &found.log_probabilities),
            (&tokens, &log_probabilities)
        );
        assert_eq!(Some(found.finish), end);
    }
}

#[test]
fn short_prompts_are_told_of() {
    let prompts = prompts();
    let short = |route_on| -> Vec<bool> {
        let model = small(1, route_on).with_seed(SEED).init(&device());
        let found = model.generate(&prompts, &greedy()).unwrap();
        found.iter().map(|found| found.short_prompt).collect()
    };
    assert_eq!(short(FIRST), [false, false, true, false, true]);
    assert_eq!(short(CHUNKS), [false; 5]);
}

#[test]
fn models_on_an_autodiff_device_generate_the_same() {
    let plain = small(1, FIRST).with_seed(SEED).init(&device());
    let training = small(1, FIRST).with_seed(SEED).init(&autodiff_device());
    let expected = plain.generate(&prompts(), &greedy()).unwrap();
    assert_eq!(training.generate(&prompts(), &greedy()).unwrap(), expected);
}

/// What decoding without a cache gave on Flex, with margins of at least 0.03.
#[test]
fn greedy_decoding_gives_these_tokens_on_every_backend() {
    let first = [
        [3, 3, 2, 1, 2, 9, 8, 4, 2, 8, 2, 1, 2, 9, 3, 2],
        [0, 0, 0, 8, 10, 8, 3, 3, 2, 8, 2, 1, 6, 6, 3, 2],
    ];
    let chunks = [
        [1, 3, 2, 9, 10, 7, 2, 10, 1, 3, 2, 9, 10, 3, 3, 2],
        [7, 3, 2, 9, 10, 7, 2, 10, 1, 3, 2, 9, 10, 3, 3, 2],
    ];
    for (route_on, expected) in [(FIRST, first), (CHUNKS, chunks)] {
        let model = small(2, route_on).with_seed(SEED).init(&device());
        for options in [greedy(), greedy().with_cache(false)] {
            let found = model.generate(&prompts()[..2], &options).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.smallest_margin > GREEDY_EPSILON, "{found:?}");
                assert_eq!(found.tokens, expected);
            }
        }
    }
}
