//! Gradients scaled so that their norm stays below a limit.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

/// Scales all gradients by one factor so that their global norm is at most `max_norm`.
///
/// The global norm is the length of all gradients of `module` taken as one vector. burn's own
/// clipping by norm takes each parameter by itself, which changes the direction of the step. As in
/// PyTorch, the factor is `max_norm / (norm + 1e-6)` where the norm exceeds `max_norm`, else the
/// gradients are returned as they are.
///
/// Returns the gradients and the norm before clipping. Where the norm is not finite, the gradients
/// are returned as they are: it is the caller's choice to skip the step or to stop. Reads one
/// number from the device.
///
/// # Panics
/// If `max_norm` is not positive.
#[track_caller]
pub fn clip_global_norm<M: Module>(
    mut gradients: GradientsParams,
    module: &M,
    max_norm: f32,
) -> (GradientsParams, f32) {
    assert!(
        max_norm > 0.0,
        "clip_global_norm: max_norm: expected a positive number, got {max_norm}"
    );
    let norm = global_norm(&gradients, module);
    if norm.is_finite() && norm > max_norm {
        let factor = max_norm / (norm + 1e-6);
        module.visit(&mut Scale {
            gradients: &mut gradients,
            seen: HashSet::new(),
            factor,
        });
    }
    (gradients, norm)
}

/// The length of all gradients of `module` taken as one vector; 0 where there are none.
///
/// A parameter that occurs several times in the module counts once. The squares are summed on their
/// devices in the module's order. One number per device moves to the first one's, and one is read.
pub fn global_norm<M: Module>(gradients: &GradientsParams, module: &M) -> f32 {
    let mut visitor = SquaredNorms {
        gradients,
        seen: HashSet::new(),
        squares: Vec::new(),
    };
    module.visit(&mut visitor);
    let mut sums = visitor
        .squares
        .into_iter()
        .map(|(device, squares)| (device, Tensor::cat(squares, 0).sum()));
    let Some((home, first)) = sums.next() else {
        return 0.0;
    };
    let sum = sums.fold(first, |sum, (_, part)| sum + part.to_device(&home));
    sum.sqrt().into_scalar::<f32>()
}

struct SquaredNorms<'a> {
    gradients: &'a GradientsParams,
    seen: HashSet<ParamId>,
    /// Of each device that a spread module is on: a transfer for every parameter would cost a round
    /// trip each.
    squares: Vec<(Device, Vec<Tensor<1>>)>,
}

impl ModuleVisitor for SquaredNorms<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.seen.insert(param.id) {
            return;
        }
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            // In half precision a square overflows from 256 on.
            let square = gradient.cast(DType::F32).square().sum();
            let device = square.device();
            match self.squares.iter_mut().find(|(known, _)| *known == device) {
                Some((_, squares)) => squares.push(square),
                None => self.squares.push((device, vec![square])),
            }
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    seen: HashSet<ParamId>,
    factor: f32,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.seen.insert(param.id) {
            return;
        }
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients
                .register(param.id, gradient.mul_scalar(self.factor));
        }
    }
}
