//! The suite that every backend runs: `cargo xtask test-all-backends`.

mod aggregator;
mod empty_batch;
mod gradients;
mod losses;
mod order;
mod padding;
mod parameters;
mod perceiver;
mod prediction;
mod store;
mod strategy;
mod streaming;
mod tree_coder;
mod tree_coder_balance;
mod tree_coder_generate;
mod tree_coder_generate_errors;
mod tree_coder_gradients;
mod tree_coder_masks;
mod tree_coder_oracle;
mod tree_coder_selectors;
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
        .with_n_heads(2)
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
