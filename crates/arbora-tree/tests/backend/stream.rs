//! Trees to which tokens are appended.

use arbora_testing::{assert_close, device, padding, random};
use arbora_tree::{
    Aggregator, Layout, MeanAggregator, StreamError, TokenOrder, TokenTree, TokenTreeShape,
};
use burn::tensor::{Int, Tensor};

const DIM: usize = 3;

/// A tree built at once over the first tokens of each example, with room for as many as `tokens` has.
fn rebuilt(tokens: &Tensor<3>, lengths: &[usize], branching: usize) -> TokenTree {
    let [_, count, _] = tokens.dims();
    let shape = TokenTreeShape::new(count, branching, Layout::LeftFilled);
    let mask = padding(lengths, count, &device());
    let order = TokenOrder::Given.permutation(tokens, Some(&mask), &shape);
    TokenTree::build(tokens.clone(), Some(mask), order, shape, &MeanAggregator)
}

fn empty(batch: usize, capacity: usize, branching: usize) -> TokenTree {
    let shape = TokenTreeShape::new(capacity, branching, Layout::LeftFilled);
    TokenTree::empty(batch, DIM, shape, &device())
}

/// Tokens `from..to` of every example.
fn part(tokens: &Tensor<3>, from: usize, to: usize) -> Tensor<3> {
    tokens.clone().narrow(1, from, to - from)
}

#[track_caller]
fn assert_same_tree(got: &TokenTree, expected: &TokenTree) {
    assert_eq!(got.shape(), expected.shape());
    assert_close(got.nodes(), expected.nodes(), 1e-6, 1e-6);
    assert_eq!(
        got.lengths().into_data().iter::<i64>().collect::<Vec<_>>(),
        expected
            .lengths()
            .into_data()
            .iter::<i64>()
            .collect::<Vec<_>>()
    );
    assert_eq!(
        got.order().into_data().iter::<i64>().collect::<Vec<_>>(),
        expected
            .order()
            .into_data()
            .iter::<i64>()
            .collect::<Vec<_>>()
    );
}

#[test]
fn tokens_appended_to_an_empty_tree_make_the_tree_of_all_of_them() {
    for branching in [2, 3] {
        let tokens = random([2, branching * branching * branching, DIM], 1, &device());
        let mut tree = empty(2, 1, branching);
        let mut from = 0;
        // Room grows from 1 to b, b² and b³ tokens.
        for to in [1, 2, branching + 1, branching * branching + 2] {
            let changed = tree
                .append(part(&tokens, from, to), &MeanAggregator)
                .unwrap();
            assert_eq!(changed.shape(), tree.shape());
            from = to;
        }
        assert_eq!(tree.capacity(), branching * branching * branching);
        assert_same_tree(&tree, &rebuilt(&tokens, &[from, from], branching));
    }
}

#[test]
fn examples_grow_at_their_own_lengths() {
    let tokens = random([3, 9, DIM], 2, &device());
    let mut tree = rebuilt(&part(&tokens, 0, 4), &[4, 1, 0], 3);
    // What each example is given next: one, none and seven.
    let next = Tensor::cat(
        vec![
            tokens.clone().narrow(0, 0, 1).narrow(1, 4, 5).pad_to(7),
            tokens.clone().narrow(0, 1, 1).narrow(1, 1, 7),
            tokens.clone().narrow(0, 2, 1).narrow(1, 0, 7),
        ],
        0,
    );
    tree.append_ragged(next, &[1, 0, 7], &MeanAggregator)
        .unwrap();
    let whole = Tensor::cat(
        vec![
            tokens,
            Tensor::zeros([3, tree.capacity() - 9, DIM], &device()),
        ],
        1,
    );
    assert_same_tree(&tree, &rebuilt(&whole, &[5, 1, 7], 3));
}

#[test]
fn replaced_tokens_change_their_ancestors_and_nothing_else() {
    let mut tokens = random([2, 11, DIM], 3, &device());
    let mut tree = rebuilt(&tokens, &[11, 6], 2);
    let new = random([3, DIM], 4, &device());
    let leaves = [(1, 5), (0, 9), (0, 8)];
    let changed = tree.update(&leaves, new.clone(), &MeanAggregator).unwrap();
    for (row, (example, token)) in leaves.into_iter().enumerate() {
        let new = new.clone().narrow(0, row, 1).unsqueeze_dim::<3>(0);
        tokens = tokens.slice_assign([example..example + 1, token..token + 1, 0..DIM], new);
    }
    assert_same_tree(&tree, &rebuilt(&tokens, &[11, 6], 2));

    let shape = *tree.shape();
    let mut expected: Vec<usize> = (0..=shape.height())
        .flat_map(|height| [8, 9].map(|leaf| shape.position(height, shape.ancestor(leaf, height))))
        .collect();
    expected.dedup();
    assert_eq!(changed.positions(0).collect::<Vec<_>>(), expected);
    assert_eq!(changed.positions(1).count(), shape.height() + 1);
    assert_eq!(
        changed.nodes().unwrap().dims(),
        [expected.len() + shape.height() + 1, DIM]
    );
}

#[test]
fn room_reserved_at_once_is_the_room_of_a_longer_example() {
    let tokens = random([2, 20, DIM], 5, &device());
    let mut tree = rebuilt(&part(&tokens, 0, 3), &[3, 0], 2);
    tree.reserve(20, &MeanAggregator).unwrap();
    assert_same_tree(&tree, &rebuilt(&tokens, &[3, 0], 2));
    assert!(tree.reserve(4, &MeanAggregator).unwrap().nodes().is_none());
    assert_eq!(tree.capacity(), 20);
}

#[test]
fn appending_nothing_changes_nothing() {
    let mut tree = rebuilt(&random([2, 3, DIM], 1, &device()), &[3, 2], 2);
    let before = tree.clone();
    let none = tree.append_ragged(random([2, 1, DIM], 2, &device()), &[0, 0], &MeanAggregator);
    assert!(none.unwrap().nodes().is_none());
    assert_same_tree(&tree, &before);
}

#[test]
fn a_copy_made_before_an_append_stays_as_it_was() {
    let tokens = random([1, 6, DIM], 6, &device());
    let mut tree = empty(1, 6, 2);
    tree.append(part(&tokens, 0, 3), &MeanAggregator).unwrap();
    let copy = tree.clone();
    tree.append(part(&tokens, 3, 5), &MeanAggregator).unwrap();
    assert_same_tree(&copy, &rebuilt(&tokens, &[3], 2));
    assert_same_tree(&tree, &rebuilt(&tokens, &[5], 2));
}

#[test]
fn a_full_tree_refuses_before_anything_changes() {
    let tokens = random([2, 8, DIM], 7, &device());
    let mut tree = rebuilt(&part(&tokens, 0, 4), &[4, 2], 2).with_max_tokens(6);
    let before = tree.clone();
    let error = tree
        .append(part(&tokens, 4, 7), &MeanAggregator)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "append: example 0: expected at most 6 tokens, got 4 and 3 more"
    );
    assert_same_tree(&tree, &before);
    assert!(tree.reserve(7, &MeanAggregator).is_err());
    // Growth stops at the limit and not at a power of the branching factor.
    tree.append_ragged(part(&tokens, 4, 7), &[2, 3], &MeanAggregator)
        .unwrap();
    assert_eq!(tree.capacity(), 6);
}

#[test]
fn an_aggregator_that_panics_leaves_the_tree_as_it_was() {
    struct Panics;
    impl Aggregator for Panics {
        fn aggregate(&self, _: Tensor<3>, _: Tensor<2, Int>) -> Tensor<2> {
            panic!("no summary today")
        }
    }
    let tokens = random([1, 6, DIM], 8, &device());
    let mut tree = rebuilt(&part(&tokens, 0, 4), &[4], 2);
    let before = tree.clone();
    let append = || tree.append(part(&tokens, 4, 6), &Panics);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(append)).is_err());
    assert_same_tree(&tree, &before);
}

#[test]
fn other_layouts_and_orders_are_refused() {
    let tokens = random([1, 9, DIM], 9, &device());
    let published = TokenTreeShape::new(9, 4, Layout::Published);
    let order = TokenOrder::Given.permutation(&tokens, None, &published);
    let mut tree = TokenTree::build(tokens.clone(), None, order, published, &MeanAggregator);
    let error = tree
        .append(part(&tokens, 0, 1), &MeanAggregator)
        .unwrap_err();
    assert_eq!(
        error,
        StreamError::Layout {
            layout: Layout::Published
        }
    );
    let shape = TokenTreeShape::new(9, 2, Layout::LeftFilled);
    let order = TokenOrder::Axis(0).permutation(&tokens, None, &shape);
    let mut tree = TokenTree::build(tokens.clone(), None, order, shape, &MeanAggregator);
    let error = tree
        .append(part(&tokens, 0, 1), &MeanAggregator)
        .unwrap_err();
    assert!(matches!(error, StreamError::Order { example: 0, .. }));
}

#[test]
fn tokens_that_do_not_exist_or_come_twice_are_not_replaced() {
    let tokens = random([2, 4, DIM], 10, &device());
    let mut tree = rebuilt(&tokens, &[4, 2], 2);
    let new = random([2, DIM], 11, &device());
    for leaves in [[(0, 1), (1, 2)], [(2, 0), (0, 0)]] {
        let error = tree
            .update(&leaves, new.clone(), &MeanAggregator)
            .unwrap_err();
        assert!(matches!(error, StreamError::NoSuchToken { .. }));
    }
    assert_eq!(
        tree.update(&[(0, 1), (0, 1)], new, &MeanAggregator)
            .unwrap_err(),
        StreamError::Repeated {
            example: 0,
            token: 1
        }
    );
    assert_same_tree(&tree, &rebuilt(&tokens, &[4, 2], 2));
}

#[test]
#[should_panic(expected = "token_tree: append: axis 2 of tokens: expected 3, got 2")]
fn appended_tokens_of_another_width_are_refused() {
    let _ = empty(1, 4, 2).append(random([1, 1, 2], 1, &device()), &MeanAggregator);
}

#[test]
#[should_panic(expected = "token_tree: append: count of example 1: expected at most 2, got 3")]
fn a_count_beyond_the_tokens_given_is_refused() {
    let tokens = random([2, 2, DIM], 1, &device());
    let _ = empty(2, 4, 2).append_ragged(tokens, &[1, 3], &MeanAggregator);
}

trait PadTo {
    fn pad_to(self, count: usize) -> Self;
}

impl PadTo for Tensor<3> {
    /// Appends rows that are never to be read.
    fn pad_to(self, count: usize) -> Self {
        let [batch, existing, dim] = self.dims();
        let garbage = Tensor::full([batch, count - existing, dim], f32::NAN, &device());
        Tensor::cat(vec![self, garbage], 1)
    }
}
