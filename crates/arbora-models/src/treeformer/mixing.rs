//! A learned map of the token before each token.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

/// Adds to every token a learned map of the token before it: `x_t + W x_{t-1}`, with zeros before the first.
///
/// A value then knows the key in front of it, so that one layer of attention can look it up.
#[derive(Module, Debug)]
pub struct LocalMixing {
    /// `W`, `[d_model, d_model]`
    pub before: Linear,
}

impl LocalMixing {
    pub(super) fn new(d_model: usize, device: &Device) -> Self {
        Self {
            before: LinearConfig::new(d_model, d_model)
                .with_bias(false)
                .init(device),
        }
    }

    /// `[batch, tokens, d_model]` -> the same
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [batch, count, width] = tokens.dims();
        if count <= 1 {
            return tokens;
        }
        let first = Tensor::zeros([batch, 1, width], &tokens.device());
        let before = self.before.forward(tokens.clone().narrow(1, 0, count - 1));
        tokens + Tensor::cat(vec![first, before], 1)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn mixing_adds_nothing_where_no_token_is_before() {
        let device = Device::flex();
        let mixing = LocalMixing::new(3, &device);
        let one = Tensor::<3>::ones([2, 1, 3], &device);
        let mixed = mixing.forward(one.clone());
        assert_eq!(mixed.into_data(), one.into_data());
        let none = mixing.forward(Tensor::zeros([2, 0, 3], &device));
        assert_eq!(none.dims(), [2, 0, 3]);
    }
}
