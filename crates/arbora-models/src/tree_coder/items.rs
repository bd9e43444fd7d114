//! Routed items: sequences, or chunks of sequences, sorted by the node that they are at.

use super::TreeCoderConfig;
use super::config::RouteOn;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// The hidden states of all items of a batch, with the items of a node side by side.
#[derive(Clone)]
pub(super) struct Items {
    /// `[items, tokens of an item, d_model]`, in the order of `order`
    pub rows: Tensor<3>,
    /// `[items, tokens of an item]`, 1 = padding, in the order of `order`. Numbers, since backends store booleans in
    /// several ways that they neither join nor always select.
    padding: Option<Tensor<2, Int>>,
    /// Which item each row is: sequence-major, so item `i` is chunk `i % chunks` of sequence `i / chunks`.
    pub order: Vec<usize>,
    /// Which node of its depth each row is at, not decreasing.
    pub nodes: Vec<usize>,
    /// Items of a sequence.
    pub chunks: usize,
    /// Tokens of a sequence; the last chunk may hold fewer than the others.
    tokens: usize,
}

/// The rows of one node.
pub(super) struct Group {
    pub node: usize,
    pub start: usize,
    pub count: usize,
}

impl Items {
    /// All items of embedded sequences, at the root.
    ///
    /// - hidden: `[batch, tokens, d_model]`
    /// - padding: `[batch, tokens]`, `true` = masked out
    pub fn new(hidden: Tensor<3>, padding: Option<Tensor<2, Bool>>, route_on: RouteOn) -> Self {
        let [batch, tokens, width] = hidden.dims();
        let device = hidden.device();
        let chunk = match route_on {
            RouteOn::PreviousChunk { tokens: chunk } => chunk.min(tokens),
            _ => tokens,
        };
        let chunks = tokens.div_ceil(chunk);
        let missing = chunks * chunk - tokens;
        let mut hidden = hidden;
        let mut padding = padding.map(|padding| padding.int());
        if missing > 0 {
            let none = Tensor::zeros([batch, missing, width], &device);
            hidden = Tensor::cat(vec![hidden, none], 1);
            let given = padding.unwrap_or_else(|| Tensor::zeros([batch, tokens], &device));
            let none = Tensor::ones([batch, missing], &device);
            padding = Some(Tensor::cat(vec![given, none], 1));
        }
        Self {
            rows: hidden.reshape([batch * chunks, chunk, width]),
            padding: padding.map(|padding| padding.reshape([batch * chunks, chunk])),
            order: (0..batch * chunks).collect(),
            nodes: vec![0; batch * chunks],
            chunks,
            tokens,
        }
    }

    /// The rows of each node that has some, by node.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (row, &node) in self.nodes.iter().enumerate() {
            match groups.last_mut() {
                Some(group) if group.node == node => group.count += 1,
                _ => groups.push(Group {
                    node,
                    start: row,
                    count: 1,
                }),
            }
        }
        groups
    }

    /// Runs a node on a group of rows: `node` gets them as sequences `[sequences, tokens, d_model]` with their
    /// padding. Chunks of one sequence that are at the same node are one sequence there.
    pub fn run<R>(
        &self,
        group: &Group,
        device: &Device,
        node: impl FnOnce(Tensor<3>, Option<Tensor<2, Bool>>) -> (Tensor<3>, R),
    ) -> (Tensor<3>, R) {
        let rows = self
            .rows
            .clone()
            .narrow(0, group.start, group.count)
            .to_device(device);
        let padding = self.padding.clone().map(|padding| {
            let padding = padding.narrow(0, group.start, group.count);
            padding.to_device(device)
        });
        if self.chunks == 1 {
            return node(rows, padding.map(mask));
        }
        let [_, chunk, width] = rows.dims();
        let places = Places::new(
            &self.order[group.start..group.start + group.count],
            self.chunks,
        );
        let Places {
            sequences,
            longest,
            of_row,
        } = places;
        if sequences * longest == group.count {
            let rows = rows.reshape([sequences, longest * chunk, width]);
            let padding = padding.map(|padding| padding.reshape([sequences, longest * chunk]));
            let (rows, report) = node(rows, padding.map(mask));
            return (rows.reshape([group.count, chunk, width]), report);
        }
        // One more row, of padding, stands where a sequence has fewer chunks here than another.
        let mut from = vec![group.count as i64; sequences * longest];
        for (row, &place) in of_row.iter().enumerate() {
            from[place] = row as i64;
        }
        let from = indices(from, device);
        let of_row = indices(of_row.iter().map(|&place| place as i64).collect(), device);
        let padding = padding.unwrap_or_else(|| Tensor::zeros([group.count, chunk], device));
        let all = Tensor::ones([1, chunk], device);
        let padding = Tensor::cat(vec![padding, all], 0)
            .select(0, from.clone())
            .reshape([sequences, longest * chunk]);
        let none = Tensor::zeros([1, chunk, width], device);
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

    /// What the selectors read, `[items, d_model]`.
    pub fn pooled(&self, route_on: RouteOn) -> Tensor<2> {
        let [items, tokens, width] = self.rows.dims();
        let device = self.rows.device();
        let mean = |rows: Tensor<3>, padding: Option<Tensor<2, Int>>| match padding {
            None => rows.mean_dim(1).squeeze_dim::<2>(1),
            Some(padding) => {
                let [items, tokens, _] = rows.dims();
                let kept = (padding.float() - 1.0).neg().reshape([items, tokens, 1]);
                let sum = (rows * kept.clone()).sum_dim(1);
                (sum / kept.sum_dim(1).clamp_min(1.0)).squeeze_dim::<2>(1)
            }
        };
        match route_on {
            RouteOn::FirstN { tokens: first } => {
                let first = first.min(tokens);
                let padding = self.padding.clone();
                mean(
                    self.rows.clone().narrow(1, 0, first),
                    padding.map(|padding| padding.narrow(1, 0, first)),
                )
            }
            RouteOn::MeanAll => mean(self.rows.clone(), self.padding.clone()),
            RouteOn::LastToken => {
                let Some(padding) = &self.padding else {
                    let last = self.rows.clone().narrow(1, tokens - 1, 1);
                    return last.squeeze_dim(1);
                };
                // The last place that is kept: the one with the largest position.
                let positions = Tensor::<1, Int>::arange(0..tokens as i64, &device);
                let kept = (padding.clone() - 1).neg();
                let last = (kept * positions.reshape([1, tokens]))
                    .max_dim(1)
                    .reshape([items, 1, 1])
                    .expand([items, 1, width]);
                self.rows.clone().gather(1, last).squeeze_dim(1)
            }
            RouteOn::PreviousChunk { .. } => {
                // Only whole chunks come before another, so there is no padding in them but the caller's.
                let means = mean(self.rows.clone(), self.padding.clone());
                let zeros = Tensor::zeros([1, width], &device);
                let row_of = self.row_of_item();
                let previous = self
                    .order
                    .iter()
                    .map(|item| match item % self.chunks {
                        0 => items as i64,
                        _ => row_of[item - 1],
                    })
                    .collect();
                Tensor::cat(vec![means, zeros], 0).select(0, indices(previous, &device))
            }
        }
    }

    /// Sends every row to a node of the next depth, and sorts rows by node and item.
    ///
    /// - nodes: per row in the present order
    /// - returns where the row now at each place was before
    pub fn send(&mut self, nodes: &[usize]) -> Vec<usize> {
        let mut moved: Vec<usize> = (0..nodes.len()).collect();
        moved.sort_unstable_by_key(|&row| (nodes[row], self.order[row]));
        self.take(&moved);
        self.nodes = moved.iter().map(|&row| nodes[row]).collect();
        moved
    }

    /// The hidden states as sequences in the order of the batch, `[batch, tokens, ..]`, of rows `[items, tokens of
    /// an item, ..]` in the present order.
    pub fn sequences(&self, rows: Tensor<3>) -> Tensor<3> {
        let [items, chunk, width] = rows.dims();
        let device = rows.device();
        let rows = match self.order.is_sorted() {
            true => rows,
            false => rows.select(0, indices(self.row_of_item(), &device)),
        };
        rows.reshape([items / self.chunks, self.chunks * chunk, width])
            .narrow(1, 0, self.tokens)
    }

    /// Numbers of rows in the present order, as numbers of items, `[items]`.
    pub fn by_item(&self, rows: Tensor<1>) -> Tensor<1> {
        if self.order.is_sorted() {
            return rows;
        }
        let device = rows.device();
        rows.select(0, indices(self.row_of_item(), &device))
    }

    fn row_of_item(&self) -> Vec<i64> {
        let mut row_of = vec![0; self.order.len()];
        for (row, &item) in self.order.iter().enumerate() {
            row_of[item] = row as i64;
        }
        row_of
    }

    fn take(&mut self, moved: &[usize]) {
        if moved.is_sorted() {
            return;
        }
        let device = self.rows.device();
        let from = indices(moved.iter().map(|&row| row as i64).collect(), &device);
        self.rows = self.rows.clone().select(0, from.clone());
        self.padding = self.padding.take().map(|padding| padding.select(0, from));
        self.order = moved.iter().map(|&row| self.order[row]).collect();
    }
}

/// Where the chunks of a node lie when each sequence has as many places as the one with the most.
struct Places {
    sequences: usize,
    longest: usize,
    of_row: Vec<usize>,
}

impl Places {
    /// - order: items of the node, increasing
    fn new(order: &[usize], chunks: usize) -> Self {
        let mut lengths: Vec<usize> = Vec::new();
        let mut places = Vec::with_capacity(order.len());
        let mut last = None;
        for item in order {
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

pub(super) fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// `true` where the number is not 0.
fn mask(padding: Tensor<2, Int>) -> Tensor<2, Bool> {
    padding.greater_elem(0)
}

impl TreeCoderConfig {
    /// Routed items of a sequence of `tokens` tokens.
    pub fn items(&self, tokens: usize) -> usize {
        match self.route_on {
            RouteOn::PreviousChunk { tokens: chunk } => tokens.div_ceil(chunk),
            _ => 1,
        }
    }
}
