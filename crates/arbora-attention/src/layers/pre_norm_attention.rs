//! The published pre-norm attention, which tree and dense layers share.

use crate::flops;
use crate::functions::check::{expect, expect_some};
use crate::functions::dense_attention;
use crate::ops::DenseAttentionOptions;
use arbora_tree::ConfigError;
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Tensor};
use serde::{Deserialize, Serialize};

/// What is added to the attention's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryResidual {
    /// The normalised query: published dense attention.
    #[default]
    Normalized,
    /// The normalised query and the query itself: published Tree Cross Attention.
    NormalizedAndRaw,
}

/// Configuration of [`PreNormAttention`].
#[derive(Config, Debug)]
pub struct PreNormAttentionConfig {
    /// Width of queries and tokens.
    pub d_model: usize,
    /// Number of heads; must divide `d_model`.
    pub n_heads: usize,
    /// What is added to the attention's output.
    #[config(default = "QueryResidual::Normalized")]
    pub residual: QueryResidual,
}

/// Multi-head attention that normalises its queries and nothing else.
///
/// `z = W_o · attention(W_q · LN(q), W_k · x, W_v · x) + LN(q) [+ q]`
///
/// Keys and values come from raw tokens without bias, and the residual is around the *normalised*
/// query: both differ from the usual pre-norm block, and are how Tree Cross Attention was published
/// (arXiv 2309.17388).
#[derive(Module, Debug)]
pub struct PreNormAttention {
    /// Normalises queries.
    pub norm: LayerNorm,
    /// `W_q`, `[d_model, d_model]`.
    pub query: Linear,
    /// `W_k`, `[d_model, d_model]`.
    pub key: Linear,
    /// `W_v`, `[d_model, d_model]`.
    pub value: Linear,
    /// `W_o`, `[d_model, d_model]`, with bias.
    pub output: Linear,
    /// Number of heads.
    pub n_heads: usize,
    /// Width of queries and tokens.
    pub d_model: usize,
    /// What is added to the attention's output.
    #[module(skip)]
    pub residual: QueryResidual,
}

impl PreNormAttentionConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// If `d_model` is 0, or `n_heads` does not divide it.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([("d_model", self.d_model)])?;
        ConfigError::unless_divisor("n_heads", self.n_heads, self.d_model)
    }

    /// Initialises the layer on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> PreNormAttention {
        ConfigError::expect_ok("pre_norm_attention", self.check());
        let linear = |bias| LinearConfig::new(self.d_model, self.d_model).with_bias(bias);
        PreNormAttention {
            norm: LayerNormConfig::new(self.d_model).init(device),
            query: linear(false).init(device),
            key: linear(false).init(device),
            value: linear(false).init(device),
            output: linear(true).init(device),
            n_heads: self.n_heads,
            d_model: self.d_model,
            residual: self.residual,
        }
    }
}

/// Queries that a layer has normalised and projected, for any number of searches and attentions.
#[derive(Clone, Debug)]
pub struct ProjectedQueries {
    raw: Tensor<3>,
    normalized: Tensor<3>,
    /// `W_q · LN(q)`, `[batch, queries, heads, head_dim]`
    pub(super) query: Tensor<4>,
}

impl ProjectedQueries {
    /// `copies` of each query side by side, `[batch, queries · copies, …]`: for several samples of a
    /// route.
    pub fn repeat(self, copies: usize) -> Self {
        if copies == 1 {
            return self;
        }
        let [batch, count, heads, head_dim] = self.query.dims();
        let repeat = |rows: Tensor<3>| {
            let rows = rows.unsqueeze_dim::<4>(2).repeat_dim(2, copies);
            rows.flatten::<3>(1, 2)
        };
        let query = repeat(self.query.reshape([batch, count, heads * head_dim]));
        Self {
            raw: repeat(self.raw),
            normalized: repeat(self.normalized),
            query: query.reshape([batch, count * copies, heads, head_dim]),
        }
    }
}

impl PreNormAttention {
    /// Attends from queries to tokens.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - tokens: `[batch, tokens, d_model]`
    /// - mask: `[batch, tokens]`, `true` = masked out; a query without any token gets a zero
    ///   attention output
    /// - returns `[batch, queries, d_model]`
    ///
    /// # Panics
    /// If queries or tokens are not `d_model` wide.
    #[track_caller]
    pub fn attend(
        &self,
        queries: Tensor<3>,
        tokens: Tensor<3>,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let (key, value) = self.project_context(tokens);
        self.attend_projected(self.project_queries(queries), key, value, 0, mask)
    }

    /// [`attend`](Self::attend) to the rows from `first_key` on of keys and values `[batch, rows,
    /// heads, head_dim]`.
    #[track_caller]
    pub(super) fn attend_projected(
        &self,
        queries: ProjectedQueries,
        key: Tensor<4>,
        value: Tensor<4>,
        first_key: usize,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let options = DenseAttentionOptions {
            first_key,
            scale: None,
        };
        let context = dense_attention(queries.query.clone(), key, value, mask, options);
        self.project_output(context, queries)
    }

    /// Normalises and projects queries `[batch, queries, d_model]`.
    ///
    /// # Panics
    /// If the queries are not `d_model` wide.
    #[track_caller]
    pub fn project_queries(&self, queries: Tensor<3>) -> ProjectedQueries {
        self.check_rows("queries", &queries);
        let normalized = self.norm.forward(queries.clone());
        let query = self.by_head(self.query.forward(normalized.clone()));
        flops::record(|total| total.query += rows(&queries));
        ProjectedQueries {
            raw: queries,
            normalized,
            query,
        }
    }

    /// Keys and values, `[batch, tokens, heads, head_dim]`.
    #[track_caller]
    pub(super) fn project_context(&self, tokens: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        self.check_rows("tokens", &tokens);
        flops::record(|total| {
            total.key += rows(&tokens);
            total.value += rows(&tokens);
        });
        let key = self.by_head(self.key.forward(tokens.clone()));
        (key, self.by_head(self.value.forward(tokens)))
    }

    pub(super) fn project_output(
        &self,
        context: Tensor<4>,
        queries: ProjectedQueries,
    ) -> Tensor<3> {
        let raw = queries.raw;
        flops::record(|total| total.output += rows(&raw));
        let output = self.output.forward(context.reshape(raw.dims())) + queries.normalized;
        match self.residual {
            QueryResidual::Normalized => output,
            QueryResidual::NormalizedAndRaw => output + raw,
        }
    }

    /// `[batch, rows, d_model]` -> `[batch, rows, heads, head_dim]`
    fn by_head(&self, projected: Tensor<3>) -> Tensor<4> {
        let [batch, count, _] = projected.dims();
        projected.reshape([batch, count, self.n_heads, self.d_model / self.n_heads])
    }

    #[track_caller]
    fn check_rows(&self, name: &str, tensor: &Tensor<3>) {
        let [batch, _, width] = tensor.dims();
        expect_some(&format!("pre_norm_attention: axis 0 of {name}"), batch);
        expect(
            &format!("pre_norm_attention: axis 2 of {name}"),
            width,
            self.d_model,
        );
    }
}

fn rows(tensor: &Tensor<3>) -> usize {
    let [batch, count, _] = tensor.dims();
    batch * count
}
