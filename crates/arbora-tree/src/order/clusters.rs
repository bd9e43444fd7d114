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
    /// Clusters of the node at hand.
    count: usize,
    /// By cluster, `dim` per cluster.
    centres: Vec<f64>,
    /// By cluster, `dim` per cluster: its centre less that of cluster 0.
    normals: Vec<f64>,
    /// By cluster: where halfway between the two centres is along that normal.
    offsets: Vec<f64>,
    /// By cluster: its number of tokens.
    sizes: Vec<usize>,
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
            count: 0,
            centres: vec![0.0; most * points.dim()],
            normals: vec![0.0; most * points.dim()],
            offsets: vec![0.0; most],
            sizes: vec![0; most],
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

    fn centre(&self, cluster: usize) -> &[f64] {
        let dim = self.points.dim();
        &self.centres[cluster * dim..(cluster + 1) * dim]
    }

    fn centre_mut(&mut self, cluster: usize) -> &mut [f64] {
        let dim = self.points.dim();
        &mut self.centres[cluster * dim..(cluster + 1) * dim]
    }

    /// Farthest-point seeds (Gonzalez 1985): the token farthest from the centroid, then each time
    /// the token farthest from the seeds so far.
    fn seed(&mut self, node: &[usize], count: usize) {
        let points = self.points;
        self.count = count;
        let mut seed = points.farthest(node, &points.centroid(node));
        self.centre_mut(0).copy_from_slice(points.row(seed));
        for token in node {
            self.key[*token] = f64::INFINITY;
        }
        for cluster in 1..count {
            seed = greatest(node, |token| {
                let distance = squared_distance(points.row(token), points.row(seed));
                self.key[token] = self.key[token].min(distance);
                self.key[token]
            });
            self.centre_mut(cluster).copy_from_slice(points.row(seed));
        }
    }

    /// Assigns each token to its nearest centre, the first among equals. Returns whether any token
    /// changed.
    fn assign(&mut self, node: &[usize]) -> bool {
        let dim = self.points.dim();
        for cluster in 1..self.count {
            let (base, centre) = (self.centre(0), self.centre(cluster));
            // Half the difference of squared norms, exactly 0 where the centres coincide.
            let offset = sum_of_terms(centre, base, |a, b| 0.5 * (a + b) * (a - b));
            self.offsets[cluster] = offset;
            for axis in 0..dim {
                self.normals[cluster * dim + axis] =
                    self.centres[cluster * dim + axis] - self.centres[axis];
            }
        }
        let mut changed = false;
        for token in node {
            let row = self.points.row(*token);
            let lead = &mut self.lead[token * self.most..(token + 1) * self.most];
            let mut best = 0;
            for cluster in 1..self.count {
                let normal = &self.normals[cluster * dim..(cluster + 1) * dim];
                lead[cluster] = dot(row, normal) - self.offsets[cluster];
                if lead[cluster] > lead[best] {
                    best = cluster;
                }
            }
            changed |= self.nearest[*token] != best;
            self.nearest[*token] = best;
        }
        changed
    }

    fn count_sizes(&mut self, node: &[usize]) {
        self.sizes.fill(0);
        for token in node {
            self.sizes[self.nearest[*token]] += 1;
        }
    }

    /// Moves each centre to the mean of its tokens (Lloyd 1982). One without tokens stays.
    fn move_centres(&mut self, node: &[usize]) {
        self.count_sizes(node);
        for cluster in 0..self.count {
            if self.sizes[cluster] > 0 {
                self.centre_mut(cluster).fill(0.0);
            }
        }
        let points = self.points;
        for token in node {
            let cluster = self.nearest[*token];
            add(self.centre_mut(cluster), points.row(*token));
        }
        for cluster in 0..self.count {
            let size = self.sizes[cluster];
            if size > 0 {
                let centre = self.centre_mut(cluster);
                centre.iter_mut().for_each(|sum| *sum /= size as f64);
            }
        }
    }

    /// Fills one child after the other, greatest cluster first, since the last child may be smaller
    /// than the others. A child takes the `span` tokens that would lose most by going to the best
    /// cluster among those left.
    fn fill_children(&mut self, node: &mut [usize], span: usize) {
        self.count_sizes(node);
        let mut clusters: Vec<usize> = (0..self.count).collect();
        clusters.sort_by_key(|cluster| (Reverse(self.sizes[*cluster]), *cluster));
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
