//! What trees learn from.
//!
//! The expected gradients of trees are those of a stand-in loss: the sum of every route's probability
//! times its gain, where gains are numbers from the host, by definition or by finite differences.

use super::host::{self, Host};
use super::{ZERO, input, last_leaf_tree, tree};
use arbora_attention::functions::{TreeFineInput, TreeFineOptions, tree_fine};
use arbora_testing::{assert_close, autodiff_device, device, random, values};
use arbora_tree::{RoutingTree, Surrogate};
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Gradients, Tensor, TensorData};

const LEAVES: usize = 4;
const DENSE: Surrogate = Surrogate::DenseGradient {
    temperature: 1.5,
    clip: 2.0,
    scale: None,
};

/// Gains of routes: of queries `[batch, queries, heads, leaves]`, and of keys `[batch, keys, kv_heads,
/// leaves]`.
struct Gains {
    query: Vec<f64>,
    key: Vec<f64>,
}

/// The gradients of a loss with respect to two trees, and to the rows they route.
fn gradients(loss: Tensor<1>, input: &TreeFineInput, trees: [&RoutingTree; 2]) -> Vec<Vec<f32>> {
    let gradients = loss.backward();
    let rows = |rows: &Tensor<4>, gradients: &Gradients| {
        values(rows.grad(gradients).expect("rows are routed"))
    };
    let mut all = vec![rows(&input.query, &gradients), rows(&input.key, &gradients)];
    for level in trees.into_iter().flat_map(RoutingTree::levels) {
        let weight = level.weight.grad(&gradients);
        all.push(values(weight.expect("weights get a gradient")));
        let bias = level.bias.grad(&gradients);
        all.push(values(bias.expect("biases get a gradient")));
    }
    all
}

struct Setting {
    input: TreeFineInput,
    trees: [RoutingTree; 2],
    delta: Tensor<4>,
}

impl Setting {
    fn new() -> Self {
        let device = autodiff_device();
        let mut input = input(7, 9, &device);
        input.query = input.query.require_grad();
        input.key = input.key.require_grad();
        Self {
            input,
            trees: [5, 6].map(|seed| tree(6, &[2, 2], 2, seed, &device)),
            delta: random([2, 7, 4, 5], 7, &device),
        }
    }

    /// The gradients of `tree_fine`, and the host's view of the call.
    fn run(&self, surrogate: Surrogate, causal: Option<usize>) -> (Vec<Vec<f32>>, Host) {
        let options = TreeFineOptions {
            surrogate,
            causal,
            ..ZERO
        };
        let [queries, keys] = &self.trees;
        let found = tree_fine(self.input.clone(), queries, keys, options);
        let host = Host::new(&self.input, &found, causal);
        let loss = (found.context * self.delta.clone()).sum();
        (gradients(loss, &self.input, [queries, keys]), host)
    }

    fn delta(&self) -> Vec<f64> {
        let delta = values(self.delta.clone());
        delta.into_iter().map(f64::from).collect()
    }

    /// The probabilities of all leaves.
    fn probabilities(&self, surrogate: &Surrogate) -> [Tensor<4>; 2] {
        let [queries, keys] = &self.trees;
        [
            queries.leaf_probabilities(
                self.input.query.clone(),
                self.input.query_padding.clone(),
                surrogate,
            ),
            keys.leaf_probabilities(
                self.input.key.clone(),
                self.input.key_padding.clone(),
                surrogate,
            ),
        ]
    }

    /// The gradients of the stand-in loss, and of attention within leaves on top.
    fn expected(&self, stand_in: Tensor<1>, host: &Host) -> Vec<Vec<f64>> {
        let [queries, keys] = &self.trees;
        let mut all: Vec<Vec<f64>> = gradients(stand_in, &self.input, [queries, keys])
            .into_iter()
            .map(|all| all.into_iter().map(f64::from).collect())
            .collect();
        let [query, key, _] = host.gradients(&values(self.delta.clone()));
        for (sum, more) in all.iter_mut().zip([query, key]) {
            sum.iter_mut()
                .zip(more)
                .for_each(|(sum, more)| *sum += more);
        }
        all
    }
}

fn constant(gains: &[f64], like: &Tensor<4>) -> Tensor<4> {
    let gains: Vec<f32> = gains.iter().map(|gain| *gain as f32).collect();
    let options = (&like.device().without_autodiff(), like.dtype());
    Tensor::from_data(TensorData::new(gains, like.dims()), options)
}

#[track_caller]
fn assert_same(got: &[Vec<f32>], expected: &[Vec<f64>]) {
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        host::assert_near(&format!("gradient {at}"), got, expected);
    }
}

/// The loss of attention whose mask is made of the given indicators, over queries whose leaf has keys.
fn relaxed_loss(host: &Host, delta: &[f64], query: &[f64], key: &[f64], has_keys: &[bool]) -> f64 {
    host.each_query()
        .filter(|(_, _, _, at)| has_keys[*at])
        .map(|(example, row, head, at)| {
            let kv_head = host.kv_head(head);
            let (context, _) = host.attend((example, row, head), |j| {
                let j = host.key_at(example, j, kv_head) * LEAVES;
                (0..LEAVES)
                    .map(|leaf| query[at * LEAVES + leaf] * key[j + leaf])
                    .sum()
            });
            let delta = &delta[at * host.value_dim..];
            context.iter().zip(delta).map(|(o, d)| o * d).sum::<f64>()
        })
        .sum()
}

fn indicators(leaves: &[i64]) -> Vec<f64> {
    leaves
        .iter()
        .flat_map(|own| (0..LEAVES as i64).map(move |leaf| f64::from(u8::from(*own == leaf))))
        .collect()
}

/// The derivative of a function at each coordinate.
fn differences(at: &[f64], function: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-6;
    let mut moved = at.to_vec();
    (0..at.len())
        .map(|coordinate| {
            let mut value = |by| {
                moved[coordinate] = at[coordinate] + by;
                function(&moved)
            };
            let slope = (value(STEP) - value(-STEP)) / (2.0 * STEP);
            moved[coordinate] = at[coordinate];
            slope
        })
        .collect()
}

#[test]
fn the_dense_gradient_is_the_derivative_of_attention_by_its_indicators() {
    for causal in [None, Some(2)] {
        let setting = Setting::new();
        let (got, host) = setting.run(DENSE, causal);
        let (query, key) = (indicators(&host.query_leaf), indicators(&host.key_leaf));
        let delta = setting.delta();
        let has_keys: Vec<bool> = host
            .each_query()
            .map(|(example, row, head, at)| {
                host.within((example, row, head), host.query_leaf[at]).1 > 0.0
            })
            .collect();
        let mut gains = Gains {
            query: differences(&query, |query| {
                relaxed_loss(&host, &delta, query, &key, &has_keys)
            }),
            key: differences(&key, |key| {
                relaxed_loss(&host, &delta, &query, key, &has_keys)
            }),
        };
        // A query's own leaf has derivative 0: the quotient does not change with it.
        for (at, leaf) in host.query_leaf.iter().enumerate() {
            let own = gains.query[at * LEAVES + *leaf as usize];
            assert!(own.abs() < 1e-6, "{own}");
        }
        // Padded keys belong to no leaf, and are hidden.
        for (at, leaf) in host.key_leaf.iter().enumerate() {
            if *leaf < 0 {
                gains.key[at * LEAVES..][..LEAVES].fill(0.0);
            }
        }
        let [p_query, p_key] = setting.probabilities(&DENSE);
        let stand_in = (p_query.clone() * constant(&gains.query, &p_query)).sum()
            + (p_key.clone() * constant(&gains.key, &p_key)).sum();
        assert_same(&got, &setting.expected(stand_in, &host));
    }
}

/// What each leaf would give a query.
fn query_gains(host: &Host, delta: &[f64]) -> Vec<f64> {
    host.each_query()
        .flat_map(|(example, row, head, at)| {
            let delta = &delta[at * host.value_dim..];
            (0..LEAVES as i64).map(move |leaf| {
                let (context, _) = host.within((example, row, head), leaf);
                context.iter().zip(delta).map(|(o, d)| o * d).sum()
            })
        })
        .collect()
}

/// What each key does in its own leaf, by the logarithm of its share, and would do in others, added to
/// them.
fn key_gains(host: &Host, delta: &[f64]) -> Vec<f64> {
    let mut gains = vec![0.0; host.key_leaf.len() * LEAVES];
    for (example, row, head, at) in host.each_query() {
        let leaf = host.query_leaf[at];
        let (context, total) = host.within((example, row, head), leaf);
        for key in (0..host.keys).filter(|key| host.is_visible(example, row, *key)) {
            let kv_head = host.kv_head(head);
            let weight = host.weight(example, row, key, head);
            let key_at = host.key_at(example, key, kv_head);
            let share = if host.key_leaf[key_at] == leaf {
                weight / total
            } else {
                weight / (total + weight)
            };
            let value = host.value_row(example, key, kv_head);
            gains[key_at * LEAVES + leaf as usize] += (0..host.value_dim)
                .map(|d| share * delta[at * host.value_dim + d] * (value[d] - context[d]))
                .sum::<f64>();
        }
    }
    gains
}

#[test]
fn top_margin_over_all_leaves_is_its_formula() {
    for causal in [None, Some(2)] {
        let setting = Setting::new();
        let surrogate = Surrogate::TopMargin {
            candidates: LEAVES,
            temperature: 0.7,
        };
        let (got, host) = setting.run(surrogate, causal);
        let delta = setting.delta();
        let [p_query, p_key] = setting.probabilities(&surrogate);
        let gains = key_gains(&host, &delta);
        let own = indicators(&host.key_leaf);
        let product = |left: &[f64], right: &dyn Fn(f64) -> f64| -> Vec<f64> {
            left.iter().zip(&own).map(|(l, o)| l * right(*o)).collect()
        };
        let in_own = product(&gains, &|own| own);
        let in_others = product(&gains, &|own| 1.0 - own);
        let stand_in = (p_query.clone() * constant(&query_gains(&host, &delta), &p_query)).sum()
            + (p_key.clone().log() * constant(&in_own, &p_key)).sum()
            + (p_key.clone() * constant(&in_others, &p_key)).sum();
        assert_same(&got, &setting.expected(stand_in, &host));
    }
}

#[test]
fn top_margin_over_two_leaves_compares_the_best_two() {
    let setting = Setting::new();
    let temperature = 0.7;
    let surrogate = Surrogate::TopMargin {
        candidates: 2,
        temperature,
    };
    let (got, host) = setting.run(surrogate, None);
    let delta = setting.delta();
    let [queries, keys] = &setting.trees;
    let input = &setting.input;
    let query = queries.best_leaves(input.query.clone(), input.query_padding.clone(), 2);
    let key = keys.best_leaves(input.key.clone(), input.key_padding.clone(), 2);
    let pick = |gains: &[f64], leaves: &burn::tensor::Tensor<4, burn::tensor::Int>| -> Vec<f64> {
        let leaves: Vec<i64> = leaves.clone().into_data().iter::<i64>().collect();
        leaves
            .iter()
            .enumerate()
            .map(|(at, leaf)| match *leaf {
                -1 => 0.0,
                leaf => gains[at / 2 * LEAVES + leaf as usize],
            })
            .collect()
    };
    let log_query = log_softmax(query.scores / temperature, 3);
    let log_key = log_softmax(key.scores / temperature, 3);
    let query_gains = constant(
        &pick(&query_gains(&host, &delta), &query.leaves),
        &log_query,
    );
    let key_gains = constant(&pick(&key_gains(&host, &delta), &key.leaves), &log_key);
    let at = |rows: Tensor<4>, place: usize| rows.narrow(3, place, 1);
    let stand_in = (log_query.exp() * query_gains).sum()
        + (at(log_key.clone(), 0) * at(key_gains.clone(), 0)).sum()
        + (at(log_key, 1).exp() * at(key_gains, 1)).sum();
    assert_same(&got, &setting.expected(stand_in, &host));
}

#[test]
fn one_candidate_gives_routes_no_gradient() {
    let setting = Setting::new();
    let [queries, keys] = &setting.trees;
    let found = tree_fine(setting.input.clone(), queries, keys, ZERO);
    let gradients = (found.context * setting.delta.clone()).sum().backward();
    let level = &queries.levels()[0];
    assert!(level.weight.grad(&gradients).is_none());
}

#[test]
fn a_query_in_the_only_leaf_with_keys_learns_nothing_from_the_dense_gradient() {
    let device = autodiff_device();
    let input = input(7, 9, &device);
    let queries = tree(6, &[2, 2], 2, 5, &device);
    let keys = last_leaf_tree(6, &[2, 2], 2, &device);
    let size = |surrogate| {
        let options = TreeFineOptions { surrogate, ..ZERO };
        let found = tree_fine(input.clone(), &queries, &keys, options);
        let delta = random(found.context.dims(), 7, &device);
        let gradients = (found.context * delta).sum().backward();
        let weight = &queries.levels()[1].weight;
        largest(weight.grad(&gradients).expect("it is relaxed"))
    };
    let published = size(DENSE);
    assert!(published < 1e-5, "0 up to rounding, got {published}");
    // Unlike the counterfactual, which tells the leaf with keys from those without.
    let compared = size(Surrogate::TopMargin {
        candidates: LEAVES,
        temperature: 1.0,
    });
    assert!(compared > 1e-3, "{compared}");
}

#[test]
fn top_margin_stays_bounded_where_the_mass_is_in_another_leaf() {
    // Queries along a direction whose keys have leaf 1, at dot products that the other leaf's keys never
    // reach.
    let device = autodiff_device();
    let rows = |numbers: &[f32]| {
        Tensor::<2>::from_data(
            TensorData::new(numbers.to_vec(), [numbers.len() / 2, 2]),
            &device,
        )
        .reshape([1, numbers.len() / 2, 1, 2])
    };
    let input = TreeFineInput::cross(
        rows(&[1.0, 6.0, 0.5, 7.0]),
        rows(&[2.0, -1.0, 1.0, -2.0, -1.0, 5.0, -2.0, 4.0]),
        rows(&[1.0, -1.0, 0.5, 0.5, -1.0, 1.0, 1.0, 1.0]),
    );
    let mut trees = tree(2, &[2], 1, 5, &device);
    // Right exactly when the first number is positive.
    let split = |dims: usize| TensorData::new([1.0_f32, 0.0][..dims].to_vec(), [1, 1, dims]);
    let mut mapper = SetWeight(Tensor::from_data(
        split(2),
        &device.clone().without_autodiff(),
    ));
    trees = trees.map(&mut mapper);
    let size = |surrogate| {
        let options = TreeFineOptions { surrogate, ..ZERO };
        let found = tree_fine(input.clone(), &trees, &trees, options);
        let gradients = found.context.sum().backward();
        let weight = trees.levels()[0].weight.grad(&gradients);
        largest(weight.expect("trees learn"))
    };
    let bounded = size(Surrogate::TopMargin {
        candidates: 2,
        temperature: 1.0,
    });
    let published = size(Surrogate::DenseGradient {
        temperature: 1.0,
        clip: 10.0,
        scale: Some(1.0),
    });
    assert!(bounded < 10.0, "{bounded}");
    assert!(published > 1e3 * bounded, "{published}, {bounded}");
}

/// Sets every weight of three axes.
struct SetWeight(Tensor<3>);

impl burn::module::ModuleMapper for SetWeight {
    fn map_float<const D: usize>(
        &mut self,
        param: burn::module::Param<Tensor<D>>,
    ) -> burn::module::Param<Tensor<D>> {
        match D {
            3 => param.map(|old| {
                let device = old.device();
                let new = Tensor::<D>::from_data(self.0.clone().into_data(), &device);
                new.require_grad()
            }),
            _ => param,
        }
    }
}

fn largest(gradient: Tensor<3>) -> f32 {
    values(gradient)
        .iter()
        .fold(0.0, |most, x| most.max(x.abs()))
}

#[test]
fn soft_routes_near_certainty_give_the_hard_value() {
    let device = autodiff_device();
    let input = input(9, 9, &device);
    let trees = tree(6, &[2], 2, 5, &device);
    let soft = |temperature| {
        let options = TreeFineOptions {
            surrogate: Surrogate::Soft { temperature },
            ..ZERO
        };
        tree_fine(input.clone(), &trees, &trees, options).context
    };
    let hard = tree_fine(input.clone(), &trees, &trees, ZERO);
    let host = Host::new(&input, &hard, None);
    let all_answered = host.each_query().all(|(example, row, head, at)| {
        let leaf = host.query_leaf[at];
        leaf < 0 || host.within((example, row, head), leaf).1 > 0.0
    });
    assert!(
        all_answered,
        "an empty leaf has no hard value to compare with"
    );
    assert_close(soft(1e-4), hard.context.clone(), 1e-4, 1e-4);
    let distance = (soft(1.0) - hard.context).abs().max();
    assert!(distance.into_scalar::<f32>() > 0.01);
}

#[test]
fn soft_routes_are_differentiable() {
    let keys = random([1, 5, 1, 3], 2, &device());
    let values = random([1, 5, 1, 3], 3, &device());
    let trees = tree(3, &[2, 3], 1, 5, &autodiff_device());
    arbora_testing::gradient::assert_matches_finite_differences::<4>(
        arbora_testing::random_data([1, 4, 1, 3], 1),
        &autodiff_device(),
        1e-3,
        5e-3,
        |query| {
            let options = TreeFineOptions {
                surrogate: Surrogate::Soft { temperature: 0.8 },
                ..ZERO
            };
            let (keys, values) = (keys.clone(), values.clone());
            let input = TreeFineInput::cross(query, keys, values);
            let context = tree_fine(input, &trees, &trees, options).context;
            (context.clone() * random(context.dims(), 9, &context.device())).sum()
        },
    );
}

#[test]
#[should_panic(
    expected = "tree_fine: dropout: expected a rate of 0 with the soft surrogate, got 0.5"
)]
fn soft_routes_refuse_dropout() {
    let device = autodiff_device();
    let trees = tree(6, &[2], 2, 5, &device);
    let options = TreeFineOptions {
        surrogate: Surrogate::Soft { temperature: 1.0 },
        dropout: Some(arbora_attention::Dropout { rate: 0.5, seed: 1 }),
        ..ZERO
    };
    tree_fine(input(7, 7, &device), &trees, &trees, options);
}
