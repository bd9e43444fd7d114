//! BigBird: attention between neighbouring blocks of tokens, and to blocks that are random or global.

use super::super::kind::Projected;
use crate::functions::masked_attention::dense_by_group;
use crate::functions::prefix_attention::with_zero_rows;
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use derive_setters::Setters;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Settings of BigBird ([arXiv 2007.14062](https://arxiv.org/abs/2007.14062)): tokens stand in blocks, and
/// every block attends to its neighbours, to some blocks drawn at random and to a few global ones. The
/// defaults are those of the released code, which takes the first and the last block as global where this takes
/// the first two.
///
/// Supports padding masks, in self-attention. Panics on causal masks, masks of pairs, cross-attention and sequences without
/// tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct BigBirdConfig {
    /// Tokens per block.
    pub block: usize,
    /// Blocks of the sliding window, the own block in its middle; odd.
    pub window: usize,
    /// Blocks drawn at random per query block, none of which is global or in the window.
    pub random: usize,
    /// Blocks at the beginning that attend to every block, and to which every block attends.
    pub global: usize,
    /// What the random blocks are drawn from, with `layer`.
    pub seed: u64,
    /// Which layer of a model this is: layers with different numbers draw different blocks.
    pub layer: u64,
}

impl Config for BigBirdConfig {}

impl Default for BigBirdConfig {
    fn default() -> Self {
        Self {
            block: 64,
            window: 3,
            random: 3,
            global: 2,
            seed: 0,
            layer: 0,
        }
    }
}

impl BigBirdConfig {
    /// The blocks whose keys the queries of a block see, ascending, among `blocks` blocks.
    ///
    /// The window is cut off at the ends. Random blocks are drawn among all others: which ones depends on the seed,
    /// the layer, the query block and the number of blocks.
    ///
    /// # Panics
    /// If `query_block` is not below `blocks`.
    #[track_caller]
    pub fn key_blocks(&self, query_block: usize, blocks: usize) -> Vec<usize> {
        assert!(
            query_block < blocks,
            "big_bird: query block: expected one below {blocks}, got {query_block}"
        );
        if query_block < self.global {
            return (0..blocks).collect();
        }
        let reach = self.window / 2;
        // The window, without what is global already.
        let first = query_block.saturating_sub(reach).max(self.global);
        let last = (query_block + reach).min(blocks - 1);
        let mut seen: Vec<usize> = (0..self.global).chain(first..=last).collect();
        // The blocks between the global ones and the window, then those after the window.
        let (between, others) = (first - self.global, blocks - seen.len());
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream((self.layer << 32) ^ query_block as u64);
        let drawn = distinct(self.random.min(others), others, &mut rng);
        seen.extend(drawn.into_iter().map(|at| {
            if at < between {
                self.global + at
            } else {
                last + 1 + at - between
            }
        }));
        seen.sort_unstable();
        seen
    }

    /// How many blocks of keys are read per query block that is not global, among `blocks`. Blocks that see fewer
    /// are filled up with masked ones.
    pub(crate) fn width(&self, blocks: usize) -> usize {
        (self.global + self.window + self.random).min(blocks)
    }

    pub(in super::super) fn init(&self) -> BigBird {
        BigBird {
            config: self.clone(),
        }
    }
}

/// `amount` different numbers below `count`, every set equally likely (Floyd's algorithm).
fn distinct(amount: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(amount);
    for last in count - amount..count {
        let number = rng.random_range(0..=last);
        drawn.push(if drawn.contains(&number) {
            last
        } else {
            number
        });
    }
    drawn
}

/// Block-sparse softmax attention: a window, random blocks and global blocks (arXiv 2007.14062, section 2).
///
/// Equal to dense attention with the mask that [`BigBirdConfig::key_blocks`] describes. Computed from gathered blocks
/// of keys, so time and memory are linear in the number of tokens. Lengths that are no multiple of the block
/// are filled up with masked tokens. The random blocks depend on the number of blocks, and so on how far a batch is
/// padded; without random blocks padding changes nothing.
#[derive(Module, Debug)]
pub struct BigBird {
    #[module(skip)]
    config: BigBirdConfig,
}

impl BigBird {
    /// The pattern.
    pub fn config(&self) -> &BigBirdConfig {
        &self.config
    }

    #[track_caller]
    pub(in super::super) fn attend(&self, input: Projected) -> Tensor<4> {
        let (query, key, value) = (input.query, input.key, input.value);
        let masks = input.masks;
        masks.only("big-bird", false);
        assert!(
            input.is_self,
            "self_attention: context: big-bird attends among the tokens of one sequence, got a context"
        );
        let (block, tokens) = (self.config.block, query.dims()[1]);
        let blocks = tokens.div_ceil(block);
        let global = self.config.global.min(blocks);
        let mut parts = Vec::with_capacity(2);
        if global > 0 {
            let first = query.clone().narrow(1, 0, tokens.min(global * block));
            let padding = masks.padding.clone();
            parts.push(dense_by_group(first, key.clone(), value.clone(), padding));
        }
        if global < blocks {
            parts.push(self.sparse(query, key, value, masks.padding, global));
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 1),
        }
    }

    /// Attention of the blocks from `global` on, `[batch, tokens - global · block, heads, head_dim]`.
    fn sparse(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        padding: Option<Tensor<2, Bool>>,
        global: usize,
    ) -> Tensor<4> {
        let [batch, tokens, heads, head_dim] = query.dims();
        let kv_heads = key.dims()[2];
        let block = self.config.block;
        let blocks = tokens.div_ceil(block);
        let (rows, width) = (blocks - global, self.config.width(blocks));
        let device = query.device();

        // Key blocks of every row, filled up with block 0, which `unused` masks.
        let mut seen: Vec<i64> = Vec::with_capacity(rows * width);
        let mut unused = Vec::with_capacity(rows * width);
        for row in global..blocks {
            let own = self.config.key_blocks(row, blocks);
            seen.extend(own.iter().map(|block| *block as i64));
            unused.extend((0..width).map(|at| i64::from(at >= own.len())));
            seen.resize(unused.len(), 0);
        }
        let seen = Tensor::<1, Int>::from_data(TensorData::from(seen.as_slice()), &device);

        // In integers, since bools do not keep one type of storage on all backends.
        let missing = blocks * block - tokens;
        let is_whole = missing == 0 && !unused.contains(&1);
        let hidden = (padding.is_some() || !is_whole).then(|| {
            let padding = match padding {
                Some(padding) => padding.int(),
                None => Tensor::zeros([batch, tokens], &device),
            };
            let unused = TensorData::new(unused, [1, rows * width, 1]);
            padding
                .pad([(0, 0), (0, missing)], 1)
                .reshape([batch, blocks, block])
                .select(1, seen.clone())
                .add(Tensor::<3, Int>::from_data(unused, &device))
                .reshape([batch * rows, width * block])
                .greater_elem(0)
        });

        let gather = |tokens: Tensor<4>| {
            with_zero_rows(tokens, 0, missing)
                .reshape([batch, blocks, block * kv_heads * head_dim])
                .select(1, seen.clone())
                .reshape([batch * rows, width * block, kv_heads, head_dim])
        };
        let query = with_zero_rows(query, 0, missing)
            .narrow(1, global * block, rows * block)
            .reshape([batch * rows, block, heads, head_dim]);
        dense_by_group(query, gather(key), gather(value), hidden)
            .reshape([batch, rows * block, heads, head_dim])
            .narrow(1, 0, tokens - global * block)
    }
}
