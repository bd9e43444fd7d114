//! The suite that every backend runs: `cargo xtask test-all-backends`.

#[path = "backend/aggregator.rs"]
mod aggregator;
#[path = "backend/gradients.rs"]
mod gradients;
#[path = "backend/losses.rs"]
mod losses;
#[path = "backend/order.rs"]
mod order;
#[path = "backend/padding.rs"]
mod padding;
#[path = "backend/parameters.rs"]
mod parameters;
#[path = "backend/perceiver.rs"]
mod perceiver;
#[path = "backend/prediction.rs"]
mod prediction;
#[path = "backend/store.rs"]
mod store;
#[path = "backend/strategy.rs"]
mod strategy;
#[path = "backend/streaming.rs"]
mod streaming;
#[path = "backend/tree_coder.rs"]
mod tree_coder;
#[path = "backend/tree_coder_balance.rs"]
mod tree_coder_balance;
#[path = "backend/tree_coder_generate.rs"]
mod tree_coder_generate;
#[path = "backend/tree_coder_generate_errors.rs"]
mod tree_coder_generate_errors;
#[path = "backend/tree_coder_gradients.rs"]
mod tree_coder_gradients;
#[path = "backend/tree_coder_masks.rs"]
mod tree_coder_masks;
#[path = "backend/tree_coder_oracle.rs"]
mod tree_coder_oracle;
#[path = "backend/tree_coder_selectors.rs"]
mod tree_coder_selectors;
#[path = "backend/treeformer.rs"]
mod treeformer;

use arbora_models::{Context, HeadKind, ModelConfig, StdKind};
use arbora_testing::{random, values};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Gradients, Tensor};

#[test]
fn the_backend_asked_for_is_the_one_that_runs() {
    arbora_testing::assert_backend_asked_for();
}

/// Points in the plane with one value each, in a model as small as it can be with two heads.
fn small() -> ModelConfig {
    let head = HeadKind::Gaussian {
        dim: 1,
        std: StdKind::Bounded,
    };
    ModelConfig::new(3, 2, head)
        .with_d_model(8)
        .with_d_ff(8)
        .with_heads(2)
        .with_embedding_depth(2)
        .with_encoder_layers(1)
}

/// Points in the plane with one value each.
fn points(batch: usize, tokens: usize, mask: Option<Tensor<2, Bool>>, device: &Device) -> Context {
    let x = random([batch, tokens, 2], 11, device);
    Context::points(x, random([batch, tokens, 1], 12, device), mask)
}

/// A float parameter of a model, or its gradient.
struct Parameter {
    /// Field names joined by dots.
    path: String,
    shape: Vec<usize>,
    /// Empty where there is no gradient.
    values: Vec<f32>,
}

/// The float parameters of a model.
fn parameters<M: Module>(model: &M) -> Vec<Parameter> {
    collect(model, None)
}

/// The gradients of a model's float parameters.
fn gradients_of<M: Module>(model: &M, gradients: &Gradients) -> Vec<Parameter> {
    collect(model, Some(gradients))
}

fn collect<M: Module>(model: &M, gradients: Option<&Gradients>) -> Vec<Parameter> {
    let mut visitor = Collect {
        path: Vec::new(),
        found: Vec::new(),
        gradients,
    };
    model.visit(&mut visitor);
    visitor.found
}

struct Collect<'a> {
    path: Vec<String>,
    found: Vec<Parameter>,
    gradients: Option<&'a Gradients>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let shape = tensor.dims().to_vec();
        let read = match self.gradients {
            Some(gradients) => tensor.grad(gradients),
            None => Some(tensor),
        };
        self.found.push(Parameter {
            path: self.path.join("."),
            shape,
            values: read.map(values).unwrap_or_default(),
        });
    }
}
