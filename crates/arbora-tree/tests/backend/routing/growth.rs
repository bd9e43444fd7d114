//! Growth by a level, median splits, files.

use super::{integers, tree};
use arbora_testing::{autodiff_device, device, random, values};
use arbora_tree::{Growth, RoutingTree, RoutingTreeConfig};
use burn::module::{Module, Param};
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Tensor};

fn leaf_histogram(tree: &RoutingTree, x: Tensor<4>) -> Vec<usize> {
    let mut counts = vec![0; tree.leaves()];
    for leaf in integers(tree.route(x, None).leaves()) {
        counts[leaf as usize] += 1;
    }
    counts
}

#[test]
fn a_preserving_level_keeps_every_ancestor_and_fills_the_last_children() {
    for branching in [2, 3] {
        let before = tree(4, &[2, 3], 2);
        let x = random([2, 20, 4, 4], 1, &device());
        let old = integers(before.route(x.clone(), None).leaves());
        let grown = before.grow(branching, &Growth::preserve(5));
        assert_eq!(grown.shape().factors(), [2, 3, branching]);
        let routing = grown.route(x, None);
        assert_eq!(integers(routing.nodes(2)), old);
        for (leaf, old) in integers(routing.leaves()).into_iter().zip(old) {
            assert_eq!(leaf, old * branching as i64 + branching as i64 - 1);
        }
    }
}

#[test]
fn growth_keeps_the_other_levels_and_their_ids() {
    let before = tree(4, &[2, 2], 1);
    let samples = random([1, 64, 1, 4], 2, &device());
    for growth in [
        Growth::Random { seed: 1 },
        Growth::preserve(1),
        Growth::MedianSplit { samples },
    ] {
        let after = before.clone().grow(2, &growth);
        assert_eq!(after.parameter_ids()[..4], before.parameter_ids());
        assert_eq!(after.parameter_ids().len(), 6);
        for (old, new) in before.levels().iter().zip(after.levels()) {
            assert_eq!(values(old.weight.val()), values(new.weight.val()));
            assert_eq!(values(old.bias.val()), values(new.bias.val()));
        }
    }
}

#[test]
fn a_tree_grown_at_random_by_its_own_seed_is_the_tree_of_full_height() {
    let full = tree(4, &[2, 3, 2], 2);
    let random_level = Growth::Random { seed: 3 };
    let grown = tree(4, &[], 2)
        .grow(2, &random_level)
        .grow(3, &random_level)
        .grow(2, &random_level);
    let x = random([1, 10, 2, 4], 3, &device());
    let (full, grown) = (full.route(x.clone(), None), grown.route(x, None));
    assert_eq!(integers(full.path), integers(grown.path));
}

#[test]
fn a_new_level_learns_like_the_others() {
    let tree = RoutingTreeConfig::new(4, vec![2])
        .init(&autodiff_device())
        .grow(2, &Growth::preserve(1))
        .with_median_split(random([1, 32, 1, 4], 4, &device()));
    let x = random([1, 9, 1, 4], 5, &device());
    let gradients = tree.best_leaves(x, None, 4).scores.sum().backward();
    for level in tree.levels() {
        assert!(level.weight.val().grad(&gradients).is_some());
        assert!(level.bias.val().grad(&gradients).is_some());
    }
}

#[test]
fn a_median_split_halves_the_samples_at_every_node() {
    if arbora_testing::skipped_in_half_precision(
        "a rounded bias is not between the two samples in the middle",
    ) {
        return;
    }
    let tree = tree(6, &[2, 2, 2, 2], 2);
    // All samples on one side of the origin: hyperplanes through it would not split them.
    let samples = random([3, 37, 2, 6], 6, &device()) + 2.0;
    let tree = tree.with_median_split(samples.clone());
    let routing = tree.route(samples, None);
    let least = values(routing.least_margin());
    assert!(least.iter().all(|margin| *margin > 0.0));
    for depth in 0..4 {
        let (nodes, children) = (
            integers(routing.nodes(depth)),
            integers(routing.nodes(depth + 1)),
        );
        for used in 0..2 {
            for node in 0..1i64 << depth {
                let of_tree = |at: &usize| at % 2 == used && nodes[*at] == node;
                let here: Vec<usize> = (0..nodes.len()).filter(of_tree).collect();
                let right = here.iter().filter(|at| children[**at] % 2 == 1).count();
                assert!(
                    right.abs_diff(here.len() - right) <= 1,
                    "{right} of {}",
                    here.len()
                );
            }
        }
    }
}

#[test]
fn a_k_ary_split_evens_out_the_samples() {
    let tree = tree(6, &[5, 3], 1);
    let samples = random([1, 300, 1, 6], 7, &device()) + 1.0;
    let skewed = leaf_histogram(&tree, samples.clone());
    let even = leaf_histogram(&tree.with_median_split(samples.clone()), samples);
    assert!(skewed.iter().any(|count| *count > 40), "{skewed:?}");
    assert!(
        even.iter().all(|count| (17..=23).contains(count)),
        "{even:?}"
    );
}

#[test]
fn growth_by_a_median_split_halves_every_leaf() {
    let samples = random([1, 80, 1, 6], 8, &device()) + 1.0;
    let before = tree(6, &[3], 1);
    let old = leaf_histogram(&before, samples.clone());
    let growth = Growth::MedianSplit {
        samples: samples.clone(),
    };
    let new = leaf_histogram(&before.grow(2, &growth), samples);
    for (children, parent) in new.chunks(2).zip(old) {
        assert_eq!(children[0] + children[1], parent);
        assert!(children[0].abs_diff(children[1]) <= 1, "{new:?}");
    }
}

#[test]
fn a_file_keeps_parameters_and_balance() {
    let config = RoutingTreeConfig::new(4, vec![2, 3]).with_balance_rate(0.5);
    let trained = config.clone().with_seed(1).init(&device());
    let x = random([1, 30, 1, 4], 9, &device()) + 0.5;
    let routing = trained.route(x.clone(), None);
    trained.track_balance(&[&routing]);
    let expected = trained.route(x.clone(), None);

    let bytes = trained.clone().into_record().into_bytes().unwrap();
    let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(bytes.to_vec())).unwrap();
    let loaded = config.with_seed(2).init(&device()).load_record(record);
    for (old, new) in trained.levels().iter().zip(loaded.levels()) {
        let balance = values(new.balance.value());
        assert!(balance.iter().any(|bias| *bias != 0.0));
        assert_eq!(balance, values(old.balance.value()));
    }
    assert_eq!(
        integers(loaded.route(x, None).path),
        integers(expected.path)
    );
}

#[test]
fn parameters_are_found_by_the_name_of_their_container() {
    struct Below {
        names: Vec<String>,
        inside: Vec<burn::module::ParamId>,
    }
    impl burn::module::ModuleVisitor for Below {
        fn enter_module(&mut self, _: &str, container: &str) {
            self.names.push(container.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.names.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.names.iter().any(|name| name == "Struct:RoutingTree") {
                self.inside.push(param.id);
            }
        }
    }
    let tree = tree(4, &[2, 2], 1);
    let mut below = Below {
        names: Vec::new(),
        inside: Vec::new(),
    };
    tree.visit(&mut below);
    let ids = tree.parameter_ids();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| below.inside.contains(id)));
}

#[test]
fn the_same_seed_draws_weights_of_unit_projections() {
    let wide = tree(64, &[2, 20], 2);
    let weight = values(wide.levels()[1].weight.val());
    assert_eq!(
        weight,
        values(tree(64, &[2, 20], 2).levels()[1].weight.val())
    );
    let square = weight.iter().map(|w| w * w).sum::<f32>() / weight.len() as f32;
    // 5120 draws: five standard errors of the variance are 10 %.
    assert!((square * 64.0 - 1.0).abs() < 0.1, "{square}");
}

#[test]
#[should_panic(expected = "branching factor of level 2: expected at least 2, got 0")]
fn growth_without_children_is_refused() {
    tree(4, &[2, 2], 1).grow(0, &Growth::preserve(1));
}
