//! How many parameters a tree has, and the linear transformers that it is compared with.

use super::config::{LeafHead, TreeCoderConfig};
use crate::block::TransformerBlockConfig;
use arbora_attention::{AttentionKindConfig, RouterConfig, TreeScope, TreeSharing};

/// How many numbers a model learns.
///
/// What is saved beside them is not counted: biases of balance, and the directions of a Performer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCounts {
    /// All of them.
    pub total: usize,
    /// Those that one sequence meets: the embeddings, the nodes and the selectors of one path, and one head.
    pub active: usize,
    /// Those of embeddings and positions, which are in both of the others.
    pub embedding: usize,
}

impl TreeCoderConfig {
    /// How many parameters the model has, for settings that [`check`](Self::check) takes.
    pub fn parameters(&self) -> ParameterCounts {
        let tree = self.tree();
        let embedding = (self.vocabulary + self.context) * self.d_model;
        let head = self.d_model + linear(self.d_model, self.classes());
        let heads = match self.head {
            LeafHead::Shared => 1,
            LeafHead::PerLeaf => tree.leaves(),
        };
        let mut counts = ParameterCounts {
            total: embedding + heads * head,
            active: embedding + head,
            embedding,
        };
        for depth in 0..=self.height {
            let blocks = 0..self.blocks_at(depth);
            let mut node: usize = blocks
                .map(|place| block(&self.block(depth, place, 0)))
                .sum();
            if depth < self.height {
                node += self.selector_parameters();
            }
            counts.total += tree.width(depth) * node;
            counts.active += node;
        }
        counts
    }

    /// Of one selector.
    fn selector_parameters(&self) -> usize {
        let (d_model, k) = (self.d_model, self.branching);
        match self.selector.hidden {
            None => d_model + linear(d_model, k),
            Some(hidden) => d_model + linear(d_model, hidden) + linear(hidden, k),
        }
    }

    /// The plain transformer of the active path, which the paper calls linear: one node with the blocks that a sequence
    /// passes from the root to a leaf, each of its own width. It has the active parameters of the tree but for those of the selectors, and is
    /// asked for the same tokens.
    #[must_use]
    pub fn linear_active(&self) -> Self {
        let widths = (0..=self.height).flat_map(|depth| {
            (0..self.blocks_at(depth)).map(move |place| self.d_ff_of(depth, place))
        });
        Self {
            height: 0,
            blocks: vec![self.active_blocks()],
            d_ff: shortest(widths.collect()),
            head: LeafHead::Shared,
            ..self.clone()
        }
    }

    /// The linear transformer with the depth of the active path and as many parameters as the whole tree: `d_model`
    /// grows by multiples of the heads, and `d_ff` with it, until the total is closest; then `d_ff` makes up what is
    /// missing.
    #[must_use]
    pub fn linear_total(&self) -> Self {
        let target = self.parameters().total;
        let narrow = self.linear_active();
        let of_width = |d_model: usize| {
            let widths = (0..narrow.blocks[0]).map(|place| {
                let exact = (narrow.d_ff_of(0, place) * d_model) as f64 / self.d_model as f64;
                (exact.round() as usize).max(1)
            });
            Self {
                d_model,
                d_ff: shortest(widths.collect()),
                ..narrow.clone()
            }
        };
        let missing = |config: &Self| target as i64 - config.parameters().total as i64;
        let mut best = of_width(self.d_model);
        loop {
            let wider = of_width(best.d_model + self.n_heads);
            if missing(&wider).abs() >= missing(&best).abs() {
                break;
            }
            best = wider;
        }
        // Where MLPs are too narrow to give enough back, the model before lacks something instead.
        let before = of_width(best.d_model.max(self.d_model + self.n_heads) - self.n_heads);
        let [closest, before] = [best, before].map(|config| config.filled(target));
        if missing(&closest).abs() <= missing(&before).abs() {
            closest
        } else {
            before
        }
    }

    /// The same with MLPs that bring the total as close to a number of parameters as they can, all widened or narrowed
    /// by as much where there is room.
    fn filled(self, target: usize) -> Self {
        let unit = 2 * self.d_model + 1;
        let missing = target as f64 - self.parameters().total as f64;
        let mut units = (missing / unit as f64).round() as i64;
        let blocks = 0..self.blocks[0];
        let mut widths: Vec<usize> = blocks.map(|place| self.d_ff_of(0, place)).collect();
        while units != 0 {
            let open: Vec<usize> = (0..widths.len())
                .filter(|place| units > 0 || widths[*place] > 1)
                .collect();
            if open.is_empty() {
                break;
            }
            let (each, more) = (units / open.len() as i64, units % open.len() as i64);
            for (at, place) in open.into_iter().enumerate() {
                let one_more = i64::from((at as i64) < more.abs()) * units.signum();
                let old = widths[place] as i64;
                widths[place] = (old + each + one_more).max(1) as usize;
            }
            let given: i64 = widths.iter().map(|width| *width as i64).sum();
            let had: usize = (0..self.blocks[0])
                .map(|place| self.d_ff_of(0, place))
                .sum();
            units = (missing / unit as f64).round() as i64 - (given - had as i64);
        }
        Self {
            d_ff: shortest(widths),
            ..self
        }
    }
}

/// One number where all are the same.
fn shortest(widths: Vec<usize>) -> Vec<usize> {
    if widths.iter().all(|width| *width == widths[0]) {
        vec![widths[0]]
    } else {
        widths
    }
}

fn linear(inputs: usize, outputs: usize) -> usize {
    inputs * outputs + outputs
}

fn block(config: &TransformerBlockConfig) -> usize {
    let (d_model, heads, d_ff) = (config.d_model, config.n_heads, config.d_ff);
    let head_dim = d_model / heads;
    let kv_heads = config.n_kv_heads.unwrap_or(heads);
    let projections = 2 * linear(d_model, d_model) + 2 * linear(d_model, kv_heads * head_dim);
    let feed_forward = linear(d_model, d_ff) + linear(d_ff, d_model);
    let own = match &config.attention {
        AttentionKindConfig::Dense
        | AttentionKindConfig::BigBird(_)
        | AttentionKindConfig::Performer(_) => 0,
        AttentionKindConfig::Linformer(linformer) => {
            let mixtures = if linformer.per_head { kv_heads } else { 1 };
            let kinds = if linformer.share_key_value { 1 } else { 2 };
            kinds * mixtures * linformer.max_tokens * linformer.rank
        }
        AttentionKindConfig::TreeFine(fine) => router(&fine.router, heads, kv_heads, head_dim),
        AttentionKindConfig::TreeCoarse(coarse) => {
            let rows = if coarse.per_head_alpha { heads } else { 1 };
            let alpha = rows * (coarse.router.branching.len() + 1);
            alpha + router(&coarse.router, heads, kv_heads, head_dim)
        }
    };
    2 * d_model + projections + feed_forward + own
}

/// A binary node has one linear function, and a wider one has one per child.
fn router(config: &RouterConfig, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    let mut width = 1;
    let mut functions = 0;
    for factor in &config.branching {
        functions += width * if *factor == 2 { 1 } else { *factor };
        width *= factor;
    }
    let tree = |dim: usize| functions * (dim + 1);
    let (query, key) = match config.scope {
        TreeScope::PerHead => (kv_heads * tree(head_dim), kv_heads * tree(head_dim)),
        TreeScope::PerLayer => (tree(heads * head_dim), tree(kv_heads * head_dim)),
    };
    match config.sharing {
        TreeSharing::Shared => query,
        TreeSharing::Separate => query + key,
    }
}
