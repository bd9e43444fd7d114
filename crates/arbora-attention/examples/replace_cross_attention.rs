//! An ordinary burn model with tree cross attention where it would have `MultiHeadAttention`.
//!
//! `cargo run -p arbora-attention --example replace_cross_attention --features flex`

use arbora_attention::{TreeCrossAttention, TreeCrossAttentionConfig};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};

#[derive(Module, Debug)]
struct Reader {
    embed: Linear,
    // Before: cross_attention: MultiHeadAttention,
    cross_attention: TreeCrossAttention,
    output: Linear,
}

impl Reader {
    fn new(d_model: usize, heads: usize, device: &Device) -> Self {
        Self {
            embed: LinearConfig::new(4, d_model).init(device),
            cross_attention: TreeCrossAttentionConfig::new(d_model, heads).init(device),
            output: LinearConfig::new(d_model, 1).init(device),
        }
    }

    /// `[batch, queries, d_model]` and `[batch, tokens, 4]` -> `[batch, queries, 1]`, and how many
    /// nodes a query read.
    fn forward(&self, queries: Tensor<3>, tokens: Tensor<3>) -> (Tensor<3>, Tensor<1>) {
        let tokens = self.embed.forward(tokens);
        // Before: self.cross_attention.forward(MhaInput::new(queries, tokens.clone(), tokens))
        let found = self.cross_attention.forward(queries, tokens);
        (
            self.output.forward(found.context),
            found.read.float().mean(),
        )
    }
}

fn main() {
    let device = Device::default().autodiff();
    let model = Reader::new(32, 4, &device);
    let normal = Distribution::Normal(0.0, 1.0);
    let tokens = Tensor::random([2, 1000, 4], normal, &device);
    let queries = Tensor::random([2, 8, 32], normal, &device);

    let (output, read) = model.forward(queries, tokens);
    println!("output {:?}", output.dims());
    println!(
        "nodes read per query, of 1000 tokens: {}",
        read.into_scalar::<f32>()
    );

    let gradients = output.square().mean().backward();
    let key = &model.cross_attention.attention.key.weight;
    let gradient = key.grad(&gradients).expect("the search reads keys");
    println!(
        "largest gradient of the key projection: {:.1e}",
        gradient.abs().max().into_scalar::<f32>()
    );
}
