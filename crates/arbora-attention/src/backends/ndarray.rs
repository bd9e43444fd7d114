//! burn-ndarray: tensors in this process's memory.

use super::cpu::HostBackend;
use burn::backend::NdArray;
use burn::tensor::Shape;
use burn_ndarray::NdArrayTensor;
use ndarray::{ArcArray, IxDyn};

impl HostBackend for NdArray {
    fn host(tensor: NdArrayTensor) -> Option<NdArrayTensor> {
        let NdArrayTensor::F32(storage) = tensor else {
            return None;
        };
        if storage.view().is_standard_layout() {
            return Some(NdArrayTensor::F32(storage));
        }
        let copy = storage.view().as_standard_layout().into_owned();
        Some(NdArrayTensor::F32(copy.into_shared().into()))
    }

    fn floats(tensor: &NdArrayTensor) -> &[f32] {
        let NdArrayTensor::F32(storage) = tensor else {
            unreachable!("`host` and `allocate` return single precision");
        };
        storage
            .view()
            .to_slice()
            .expect("`host` returns a standard layout")
    }

    fn allocate(shape: Shape, _device: &Self::Device) -> NdArrayTensor {
        let zeros = ArcArray::<f32, IxDyn>::zeros(shape.to_vec());
        NdArrayTensor::F32(zeros.into())
    }

    fn floats_mut(tensor: &mut NdArrayTensor) -> &mut [f32] {
        let NdArrayTensor::F32(storage) = tensor else {
            unreachable!("`allocate` returns single precision");
        };
        storage
            .ensure_owned()
            .as_slice_mut()
            .expect("`allocate` returns a standard layout")
    }
}
