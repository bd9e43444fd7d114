//! libtorch. On the CPU its tensors are read and written where they lie.

use super::cpu::HostBackend;
use burn::backend::LibTorch;
use burn::tensor::Shape;
use burn_tch::TchTensor;
use tch::{Device, Kind};

impl HostBackend for LibTorch {
    fn host(tensor: TchTensor) -> Option<TchTensor> {
        let on_host = tensor.tensor.device() == Device::Cpu && tensor.tensor.kind() == Kind::Float;
        on_host.then(|| match tensor.tensor.is_contiguous() {
            true => tensor,
            false => TchTensor::new(tensor.tensor.contiguous()),
        })
    }

    fn floats(tensor: &TchTensor) -> &[f32] {
        let tensor = &tensor.tensor;
        assert!(tensor.device() == Device::Cpu && tensor.kind() == Kind::Float);
        assert!(tensor.is_contiguous());
        match tensor.numel() {
            // No elements, and perhaps no memory.
            0 => &[],
            // SAFETY: the elements lie side by side in this process's memory and live as long as the
            // tensor, and nothing writes to them while the operator runs.
            count => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), count) },
        }
    }

    fn allocate(shape: Shape, _device: &Self::Device) -> TchTensor {
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        TchTensor::new(tch::Tensor::empty(sizes, (Kind::Float, Device::Cpu)))
    }

    fn floats_mut(tensor: &mut TchTensor) -> &mut [f32] {
        let tensor = &tensor.tensor;
        assert!(tensor.device() == Device::Cpu && tensor.kind() == Kind::Float);
        assert!(tensor.is_contiguous());
        match tensor.numel() {
            0 => &mut [],
            // SAFETY: as above, and a tensor fresh from `allocate` has no other reader.
            count => unsafe {
                std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), count)
            },
        }
    }
}
