//! Balanced hierarchical k-means.

use super::points::{Points, add, dot, greatest, squared_distance, sum_of_terms};
use crate::shape::TokenTreeShape;
use std::cmp::Reverse;

pub(super) fn sort_by_clusters(
    tokens: &mut [usize],
    points: &Points,
    shape: &TokenTreeShape,
    iterations: usize,
) {
    let mut clusters = Clusters::new(points, shape.tokens(), shape.branching());
    super::descend(tokens, shape, shape.height(), &mut |node, height| {
        if height == 1 {
            // Each leaf is a child of its own: there is nothing to divide.
            node.sort_unstable();
        } else {
            clusters.divide(node, shape.span(height - 1), iterations);
        }
    });
}

/// Scratch for dividing one node after another. Clusters of a node are numbered from 0.
struct Clusters<'a> {
    points: &'a Points,
    /// Most clusters of a node.
    most: usize,
    /// Of the clusters of the node at hand.
    centres: Vec<Vec<f64>>,
    /// By token and cluster, `most` per token: half of what the squared distance to cluster 0
    /// exceeds the squared distance to that cluster by. Differences are linear in the point, which
    /// saves a pass per cluster, and are exactly 0 where centres coincide.
    lead: Vec<f64>,
    /// By token: its nearest cluster.
    nearest: Vec<usize>,
    /// By token: a sort key.
    key: Vec<f64>,
}

impl<'a> Clusters<'a> {
    fn new(points: &'a Points, tokens: usize, most: usize) -> Self {
        Self {
            points,
            most,
            centres: Vec::new(),
            lead: vec![0.0; tokens * most],
            nearest: vec![0; tokens],
            key: vec![0.0; tokens],
        }
    }

    /// Orders the tokens of a node so that consecutive runs of `span` are its children.
    fn divide(&mut self, node: &mut [usize], span: usize, iterations: usize) {
        self.seed(node, node.len().div_ceil(span));
        self.assign(node);
        for _ in 0..iterations {
            self.move_centres(node);
            if !self.assign(node) {
                break;
            }
        }
        self.fill_children(node, span);
    }

    /// Farthest-point seeds (Gonzalez 1985): the token farthest from the centroid, then each time
    /// the token farthest from the seeds so far.
    fn seed(&mut self, node: &[usize], count: usize) {
        let points = self.points;
        let mut seed = points.farthest(node, &points.centroid(node));
        self.centres = vec![points.row(seed).to_vec()];
        for token in node {
            self.key[*token] = f64::INFINITY;
        }
        for _ in 1..count {
            seed = greatest(node, |token| {
                let distance = squared_distance(points.row(token), points.row(seed));
                self.key[token] = self.key[token].min(distance);
                self.key[token]
            });
            self.centres.push(points.row(seed).to_vec());
        }
    }

    /// Assigns each token to its nearest centre, the first among equals. Returns whether any token
    /// changed.
    fn assign(&mut self, node: &[usize]) -> bool {
        let base = &self.centres[0];
        // Each centre less that of cluster 0, and where halfway between the two is along that: half
        // the difference of squared norms, exactly 0 where the centres coincide.
        let halves = self.centres.iter().map(|centre| {
            let normal: Vec<f64> = centre.iter().zip(base).map(|(a, b)| a - b).collect();
            (
                normal,
                sum_of_terms(centre, base, |a, b| 0.5 * (a + b) * (a - b)),
            )
        });
        let halves: Vec<(Vec<f64>, f64)> = halves.collect();
        let mut changed = false;
        for token in node {
            let row = self.points.row(*token);
            let lead = &mut self.lead[token * self.most..(token + 1) * self.most];
            let mut best = 0;
            for (cluster, (normal, offset)) in halves.iter().enumerate().skip(1) {
                lead[cluster] = dot(row, normal) - offset;
                if lead[cluster] > lead[best] {
                    best = cluster;
                }
            }
            changed |= self.nearest[*token] != best;
            self.nearest[*token] = best;
        }
        changed
    }

    /// Tokens of each cluster.
    fn sizes(&self, node: &[usize]) -> Vec<usize> {
        let mut sizes = vec![0; self.centres.len()];
        for token in node {
            sizes[self.nearest[*token]] += 1;
        }
        sizes
    }

    /// Moves each centre to the mean of its tokens (Lloyd 1982). One without tokens stays.
    fn move_centres(&mut self, node: &[usize]) {
        let mut sums = vec![vec![0.0; self.points.dim()]; self.centres.len()];
        for token in node {
            add(&mut sums[self.nearest[*token]], self.points.row(*token));
        }
        let sizes = self.sizes(node);
        for ((centre, sum), size) in self.centres.iter_mut().zip(sums).zip(sizes) {
            if size > 0 {
                *centre = sum.iter().map(|sum| sum / size as f64).collect();
            }
        }
    }

    /// Fills one child after the other, greatest cluster first, since the last child may be smaller
    /// than the others. A child takes the `span` tokens that would lose most by going to the best
    /// cluster among those left.
    fn fill_children(&mut self, node: &mut [usize], span: usize) {
        let sizes = self.sizes(node);
        let mut clusters: Vec<usize> = (0..sizes.len()).collect();
        clusters.sort_by_key(|cluster| (Reverse(sizes[*cluster]), *cluster));
        for (placed, cluster) in clusters[..clusters.len() - 1].iter().enumerate() {
            let unplaced = &mut node[placed * span..];
            for token in unplaced.iter() {
                let lead = &self.lead[token * self.most..(token + 1) * self.most];
                let others = clusters[placed + 1..].iter().map(|other| lead[*other]);
                self.key[*token] = others.fold(f64::NEG_INFINITY, f64::max) - lead[*cluster];
            }
            let key = &self.key;
            unplaced.sort_unstable_by(|a, b| key[*a].total_cmp(&key[*b]).then_with(|| a.cmp(b)));
        }
    }
}
