//! An ordinary transformer block with attention within the leaves of learned trees where it would have
//! `MultiHeadAttention`.
//!
//! `cargo run -p arbora-attention --example replace_multi_head_attention --features flex`

// Before: use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use arbora_attention::{
    AttentionKindConfig, SelfAttention, SelfAttentionConfig, SelfAttentionInput, TreeFineConfig,
};
use burn::module::Module;
use burn::nn::transformer::{PositionWiseFeedForward, PositionWiseFeedForwardConfig};
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Distribution, Tensor};

#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    // Before: attention: MultiHeadAttention,
    attention: SelfAttention,
    feed_forward_norm: LayerNorm,
    feed_forward: PositionWiseFeedForward,
}

impl Block {
    fn new(d_model: usize, heads: usize, device: &Device) -> Self {
        // Before: MultiHeadAttentionConfig::new(d_model, heads).init(device)
        let kind = AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2, 2, 2]));
        let attention = SelfAttentionConfig::new(d_model, heads).with_kind(kind);
        Self {
            attention_norm: LayerNormConfig::new(d_model).init(device),
            attention: attention.init(device),
            feed_forward_norm: LayerNormConfig::new(d_model).init(device),
            feed_forward: PositionWiseFeedForwardConfig::new(d_model, 4 * d_model).init(device),
        }
    }

    /// `[batch, tokens, d_model]` -> the same, the share of pairs that attention read, and the balance
    /// loss.
    fn forward(&self, tokens: Tensor<3>) -> (Tensor<3>, Tensor<1>, Option<Tensor<1>>) {
        let normed = self.attention_norm.forward(tokens.clone());
        // Before: self.attention.forward(MhaInput::self_attn(normed))
        let attended = self.attention.forward(SelfAttentionInput::new(normed));
        let tokens = tokens + attended.context;
        let normed = self.feed_forward_norm.forward(tokens.clone());
        let output = tokens + self.feed_forward.forward(normed);
        // New: what trees report. A model that only wants the output ignores it.
        let report = attended.routing.expect("trees report their routes");
        (output, report.cost_ratio.mean(), report.balance_loss)
    }
}

fn main() {
    let device = Device::default().autodiff();
    let block = Block::new(64, 4, &device);
    let tokens = Tensor::random([2, 512, 64], Distribution::Normal(0.0, 1.0), &device);

    let (output, share, balance) = block.forward(tokens.clone());
    println!("output {:?}", output.dims());
    println!(
        "pairs of a query and a key that share a leaf: {:.1} % ({:.1} % if leaves were equally full)",
        100.0 * share.into_scalar::<f32>(),
        100.0 / 16.0
    );

    // The loss of a task would stand in the place of the mean square.
    let balance = balance.expect("the device records gradients");
    println!("balance loss: {:.3}", balance.clone().into_scalar::<f32>());
    let gradients = (output.square().mean() + balance * 0.1).backward();
    // Trees must not decay. To an optimiser with weight decay add a second one without, for them:
    // optimizer.with_group(SelfAttention::tree_parameter_group(), plain, None)
    let query = &block.attention.query.weight;
    let gradient = query.grad(&gradients).expect("attention reads queries");
    println!(
        "largest gradient of the query projection: {:.1e}",
        gradient.abs().max().into_scalar::<f32>()
    );
}
