//! How far and how a search looks for its nodes once a model has been trained.

use super::{TreeCrossAttention, TreeIndex};
use crate::functions::{Route, SeveralPaths, tree_search};
use crate::ops::TreeSearchOptions;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

/// How a search looks for its paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SearchStrategy {
    /// One path, by the most probable child at each node: the published search.
    #[default]
    Greedy,
    /// Paths drawn from the policy, independently: two may be the same.
    Samples {
        /// How many, at least 1.
        count: usize,
    },
    /// The paths that are left after keeping, at each height, the most probable partial paths. Of
    /// equally probable ones the one further left is kept.
    Beam {
        /// How many, at least 1.
        width: usize,
    },
}

/// Settings of [`TreeCrossAttention::search_options`]. A setting that is left out of a file has its
/// default: greedy, at temperature 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct SearchOptions {
    /// How paths are looked for.
    pub strategy: SearchStrategy,
    /// Divides the logits of the policy, and only those: above 1 evens out the choice of a path.
    /// Finite and above 0.
    pub temperature: f64,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self::new(SearchStrategy::Greedy)
    }
}

/// A setting of [`SearchOptions`] out of its range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SearchOptionsError {
    /// No sample.
    #[error("samples: count: expected at least 1, got 0")]
    Count,
    /// A beam without a path.
    #[error("beam: width: expected at least 1, got 0")]
    Width,
    /// A temperature that divides into no policy.
    #[error("temperature: expected finite and above 0, got {0}")]
    Temperature(f64),
}

impl SearchOptions {
    /// A strategy at temperature 1.
    pub fn new(strategy: SearchStrategy) -> Self {
        Self {
            strategy,
            temperature: 1.0,
        }
    }

    /// Whether all settings are in their ranges.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), SearchOptionsError> {
        let temperature = self.temperature;
        match self.strategy {
            SearchStrategy::Samples { count: 0 } => Err(SearchOptionsError::Count),
            SearchStrategy::Beam { width: 0 } => Err(SearchOptionsError::Width),
            _ if temperature.is_finite() && temperature > 0.0 => Ok(()),
            _ => Err(SearchOptionsError::Temperature(temperature)),
        }
    }
}

/// What [`TreeCrossAttention::search_options`] returns.
#[derive(Clone, Debug)]
pub struct StrategyOutput {
    /// The layer's output `z`, `[batch, queries, d_model]`.
    pub context: Tensor<3>,
    /// Index of the node visited at each height, `[batch, queries, paths, decisions + 1]`: the root
    /// (always 0) first, the node whose leaves are taken last. Samples come in the order of their
    /// uniforms, the paths of a beam with the most probable first.
    pub paths: Tensor<4, Int>,
    /// Log-probability of the decisions of each path at the given temperature, summed, `[batch,
    /// queries, paths]`. As in [`SearchOutput`](super::SearchOutput), a forced step counts 0.
    pub log_prob: Tensor<3>,
    /// Different paths, `[batch, queries]`. Where it is smaller than the axis, samples coincide, or
    /// the tree of an example has too few nodes for a beam, which then repeats its first path behind
    /// the different ones.
    pub distinct: Tensor<2, Int>,
    /// Size of the selected set, `[batch, queries]`.
    pub selected: Tensor<2, Int>,
    /// Different nodes whose keys were read, `[batch, queries]`: for a beam also the children of
    /// paths that it gave up.
    pub read: Tensor<2, Int>,
}

impl TreeCrossAttention {
    /// Searches the trees of an index along one or several paths per query and attends once to what
    /// they select together. For inference: no gradient flows through the choice of paths, nor
    /// through the log-probabilities of a beam.
    ///
    /// The selected set is the *union frontier* of the paths: the siblings of nodes on a path that
    /// are themselves on no path, and all leaves under the last nodes. It lies over every token
    /// exactly once, whatever the paths. The context is one softmax over that set per query and head,
    /// so more paths show more of the tokens at full resolution: a beam as wide as the tree has last
    /// nodes gives dense attention over the leaves.
    ///
    /// One path (greedy, one sample, a beam of width 1) is the one-pass search of
    /// [`search_with`](Self::search_with), to the last bit. Several paths are found and attended to in
    /// separate passes, with memory for `paths · (k b + P)` rows per query, where k decisions
    /// lead to P leaves.
    ///
    /// Published ghosts are honoured: a ghost that is a sibling of a node on a path is attended to
    /// once, as a zero vector.
    ///
    /// Source: the search is that of Tree Cross Attention (arXiv 2309.17388), §3.1; several paths are
    /// an extension of it.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - uniforms: `[batch, queries · count, draws]` uniform in `[0, 1)`, the samples of a query side by
    ///   side, with `draws` as for [`Route::Sampled`]; for samples alone, ignored otherwise
    /// - paths in the output: 1, `count`, or the smaller of `width` and the number of last nodes that
    ///   the shape has
    ///
    /// # Panics
    /// If a setting is out of its range (see [`SearchOptions::check`]), if samples are asked for
    /// without uniforms, or if the axes of queries, index and uniforms disagree.
    #[track_caller]
    pub fn search_options(
        &self,
        queries: Tensor<3>,
        index: &TreeIndex,
        options: &SearchOptions,
        uniforms: Option<Tensor<3>>,
    ) -> StrategyOutput {
        if let Err(error) = options.check() {
            panic!("search_options: {error}");
        }
        let [batch, count, _] = queries.dims();
        let shape = index.shape;
        let last_nodes = shape.width(shape.height().min(1));
        let (paths, route) = match options.strategy {
            SearchStrategy::Greedy => (1, Some(Route::Greedy)),
            SearchStrategy::Beam { width } => match width.min(last_nodes) {
                1 => (1, Some(Route::Greedy)),
                width => (width, None),
            },
            SearchStrategy::Samples { count: samples } => {
                let uniforms = uniforms.unwrap_or_else(|| {
                    panic!("search_options: uniforms: expected some for samples, got none")
                });
                let got = uniforms.dims();
                assert!(
                    got[..2] == [batch, count * samples] && got[2] >= shape.decisions(),
                    "search_options: uniforms [batch, queries * count, draws]: expected \
                     [{batch}, {}, at least {}], got {got:?}",
                    count * samples,
                    shape.decisions()
                );
                (samples, Some(Route::Sampled(uniforms)))
            }
        };
        index.expect(&self.attention);
        let queries = self.attention.project_queries(queries);
        let search = TreeSearchOptions {
            temperature: options.temperature,
            ghosts: self.ghosts,
            ..TreeSearchOptions::new(shape)
        };
        let found = route.map(|route| {
            let query = match paths {
                1 => queries.query.clone(),
                _ => queries.clone().repeat(paths).query,
            };
            let (key, value) = (index.key.clone(), index.value.clone());
            tree_search(query, key, value, index.lengths.clone(), route, search)
        });
        let steps = shape.decisions() + 1;
        if let (1, Some(found)) = (paths, &found) {
            return StrategyOutput {
                context: self
                    .attention
                    .project_output(found.context.clone(), queries),
                paths: found.path.clone().reshape([batch, count, 1, steps]),
                log_prob: found.log_prob.clone().reshape([batch, count, 1]),
                distinct: found.selected.ones_like(),
                selected: found.selected.clone(),
                read: found.read.clone(),
            };
        }
        let several = SeveralPaths::new(
            queries.query.clone(),
            index.key.clone(),
            index.value.clone(),
            index.lengths.clone(),
            search,
        );
        let (way, log_prob, frontier, inner) = match found {
            Some(found) => {
                let way = found.path.reshape([batch, count, paths, steps]);
                let last = way.clone().narrow(3, steps - 1, 1);
                let frontier = several.attend(last.squeeze_dim(3));
                let log_prob = found.log_prob.reshape([batch, count, paths]);
                let inner = frontier.siblings.clone();
                (way, log_prob, frontier, inner)
            }
            None => {
                let beam = several.beam(paths);
                let frontier = several.attend(beam.ends.clone());
                (several.paths(beam.ends), beam.log_prob, frontier, beam.read)
            }
        };
        StrategyOutput {
            context: self.attention.project_output(frontier.context, queries),
            paths: way,
            log_prob,
            distinct: frontier.distinct,
            selected: frontier.selected,
            read: inner + frontier.leaves,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_in_kebab_case_and_read_back() {
        for (strategy, written) in [
            (SearchStrategy::Greedy, r#""greedy""#),
            (
                SearchStrategy::Samples { count: 4 },
                r#"{"samples":{"count":4}}"#,
            ),
            (SearchStrategy::Beam { width: 8 }, r#"{"beam":{"width":8}}"#),
        ] {
            let options = SearchOptions {
                strategy,
                temperature: 0.5,
            };
            let json = serde_json::to_string(&options).unwrap();
            assert_eq!(
                json,
                format!(r#"{{"strategy":{written},"temperature":0.5}}"#)
            );
            assert_eq!(
                serde_json::from_str::<SearchOptions>(&json).unwrap(),
                options
            );
        }
    }

    #[test]
    fn a_setting_left_out_has_its_default_and_an_unknown_one_is_refused() {
        let read = serde_json::from_str::<SearchOptions>;
        assert_eq!(read("{}").unwrap(), SearchOptions::default());
        let beam = read(r#"{"strategy":{"beam":{"width":2}}}"#).unwrap();
        assert_eq!(beam, SearchOptions::new(SearchStrategy::Beam { width: 2 }));
        assert!(read(r#"{"width":2}"#).is_err());
        assert!(read(r#"{"strategy":{"beam":{"width":2,"depth":3}}}"#).is_err());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let check = |strategy, temperature| {
            let options = SearchOptions {
                strategy,
                temperature,
            };
            options.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(SearchStrategy::Beam { width: 1 }, 1e-3), Ok(()));
        assert_eq!(
            check(SearchStrategy::Samples { count: 0 }, 1.0),
            Err("samples: count: expected at least 1, got 0".into())
        );
        assert_eq!(
            check(SearchStrategy::Beam { width: 0 }, 1.0),
            Err("beam: width: expected at least 1, got 0".into())
        );
        for temperature in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            let expected = format!("temperature: expected finite and above 0, got {temperature}");
            assert_eq!(check(SearchStrategy::Greedy, temperature), Err(expected));
        }
    }
}
