//! burn-flex: tensors in this process's memory.

use super::cpu::HostBackend;
use burn::backend::Flex;
use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;

impl HostBackend for Flex {
    fn host(tensor: FlexTensor) -> Option<FlexTensor> {
        (tensor.dtype() == DType::F32).then(|| {
            if tensor.is_contiguous() {
                tensor
            } else {
                tensor.to_contiguous()
            }
        })
    }

    fn floats(tensor: &FlexTensor) -> &[f32] {
        tensor.as_slice().expect("the tensor is contiguous")
    }

    fn allocate(shape: Shape, _device: &Self::Device) -> FlexTensor {
        FlexTensor::empty(shape, DType::F32)
    }

    fn floats_mut(tensor: &mut FlexTensor) -> &mut [f32] {
        tensor.storage_mut()
    }
}
