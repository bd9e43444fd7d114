//! Routes random vectors through a decision tree, evens out its leaves, and grows it by a level.
//!
//! `cargo run -p arbora-tree --example route_vectors --features flex`

use arbora_tree::{Growth, LeafCounts, RoutingTree, RoutingTreeConfig, Surrogate};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() {
    let device = Device::default();
    let (tokens, dim) = (200, 8);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    // One example of one head. All vectors lie to one side of the origin, as those of trained models do.
    let numbers: Vec<f32> = (0..tokens * dim)
        .map(|_| rng.random_range(-1.0..1.5))
        .collect();
    let vectors = Tensor::<4>::from_data(TensorData::new(numbers, [1, tokens, 1, dim]), &device);

    // Two binary levels: hyperplanes in random directions through the origin.
    let tree = RoutingTreeConfig::new(dim, vec![2, 2]).init(&device);
    report("random hyperplanes", &tree, &vectors);
    let tree = tree.with_median_split(vectors.clone());
    report("split at medians", &tree, &vectors);
    let grown = tree.clone().grow(3, &Growth::preserve(1));
    report("grown, function kept", &grown, &vectors);

    // The leaves that the first vector is closest to, and how close.
    let first = vectors.narrow(1, 0, 1);
    let candidates = tree.best_leaves(first.clone(), None, 3);
    println!(
        "best leaves of vector 0: {}",
        line(candidates.leaves.float())
    );
    println!("their scores:            {}", line(candidates.scores));
    let soft = Surrogate::Soft { temperature: 0.5 };
    let probabilities = tree.leaf_probabilities(first, None, &soft);
    println!("probability per leaf:    {}", line(probabilities));
}

fn report(name: &str, tree: &RoutingTree, vectors: &Tensor<4>) {
    let routing = tree.route(vectors.clone(), None);
    let counts = LeafCounts::new(&routing, &routing);
    println!(
        "{name:20} | per leaf: {} | effective leaves: {}",
        line(counts.keys.clone()),
        line(counts.effective_leaves())
    );
}

fn line<const D: usize>(tensor: Tensor<D>) -> String {
    let numbers = tensor.into_data().iter::<f32>().collect::<Vec<_>>();
    let numbers = numbers.into_iter().map(|x| (x * 100.0).round() / 100.0);
    numbers.map(|x| x.to_string()).collect::<Vec<_>>().join(" ")
}
