//! What leaf orders read of a context.

use crate::small;
use arbora_models::{Context, ReTreeverConfig};
use arbora_testing::{autodiff_device, device};
use arbora_tree::TokenOrder;
use burn::tensor::{Device, Tensor};

/// Tokens of two kinds in turn, all at the same place.
fn two_kinds(device: &Device) -> Context {
    let [a, b] = [[1.0, -1.0, 0.5], [-1.0, 2.0, 0.0]];
    Context {
        features: Tensor::from_data([[a, b, a, b, a, b, a, b]], device),
        positions: Tensor::zeros([1, 8, 2], device),
        mask: None,
    }
}

fn leaves(order: TokenOrder, device: &Device) -> Vec<i64> {
    let config = ReTreeverConfig::new(small()).with_order(order);
    let tree = config.with_seed(1).init(device).tree(&two_kinds(device));
    tree.order().into_data().iter::<i64>().collect()
}

#[test]
fn learned_order_groups_tokens_by_their_encodings() {
    let learned = TokenOrder::Learned { iterations: 4 };
    for device in [device(), autodiff_device()] {
        let mut halves: Vec<Vec<i64>> = leaves(learned, &device)
            .chunks(4)
            .map(<[i64]>::to_vec)
            .collect();
        halves.iter_mut().for_each(|half| half.sort());
        halves.sort();
        assert_eq!(halves, [[0, 2, 4, 6], [1, 3, 5, 7]]);
    }
}

#[test]
fn ball_order_reads_positions_and_not_features() {
    let in_order: Vec<i64> = (0..8).collect();
    assert_eq!(leaves(TokenOrder::BallTree, &device()), in_order);
}
