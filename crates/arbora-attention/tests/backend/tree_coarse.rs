//! TC-attention as functions of routes.

use arbora_attention::EmptyNode;
use arbora_attention::functions::{
    NodeIndicators, TreeCoarseOptions, TreeCoarseState, tree_coarse, tree_coarse_relaxed,
};
use arbora_testing::{assert_close, device, random, values};
use arbora_tree::CompleteTree;
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const POLICIES: [EmptyNode; 2] = [EmptyNode::CarryParent, EmptyNode::Drop];

/// Leaves of tokens on the host, -1 where a token is masked out.
#[derive(Clone, Debug)]
pub struct Leaves {
    pub shape: [usize; 3],
    pub of: Vec<i64>,
}

impl Leaves {
    pub fn random(shape: [usize; 3], tree: &CompleteTree, absent: f64, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let count = shape.iter().product();
        let of = (0..count).map(|_| {
            if rng.random_bool(absent) {
                -1
            } else {
                rng.random_range(0..tree.leaves() as i64)
            }
        });
        let of = of.collect();
        Self { shape, of }
    }

    fn at(&self, batch: usize, token: usize, head: usize) -> i64 {
        let [_, tokens, heads] = self.shape;
        self.of[(batch * tokens + token) * heads + head]
    }

    pub fn tensor(&self, device: &Device) -> Tensor<3, Int> {
        Tensor::from_data(TensorData::new(self.of.clone(), self.shape), device)
    }
}

/// The definition: per depth, uniform attention over the keys in the query's node, each depth's matrix of pairs
/// `[batch, heads, queries, keys]` made on the host.
fn pairs_of_depths(
    query: &Leaves,
    key: &Leaves,
    tree: &CompleteTree,
    options: TreeCoarseOptions,
) -> Vec<Vec<f32>> {
    let ([batch, queries, heads], [_, keys, kv_heads]) = (query.shape, key.shape);
    let mut depths: Vec<Vec<f32>> = Vec::new();
    for depth in 0..=tree.height() {
        let span = (tree.leaves() / tree.width(depth)) as i64;
        let mut pairs = Vec::new();
        for (b, h, q) in triples(batch, heads, queries) {
            let own = query.at(b, q, h);
            let seen = |k: usize| {
                let leaf = key.at(b, k, h / (heads / kv_heads));
                let hidden = options.causal && k > q + keys - queries;
                leaf >= 0 && own >= 0 && leaf / span == own / span && !hidden
            };
            let count = (0..keys).filter(|k| seen(*k)).count();
            let above = depths
                .last()
                .map(|above| &above[pairs.len()..pairs.len() + keys]);
            match (above, options.empty_node) {
                (Some(above), EmptyNode::CarryParent) if count == 0 => {
                    pairs.extend_from_slice(above);
                }
                _ => {
                    pairs.extend((0..keys).map(|k| if seen(k) { 1.0 / count as f32 } else { 0.0 }))
                }
            }
        }
        depths.push(pairs);
    }
    depths
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

/// [`tree_coarse`] with every pair in memory.
pub fn every_pair(
    query: &Leaves,
    key: &Leaves,
    value: Tensor<4>,
    alpha: Tensor<2>,
    tree: &CompleteTree,
    options: TreeCoarseOptions,
) -> Tensor<4> {
    let ([batch, queries, heads], [_, keys, kv_heads]) = (query.shape, key.shape);
    let width = value.dims()[3];
    let value = value
        .reshape([batch, keys, kv_heads, 1, width])
        .repeat_dim(3, heads / kv_heads)
        .reshape([batch, keys, heads, width])
        .swap_dims(1, 2);
    let rows = alpha.dims()[0];
    let depths = pairs_of_depths(query, key, tree, options);
    let terms = depths.into_iter().enumerate().map(|(depth, pairs)| {
        let pairs = TensorData::new(pairs, [batch, heads, queries, keys]);
        let pairs = Tensor::<4>::from_data(pairs, &value.device());
        let alpha = alpha.clone().narrow(1, depth, 1).reshape([1, rows, 1, 1]);
        pairs.matmul(value.clone()) * alpha
    });
    terms
        .reduce(|sum, term| sum + term)
        .unwrap()
        .swap_dims(1, 2)
}

/// One comparison: trees, tokens and heads.
struct Case {
    tree: CompleteTree,
    query: [usize; 3],
    key: [usize; 3],
    absent: f64,
}

fn cases() -> Vec<Case> {
    let case = |branching: &[usize], query, key, absent| Case {
        tree: CompleteTree::new(branching.to_vec()),
        query,
        key,
        absent,
    };
    vec![
        case(&[], [2, 5, 2], [2, 5, 2], 0.3),
        case(&[2, 2], [2, 9, 4], [2, 9, 2], 0.2),
        case(&[3, 2], [1, 4, 2], [1, 7, 2], 0.0),
        case(&[2, 2, 2, 2], [1, 3, 1], [1, 3, 1], 0.0),
        case(&[2], [1, 1, 1], [1, 1, 1], 0.0),
        case(&[2, 2], [2, 3, 1], [2, 4, 1], 1.0),
        case(&[2, 2, 2], [1, 131, 2], [1, 131, 2], 0.1),
        case(&[2, 2], [1, 70, 2], [1, 131, 1], 0.1),
    ]
}

pub fn options(causal: bool) -> impl Iterator<Item = TreeCoarseOptions> {
    POLICIES
        .into_iter()
        .map(move |empty_node| TreeCoarseOptions { causal, empty_node })
}

/// Indicators of the hard routes, from the function that makes them.
pub fn indicators(leaves: &Leaves, tree: &CompleteTree, device: &Device) -> NodeIndicators {
    NodeIndicators::of_leaves(leaves.tensor(device), tree)
}

#[test]
fn hard_and_relaxed_forms_are_uniform_attention_within_equal_nodes() {
    for (number, case) in cases().into_iter().enumerate() {
        let Case {
            tree,
            query,
            key,
            absent,
        } = case;
        let query = Leaves::random(query, &tree, absent, 1);
        let key = Leaves::random(key, &tree, absent, 2);
        let [batch, keys, kv_heads] = key.shape;
        let value = random([batch, keys, kv_heads, 3], 3, &device());
        let rows = [1, query.shape[2]][number % 2];
        let alpha = random([rows, tree.height() + 1], 4, &device());
        for options in options(false).chain(options(true)) {
            let (value, alpha) = (value.clone(), alpha.clone());
            let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
            let hard = tree_coarse(
                query.tensor(&device()),
                key.tensor(&device()),
                value.clone(),
                alpha.clone(),
                &tree,
                options,
            );
            assert_close(hard, expected.clone(), 1e-5, 1e-5);
            let [query, key] = [&query, &key].map(|side| indicators(side, &tree, &device()));
            let relaxed = tree_coarse_relaxed(query, key, value, alpha, options);
            assert_close(relaxed, expected, 1e-5, 1e-5);
        }
    }
}

#[test]
fn the_root_alone_is_mean_pooling() {
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves::random([1, 6, 1], &tree, 0.0, 1).tensor(&device());
    let value = random([1, 6, 1, 3], 2, &device());
    let alpha = Tensor::from_data([[1.0, 0.0, 0.0]], &device());
    let context = tree_coarse(
        leaves.clone(),
        leaves,
        value.clone(),
        alpha,
        &tree,
        Default::default(),
    );
    assert_close(context, value.mean_dim(1).repeat_dim(1, 6), 1e-6, 1e-5);
}

#[test]
fn what_stands_at_padding_changes_nothing_even_infinities() {
    let tree = CompleteTree::new(vec![2, 2]);
    let mut leaves = Leaves::random([1, 6, 1], &tree, 0.0, 1);
    leaves.of[4] = -1;
    leaves.of[5] = -1;
    let value = random([1, 6, 1, 2], 2, &device());
    let padding = Tensor::full([1, 2, 1, 2], f32::INFINITY, &device());
    let infinite = Tensor::cat(vec![value.clone().narrow(1, 0, 4), padding], 1);
    for causal in [false, true] {
        let attend = |value: Tensor<4>| {
            let alpha = random([1, 3], 3, &device());
            let options = TreeCoarseOptions {
                causal,
                ..Default::default()
            };
            let leaves = leaves.tensor(&device());
            tree_coarse(leaves.clone(), leaves, value, alpha, &tree, options)
        };
        let context = attend(infinite.clone());
        assert_close(context.clone(), attend(value.clone()), 1e-6, 1e-6);
        assert!(values(context.narrow(1, 4, 2)).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn the_state_holds_as_many_numbers_after_any_number_of_keys() {
    let tree = CompleteTree::new(vec![2, 2]);
    let mut state = TreeCoarseState::new(2, 3, 5, &tree, &device());
    assert_eq!(state.numbers(), 2 * 3 * 7 * (5 + 1));
    for seed in 0..3 {
        let leaves = Leaves::random([2, 40, 3], &tree, 0.1, seed).tensor(&device());
        state.append(leaves, random([2, 40, 3, 5], seed, &device()));
    }
    assert_eq!(state.numbers(), 2 * 3 * 7 * (5 + 1));
}

#[test]
fn tokens_given_to_the_state_in_any_portions_are_the_causal_form() {
    let tree = CompleteTree::new(vec![2, 3, 2]);
    for portions in [vec![1; 9], vec![4, 1, 3, 1], vec![9], vec![5, 130, 1]] {
        let tokens = portions.iter().sum();
        let query = Leaves::random([2, tokens, 4], &tree, 0.1, 1);
        let key = Leaves::random([2, tokens, 2], &tree, 0.1, 2);
        let value = random([2, tokens, 2, 3], 3, &device());
        let alpha = random([4, 4], 4, &device());
        for options in options(true) {
            let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
            let mut state = TreeCoarseState::new(2, 2, 3, &tree, &device());
            let mut first = 0;
            let contexts = portions.iter().map(|new| {
                let context = state.attend(
                    query.tensor(&device()).narrow(1, first, *new),
                    key.tensor(&device()).narrow(1, first, *new),
                    value.clone().narrow(1, first, *new),
                    alpha.clone(),
                    options.empty_node,
                );
                first += new;
                context
            });
            assert_close(Tensor::cat(contexts.collect(), 1), expected, 1e-5, 1e-5);
        }
    }
}

#[test]
#[should_panic(
    expected = "tree_coarse: alpha [1 or heads, height + 1]: expected [1, 3] or [2, 3], got [2, 2]"
)]
fn alpha_has_one_weight_per_depth() {
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves::random([1, 3, 2], &tree, 0.0, 1).tensor(&device());
    let (value, alpha) = (
        random([1, 3, 2, 2], 1, &device()),
        random([2, 2], 1, &device()),
    );
    tree_coarse(
        leaves.clone(),
        leaves,
        value,
        alpha,
        &tree,
        Default::default(),
    );
}

fn attend_nothing(causal: bool) {
    let tree = CompleteTree::new(vec![2]);
    let leaves = Leaves::random([1, 0, 1], &tree, 0.0, 1).tensor(&device());
    let options = TreeCoarseOptions {
        causal,
        ..Default::default()
    };
    let (value, alpha) = (
        Tensor::zeros([1, 0, 1, 2], &device()),
        random([1, 2], 1, &device()),
    );
    tree_coarse(leaves.clone(), leaves, value, alpha, &tree, options);
}

#[test]
#[should_panic(expected = "tree_coarse: axis 1 of queries: expected at least 1, got 0")]
fn no_tokens_are_refused() {
    attend_nothing(false);
}

#[test]
#[should_panic(expected = "tree_coarse: axis 1 of queries: expected at least 1, got 0")]
fn no_tokens_are_refused_where_attention_is_causal() {
    attend_nothing(true);
}

#[test]
#[should_panic(expected = "tree_coarse_state: axis 1 of keys: expected at least 1, got 0")]
fn a_state_refuses_no_keys() {
    let tree = CompleteTree::new(vec![2]);
    let leaves = Leaves::random([1, 0, 1], &tree, 0.0, 1).tensor(&device());
    let mut state = TreeCoarseState::new(1, 1, 2, &tree, &device());
    state.append(leaves, Tensor::zeros([1, 0, 1, 2], &device()));
}

#[test]
fn the_same_keys_added_twice_give_the_same_bits() {
    let tree = CompleteTree::new(vec![2, 2]);
    // Many keys per leaf: sums in another order would have other bits.
    let leaves = Leaves::random([2, 500, 2], &tree, 0.1, 1).tensor(&device());
    let value = random([2, 500, 2, 5], 2, &device());
    let read = || {
        let mut state = TreeCoarseState::new(2, 2, 5, &tree, &device());
        state.append(leaves.clone(), value.clone());
        let alpha = random([1, 3], 3, &device());
        values(state.read(leaves.clone(), alpha, EmptyNode::CarryParent))
    };
    let first = read();
    for _ in 0..3 {
        assert_eq!(read(), first);
    }
}

#[test]
#[should_panic(expected = "node_indicators: depths of probabilities: expected 3, got 2")]
fn probabilities_are_needed_for_every_depth() {
    let tree = CompleteTree::new(vec![2, 2]);
    let leaves = Leaves::random([1, 3, 1], &tree, 0.0, 1);
    let probabilities = [1, 2].map(|width| random([1, 3, 1, width], 1, &device()));
    let _ = indicators(&leaves, &tree, &device()).soft(&probabilities);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn any_tree_any_padding_any_length_is_uniform_attention_within_equal_nodes(
        branching in prop::collection::vec(2usize..4, 0..4),
        lengths in (1usize..7, 0usize..4),
        heads in (1usize..3, 1usize..3),
        absent in prop::sample::select(vec![0.0, 0.3, 1.0]),
        causal: bool,
        drops: bool,
        seed in 0u64..1000,
    ) {
        let tree = CompleteTree::new(branching);
        let ((queries, more), (kv_heads, group)) = (lengths, heads);
        let query = Leaves::random([2, queries, kv_heads * group], &tree, absent, seed);
        let key = Leaves::random([2, queries + more, kv_heads], &tree, absent, seed + 1);
        let value = random([2, queries + more, kv_heads, 2], seed + 2, &device());
        let alpha = random([1, tree.height() + 1], seed + 3, &device());
        let empty_node = POLICIES[usize::from(drops)];
        let options = TreeCoarseOptions { causal, empty_node };
        let expected = every_pair(&query, &key, value.clone(), alpha.clone(), &tree, options);
        let context = tree_coarse(
            query.tensor(&device()),
            key.tensor(&device()),
            value,
            alpha,
            &tree,
            options,
        );
        assert_close(context, expected, 1e-5, 1e-5);
    }
}
