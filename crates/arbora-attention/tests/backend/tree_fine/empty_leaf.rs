//! What queries of leaves get that have no key.

use super::host::{self, Host};
use super::{ZERO, integers, tree};
use arbora_attention::EmptyLeaf;
use arbora_attention::functions::{TreeFineInput, TreeFineOptions, TreeFineOutput, tree_fine};
use arbora_testing::{autodiff_device, device, padding, random, values};
use arbora_tree::RoutingTree;
use burn::tensor::{Device, Tensor};

/// More leaves than keys: most queries come to empty ones.
const BRANCHING: [usize; 3] = [2, 3, 4];

fn input(device: &Device) -> TreeFineInput {
    TreeFineInput::self_attn(
        random([2, 7, 4, 6], 1, device),
        random([2, 7, 2, 6], 2, device),
        random([2, 7, 2, 5], 3, device),
    )
    .mask_pad(padding(&[7, 5], 7, &device.clone().without_autodiff()))
}

fn run(
    input: &TreeFineInput,
    trees: &RoutingTree,
    empty_leaf: EmptyLeaf,
    causal: Option<usize>,
) -> TreeFineOutput {
    let options = TreeFineOptions {
        empty_leaf,
        causal,
        ..ZERO
    };
    tree_fine(input.clone(), trees, trees, options)
}

/// The same by definition, for trees of given branching factors.
pub(super) fn expected(host: &Host, branching: &[usize], empty_leaf: EmptyLeaf) -> Vec<f64> {
    let leaves: i64 = branching.iter().product::<usize>() as i64;
    // Nodes of each depth, those of the leaves' parents first.
    let widths: Vec<i64> = (0..branching.len())
        .rev()
        .map(|depth| branching[..depth].iter().product::<usize>() as i64)
        .collect();
    host.each_query()
        .flat_map(|(example, query, head, at)| {
            let leaf = host.query_leaf[at];
            let own = host.within((example, query, head), leaf);
            let kv_head = host.kv_head(head);
            if own.1 > 0.0 || leaf < 0 {
                return own.0;
            }
            match empty_leaf {
                EmptyLeaf::Zero => own.0,
                EmptyLeaf::SelfKey => host.value_row(example, query, kv_head).to_vec(),
                EmptyLeaf::AncestorMean | EmptyLeaf::AncestorAttend => widths
                    .iter()
                    .map(|width| {
                        let below = leaves / width;
                        host.attend((example, query, head), |key| {
                            let other = host.key_leaf[host.key_at(example, key, kv_head)];
                            let together = other >= 0 && other / below == leaf / below;
                            let weight = match empty_leaf {
                                EmptyLeaf::AncestorMean => {
                                    host.weight(example, query, key, head).recip()
                                }
                                _ => 1.0,
                            };
                            f64::from(u8::from(together)) * weight
                        })
                    })
                    .find(|(_, total)| *total > 0.0)
                    .map_or(own.0, |(context, _)| context),
            }
        })
        .collect()
}

#[test]
fn every_policy_gives_what_it_says() {
    let device = device();
    let input = input(&device);
    let trees = tree(6, &BRANCHING, 2, 5, &device);
    for empty_leaf in [
        EmptyLeaf::Zero,
        EmptyLeaf::AncestorMean,
        EmptyLeaf::AncestorAttend,
        EmptyLeaf::SelfKey,
    ] {
        for causal in [None, Some(0)] {
            let found = run(&input, &trees, empty_leaf, causal);
            let host = Host::new(&input, &found, causal);
            let empty = host
                .each_query()
                .filter(|(example, query, head, at)| {
                    let leaf = host.query_leaf[*at];
                    leaf >= 0 && host.within((*example, *query, *head), leaf).1 == 0.0
                })
                .count();
            assert!(empty > 10, "the test needs empty leaves, there are {empty}");
            host::assert_near(
                &format!("{empty_leaf:?}, causal {causal:?}"),
                &values(found.context.clone()),
                &expected(&host, &BRANCHING, empty_leaf),
            );
        }
    }
}

#[test]
fn the_gradient_of_values_sums_to_that_of_contexts() {
    // Every policy but zero gives a mean of values with weights that sum to 1.
    for (empty_leaf, causal) in [
        (EmptyLeaf::AncestorMean, None),
        (EmptyLeaf::AncestorMean, Some(0)),
        (EmptyLeaf::AncestorAttend, Some(0)),
        (EmptyLeaf::SelfKey, None),
    ] {
        let device = autodiff_device();
        let mut input = input(&device);
        input.value = input.value.require_grad();
        let trees = tree(6, &BRANCHING, 2, 5, &device);
        let found = run(&input, &trees, empty_leaf, causal);
        let routed = integers(found.query.leaves());
        let offset = causal.map_or(0, |_| 1);
        let host = Host::new(&input, &found, causal);
        // Queries that see something under the root.
        let answered = host
            .each_query()
            .filter(|(example, query, head, at)| {
                routed[*at] >= 0 && host.attend((*example, *query, *head), |_| 1.0).1 > 0.0
            })
            .count();
        assert!(answered > 30 - offset);
        let gradients = found.context.sum().backward();
        let sum: f32 = values(input.value.grad(&gradients).expect("values are read"))
            .iter()
            .sum();
        let expected = (answered * 5) as f32;
        assert!(
            (sum - expected).abs() < 1e-3 * expected,
            "{empty_leaf:?}: {sum}, {expected}"
        );
    }
}

#[test]
fn attention_at_an_ancestor_trains_queries_and_keys() {
    let device = autodiff_device();
    let mut input = input(&device);
    input.query = input.query.require_grad();
    input.key = input.key.require_grad();
    let trees = tree(6, &BRANCHING, 2, 5, &device);
    let size = |empty_leaf| {
        let found = run(&input, &trees, empty_leaf, None);
        let weights = random(found.context.dims(), 9, &device);
        let gradients = (found.context * weights).sum().backward();
        let sum = |rows: &Tensor<4>| -> f32 {
            let gradient = rows.grad(&gradients).expect("it is read");
            values(gradient).iter().map(|x| x.abs()).sum()
        };
        (sum(&input.query), sum(&input.key))
    };
    let (zero, attend) = (size(EmptyLeaf::Zero), size(EmptyLeaf::AncestorAttend));
    assert!(
        attend.0 > zero.0 && attend.1 > zero.1,
        "{attend:?}, {zero:?}"
    );
}
