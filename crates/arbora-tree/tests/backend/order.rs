//! Orders of tokens.

use arbora_testing::{device, random};
use arbora_tree::{Layout, TokenOrder, TokenTreeShape};
use burn::tensor::{Bool, Int, Tensor, TensorData};

const ORDERS: [TokenOrder; 8] = [
    TokenOrder::Given,
    TokenOrder::Axis(0),
    TokenOrder::KdTree,
    TokenOrder::Morton,
    TokenOrder::Random { seed: 5 },
    TokenOrder::BallTree,
    TokenOrder::RandomProjection { seed: 5 },
    TokenOrder::Learned { iterations: 3 },
];

fn rows(order: Tensor<2, Int>) -> Vec<Vec<i64>> {
    let [_, tokens] = order.dims();
    let flat: Vec<i64> = order.into_data().iter::<i64>().collect();
    flat.chunks(tokens).map(<[i64]>::to_vec).collect()
}

fn mask(rows: [[bool; 6]; 2]) -> Tensor<2, Bool> {
    Tensor::from_data(TensorData::from(rows), &device())
}

#[test]
fn masked_tokens_become_the_last_leaves() {
    let points = random([2, 6, 2], 1, &device());
    let shape = TokenTreeShape::new(6, 2, Layout::LeftFilled);
    let masked = [[false, true, false, false, true, false], [true; 6]];
    for order in ORDERS {
        let leaves = rows(order.permutation(&points, Some(&mask(masked)), &shape));
        assert_eq!(leaves[0][4..], [1, 4], "{order:?}");
        assert_eq!(
            leaves[1],
            [0, 1, 2, 3, 4, 5],
            "{order:?} without real tokens"
        );
        let mut real = leaves[0][..4].to_vec();
        real.sort();
        assert_eq!(real, [0, 2, 3, 5], "{order:?}");
    }
}

#[test]
fn axis_order_sorts_each_example_by_its_own_coordinates() {
    let points = Tensor::<3>::from_data(
        TensorData::from([
            [[0.3, 0.0], [0.1, 1.0], [0.2, 2.0]],
            [[5.0, 0.0], [5.0, 0.0], [-5.0, 0.0]],
        ]),
        &device(),
    );
    let shape = TokenTreeShape::new(3, 2, Layout::LeftFilled);
    let leaves = rows(TokenOrder::Axis(0).permutation(&points, None, &shape));
    assert_eq!(leaves, [[1, 2, 0], [2, 0, 1]]);
}

#[test]
fn examples_do_not_influence_each_other() {
    let points = random([2, 6, 2], 2, &device());
    let shape = TokenTreeShape::new(6, 3, Layout::LeftFilled);
    for order in ORDERS {
        let both = rows(order.permutation(&points, None, &shape));
        let second = points.clone().slice([1..2, 0..6, 0..2]);
        let alone = rows(order.permutation(&second, None, &shape));
        assert_eq!(both[1], alone[0], "{order:?}");
    }
}

#[test]
fn learned_order_brings_tokens_with_similar_vectors_together() {
    let points = Tensor::<3>::from_data(
        TensorData::from([
            [[0.0], [9.0], [1.0], [8.0], [0.5], [8.5]],
            [[5.0], [5.1], [-5.0], [-5.1], [5.2], [5.3]],
        ]),
        &device(),
    );
    let shape = TokenTreeShape::new(6, 3, Layout::LeftFilled);
    let leaves = rows(TokenOrder::Learned { iterations: 4 }.permutation(&points, None, &shape));
    // Children of three leaves each: the clusters of the first example; in the second the token of
    // four that is nearest the other two leaves.
    assert_eq!(leaves[0][..3], [0, 2, 4]);
    assert_eq!(leaves[0][3..], [1, 3, 5]);
    assert_eq!(leaves[1][..3], [1, 4, 5]);
    assert_eq!(leaves[1][3..], [0, 2, 3]);
}

#[test]
#[should_panic(expected = "axis 1 of points: expected 5, got 6")]
fn another_number_of_tokens_is_refused() {
    let shape = TokenTreeShape::new(5, 2, Layout::LeftFilled);
    TokenOrder::Given.permutation(&random([1, 6, 2], 1, &device()), None, &shape);
}
