//! All children at once, weighted by their probabilities.

use super::forward::{LevelRouting, Pass};
use super::items::Items;
use super::route::{Scores, choose, mean_entropy};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

impl Pass<'_> {
    /// Runs every node on every item. What comes out of a subtree is the mixture of what comes out of its children's:
    /// hidden states with a shared head, logits with a head per leaf. The reported route is the greedy one.
    ///
    /// - returns hidden states or logits, `[batch, tokens, d_model or classes]`
    pub fn mixture(&mut self, items: Items) -> Tensor<3> {
        let config = self.model.config();
        let (k, height) = (config.branching, config.height);
        let count = items.routes.count();
        let (chunks, home) = (items.chunks, items.routes.home.clone());
        let mut greedy = vec![0; count];
        let mut weights: Vec<Vec<Tensor<2>>> = Vec::with_capacity(height);
        let mut level = vec![items];
        for depth in 0..=height {
            for (index, items) in level.iter_mut().enumerate() {
                let group = &mut items.routes.groups[0];
                group.node = index;
                group.state.rows = self.run_node(depth, group, chunks, &home);
            }
            if depth == height {
                break;
            }
            let scores: Vec<Tensor<2>> = level
                .iter()
                .map(|items| {
                    let pooled = items.pooled(config.route_on);
                    Scores::new(self.model, depth, &items.routes, pooled, false).tensor
                })
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
            self.routing.levels.push(LevelRouting {
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
        self.routing.leaves = greedy;
        let mut values: Vec<Tensor<3>> = level
            .iter()
            .map(|items| {
                let leaf = &items.routes.groups[0];
                let rows = leaf.state.rows.clone();
                let value = self.model.predict_alone(leaf.node, rows);
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
