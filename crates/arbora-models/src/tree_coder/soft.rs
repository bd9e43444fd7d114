//! All children at once, weighted by their probabilities.

use super::TreeCoder;
use super::forward::{LevelRouting, TreeCoderOptions, TreeCoderRouting};
use super::items::Items;
use super::route::{choose, mean_entropy};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

impl TreeCoder {
    /// Runs every node on every item. What comes out of a subtree is the mixture of what comes out of its children's:
    /// hidden states with a shared head, logits with a head per leaf. The route that is told is the greedy one.
    ///
    /// - returns hidden states or logits, `[batch, tokens, d_model or classes]`
    pub(super) fn mixture(
        &self,
        items: Items,
        options: &TreeCoderOptions,
        routing: &mut TreeCoderRouting,
    ) -> Tensor<3> {
        let config = &self.config;
        let (k, height, tree) = (config.branching, config.height, self.tree());
        let count = items.count();
        let home = items.home.clone();
        let mut greedy = vec![0; count];
        let mut weights: Vec<Vec<Tensor<2>>> = Vec::with_capacity(height);
        let mut level = vec![items];
        for depth in 0..=height {
            for (index, items) in level.iter_mut().enumerate() {
                let place = tree.offset(depth) + index;
                routing.activations[place] += count;
                let of_items = (items.chunks, &home);
                let group = &mut items.groups[0];
                group.node = index;
                group.rows = self.run_node(place, group, of_items, options, routing);
            }
            if depth == height {
                break;
            }
            let scores: Vec<Tensor<2>> = level
                .iter()
                .map(|items| self.scores(depth, items))
                .collect();
            let host: Vec<f32> = Tensor::cat(scores.clone(), 0).into_data().iter().collect();
            let children: Vec<&[f32]> = greedy
                .iter()
                .enumerate()
                .map(|(item, node)| &host[(node * count + item) * k..][..k])
                .collect();
            let counts = (0..count).map(|item| level[0].is_real(item));
            let entropy = mean_entropy(children.iter().copied(), counts);
            let children: Vec<usize> = children
                .into_iter()
                .map(|scores| choose(scores, None).child)
                .collect();
            let nodes = greedy.clone();
            for (node, child) in greedy.iter_mut().zip(&children) {
                *node = *node * k + child;
            }
            routing.levels.push(LevelRouting {
                margins: vec![f64::INFINITY; children.len()],
                nodes,
                children,
                entropy,
            });
            weights.push(
                scores
                    .into_iter()
                    .map(|scores| softmax(scores, 1))
                    .collect(),
            );
            level = level
                .into_iter()
                .flat_map(|items| std::iter::repeat_n(items, k))
                .collect();
        }
        routing.leaves = greedy;
        let mut values: Vec<Tensor<3>> = level
            .iter()
            .map(|items| {
                let leaf = &items.groups[0];
                let value = self.predict_alone(leaf.node, leaf.rows.clone());
                value.to_device(&home)
            })
            .collect();
        for weights in weights.into_iter().rev() {
            values = values
                .chunks(k)
                .zip(weights)
                .map(|(children, weights)| {
                    let parts = children.iter().enumerate().map(|(child, value)| {
                        let weight = weights.clone().narrow(1, child, 1).reshape([count, 1, 1]);
                        value.clone() * weight.cast(value.dtype())
                    });
                    parts
                        .reduce(|sum, part| sum + part)
                        .expect("there are at least two children")
                })
                .collect();
        }
        level[0].sequences(values)
    }
}
