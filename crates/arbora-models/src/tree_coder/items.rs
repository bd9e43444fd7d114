//! Routed items of a batch: sequences, or chunks of sequences.

use super::TreeCoderConfig;
use super::config::RouteOn;
use super::routes::{Carried, Group, Routes, indices, select};
use burn::tensor::{Bool, Device, Int, Tensor};

/// All items of a batch, sequence-major: item `i` is chunk `i % chunks` of sequence `i / chunks`.
#[derive(Clone)]
pub(super) struct Items {
    pub routes: Routes<Hidden>,
    /// Items of a sequence.
    pub chunks: usize,
    /// Whether each item has a token that is not padding; `None`: all have.
    pub real: Option<Vec<bool>>,
    /// Tokens of a sequence; the last chunk may hold fewer than the others.
    tokens: usize,
}

/// The hidden states of the items of a group.
#[derive(Clone)]
pub(super) struct Hidden {
    /// `[items, tokens of an item, d_model]`
    pub rows: Tensor<3>,
    /// `[items, tokens of an item]`, 1 = padding. Numbers, since backends store booleans in several ways that they
    /// neither join nor always select.
    padding: Option<Tensor<2, Int>>,
}

impl Items {
    /// All items of embedded sequences, at the root.
    ///
    /// - hidden: `[batch, tokens, d_model]`
    /// - padding: `[batch, tokens]`, `true` = masked out
    pub fn new(
        hidden: Tensor<3>,
        padding: Option<Tensor<2, Bool>>,
        config: &TreeCoderConfig,
    ) -> Self {
        let [batch, tokens, width] = hidden.dims();
        let home = hidden.device();
        let chunks = config.items(tokens);
        let chunk = config.chunk().map_or(tokens, |chunk| chunk.min(tokens));
        let missing = chunks * chunk - tokens;
        let real = match &padding {
            Some(padding) if config.height > 0 => Some(real_items(padding, chunk)),
            _ => None,
        };
        let mut hidden = hidden;
        let mut padding = padding.map(|padding| padding.int());
        if missing > 0 {
            let none = Tensor::zeros([batch, missing, width], &home);
            hidden = Tensor::cat(vec![hidden, none], 1);
            let given = padding.unwrap_or_else(|| Tensor::zeros([batch, tokens], &home));
            let none = Tensor::ones([batch, missing], &home);
            padding = Some(Tensor::cat(vec![given, none], 1));
        }
        let root = Hidden {
            rows: hidden.reshape([batch * chunks, chunk, width]),
            padding: padding.map(|padding| padding.reshape([batch * chunks, chunk])),
        };
        let groups = vec![Group::at_root((0..batch * chunks).collect(), root)];
        Self {
            routes: Routes { groups, home },
            chunks,
            real,
            tokens,
        }
    }

    /// Whether an item has a token that is not padding.
    pub fn is_real(&self, item: usize) -> bool {
        self.real.as_ref().is_none_or(|real| real[item])
    }

    /// What the selector of each node reads, `[items of the node, d_model]`.
    pub fn pooled(&self, route_on: RouteOn) -> Vec<Tensor<2>> {
        let (groups, home) = (&self.routes.groups, &self.routes.home);
        let pooled = groups.iter().map(|group| group.state.pooled(route_on));
        let RouteOn::PreviousChunk { .. } = route_on else {
            return pooled.collect();
        };
        let mut means: Vec<Tensor<2>> = pooled.map(|mean| mean.to_device(home)).collect();
        let [_, width] = means[0].dims();
        means.push(Tensor::zeros([1, width], home));
        let means = Tensor::cat(means, 0);
        let row_of = self.row_of_item();
        let previous = |item: &usize| match item % self.chunks {
            // The row of zeros.
            0 => row_of.len(),
            _ => row_of[item - 1],
        };
        let groups = groups.iter();
        groups
            .map(|group| {
                let previous: Vec<usize> = group.members.iter().map(previous).collect();
                select(&means, &previous)
            })
            .collect()
    }

    /// Hidden states or logits as sequences in the order of the batch, `[batch, tokens, ..]`.
    ///
    /// - rows: of each node, `[items of the node, tokens of an item, ..]`
    pub fn sequences(&self, rows: Vec<Tensor<3>>) -> Tensor<3> {
        let rows = rows
            .into_iter()
            .map(|rows| rows.to_device(&self.routes.home));
        let rows = self.by_item(joined(rows.collect()));
        let [items, chunk, width] = rows.dims();
        rows.reshape([items / self.chunks, self.chunks * chunk, width])
            .narrow(1, 0, self.tokens)
    }

    /// What rows have, `[rows, ..]`, in the order of items.
    pub fn by_item<const D: usize>(&self, rows: Tensor<D>) -> Tensor<D> {
        if self.routes.members().is_sorted() {
            rows
        } else {
            select(&rows, &self.row_of_item())
        }
    }

    fn row_of_item(&self) -> Vec<usize> {
        let mut row_of = vec![0; self.routes.count()];
        for (row, item) in self.routes.members().enumerate() {
            row_of[item] = row;
        }
        row_of
    }
}

impl Carried for Hidden {
    fn select(&self, rows: &[usize]) -> Self {
        let from = indices(rows, &self.rows.device());
        let padding = self.padding.clone();
        Self {
            rows: self.rows.clone().select(0, from.clone()),
            padding: padding.map(|padding| padding.select(0, from)),
        }
    }
}

impl Group<Hidden> {
    /// Runs a node on the rows: it gets them as sequences `[sequences, tokens, d_model]` with their padding. Chunks of
    /// one sequence are one sequence there.
    ///
    /// - chunks: of a sequence in all
    pub fn run<R>(
        &self,
        chunks: usize,
        node: impl FnOnce(Tensor<3>, Option<Tensor<2, Bool>>) -> (Tensor<3>, R),
    ) -> (Tensor<3>, R) {
        let Hidden { rows, padding } = self.state.clone();
        if chunks == 1 {
            return node(rows, padding.map(mask));
        }
        let device = rows.device();
        let [count, chunk, width] = rows.dims();
        let of_chunks = Places::new(&self.members, chunks);
        let (sequences, longest) = (of_chunks.sequences, of_chunks.longest);
        let of_row = of_chunks.of_row;
        let joined = [sequences, longest * chunk];
        if sequences * longest == count {
            let rows = rows.reshape([sequences, longest * chunk, width]);
            let padding = padding.map(|padding| mask(padding.reshape(joined)));
            let (rows, report) = node(rows, padding);
            return (rows.reshape([count, chunk, width]), report);
        }
        // One more row, of padding, stands where a sequence has fewer chunks here than another.
        let mut from = vec![count; sequences * longest];
        for (row, &place) in of_row.iter().enumerate() {
            from[place] = row;
        }
        let from = indices(&from, &device);
        let of_row = indices(&of_row, &device);
        let padding = padding.unwrap_or_else(|| Tensor::zeros([count, chunk], &device));
        let all = Tensor::ones([1, chunk], &device);
        let padding = Tensor::cat(vec![padding, all], 0)
            .select(0, from.clone())
            .reshape(joined);
        let none = Tensor::zeros([1, chunk, width], &device);
        let rows = Tensor::cat(vec![rows, none], 0).select(0, from).reshape([
            sequences,
            longest * chunk,
            width,
        ]);
        let (rows, report) = node(rows, Some(mask(padding)));
        let rows = rows
            .reshape([sequences * longest, chunk, width])
            .select(0, of_row);
        (rows, report)
    }
}

impl Hidden {
    /// Brings it to a device.
    pub fn move_to(&mut self, device: &Device) {
        self.rows = self.rows.clone().to_device(device);
        self.padding = self.padding.take().map(|padding| padding.to_device(device));
    }

    /// What says where an item goes, or with [`RouteOn::PreviousChunk`] the item after it: `[items, d_model]`.
    fn pooled(&self, route_on: RouteOn) -> Tensor<2> {
        let [items, tokens, width] = self.rows.dims();
        let mean = |count: usize| {
            let rows = if count == tokens {
                self.rows.clone()
            } else {
                self.rows.clone().narrow(1, 0, count)
            };
            let Some(padding) = self.padding.clone() else {
                return rows.mean_dim(1).squeeze_dim::<2>(1);
            };
            let padding = padding.narrow(1, 0, count);
            let kept = (padding.float() - 1.0).neg().reshape([items, count, 1]);
            let sum = (rows * kept.clone()).sum_dim(1);
            (sum / kept.sum_dim(1).clamp_min(1.0)).squeeze_dim::<2>(1)
        };
        match (route_on, &self.padding) {
            (RouteOn::FirstN { tokens: first }, _) => mean(first.min(tokens)),
            (RouteOn::MeanAll | RouteOn::PreviousChunk { .. }, _) => mean(tokens),
            (RouteOn::LastToken, None) => {
                let last = self.rows.clone().narrow(1, tokens - 1, 1);
                last.squeeze_dim(1)
            }
            (RouteOn::LastToken, Some(padding)) => {
                // The last place that is kept: the one with the largest position.
                let positions = Tensor::<1, Int>::arange(0..tokens as i64, &self.rows.device());
                let kept = (padding.clone() - 1).neg();
                let last = (kept * positions.reshape([1, tokens]))
                    .max_dim(1)
                    .reshape([items, 1, 1])
                    .expand([items, 1, width]);
                self.rows.clone().gather(1, last).squeeze_dim(1)
            }
        }
    }
}

/// Where the chunks of a node lie when each sequence has as many places as the one with the most.
struct Places {
    sequences: usize,
    longest: usize,
    of_row: Vec<usize>,
}

impl Places {
    /// - items: of the node, increasing
    fn new(items: &[usize], chunks: usize) -> Self {
        let mut lengths: Vec<usize> = Vec::new();
        let mut places = Vec::with_capacity(items.len());
        let mut last = None;
        for item in items {
            let sequence = item / chunks;
            if last != Some(sequence) {
                lengths.push(0);
                last = Some(sequence);
            }
            let place = lengths.len() - 1;
            places.push((place, lengths[place]));
            lengths[place] += 1;
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self {
            sequences: lengths.len(),
            longest,
            of_row: places
                .into_iter()
                .map(|(sequence, place)| sequence * longest + place)
                .collect(),
        }
    }
}

/// Whether each item has a token that is not padding. It reads the mask back from the device.
fn real_items(padding: &Tensor<2, Bool>, chunk: usize) -> Vec<bool> {
    let [_, tokens] = padding.dims();
    let masked: Vec<bool> = padding.clone().into_data().iter().collect();
    masked
        .chunks(tokens)
        .flat_map(|sequence| sequence.chunks(chunk))
        .map(|item| !item.iter().all(|masked| *masked))
        .collect()
}

/// One after another along axis 0.
fn joined(mut parts: Vec<Tensor<3>>) -> Tensor<3> {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => Tensor::cat(parts, 0),
    }
}

/// `true` where the number is not 0.
fn mask(padding: Tensor<2, Int>) -> Tensor<2, Bool> {
    padding.greater_elem(0)
}

impl TreeCoderConfig {
    /// Routed items of a sequence of `tokens` tokens: one, or with [`RouteOn::PreviousChunk`] its chunks, where
    /// there is a route at all.
    pub fn items(&self, tokens: usize) -> usize {
        self.chunk().map_or(1, |chunk| tokens.div_ceil(chunk))
    }
}
