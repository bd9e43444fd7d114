//! libtorch. On the CPU its tensors are read and written where they lie.

use super::cpu::HostBackend;
use burn::backend::LibTorch;
use burn::tensor::Shape;
use burn_tch::TchTensor;
use tch::{Device, Kind};

impl HostBackend for LibTorch {
    fn host(tensor: TchTensor) -> Option<TchTensor> {
        let on_host = tensor.tensor.device() == Device::Cpu && tensor.tensor.kind() == Kind::Float;
        on_host.then(|| {
            if tensor.tensor.is_contiguous() {
                tensor
            } else {
                TchTensor::new(tensor.tensor.contiguous())
            }
        })
    }

    fn floats(tensor: &TchTensor) -> &[f32] {
        let tensor = &tensor.tensor;
        assert!(tensor.device() == Device::Cpu && tensor.kind() == Kind::Float);
        assert!(tensor.is_contiguous());
        match tensor.numel() {
            // No elements, and perhaps no memory.
            0 => &[],
            // SAFETY: as asserted, the elements are single precision and lie side by side in this process's memory, at an address
            // that libtorch aligns for them. They live as long as the tensor, which the result borrows, and nothing writes to them
            // meanwhile: burn writes to a tensor's memory only where no other tensor shares it, and this one does.
            count => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), count) },
        }
    }

    fn allocate(shape: Shape, _device: &Self::Device) -> TchTensor {
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        TchTensor::new(tch::Tensor::empty(sizes, (Kind::Float, Device::Cpu)))
    }

    fn floats_mut(tensor: &mut TchTensor) -> &mut [f32] {
        assert!(tensor.storage.can_mut(), "no other tensor has the memory");
        let tensor = &tensor.tensor;
        assert!(tensor.device() == Device::Cpu && tensor.kind() == Kind::Float);
        assert!(tensor.is_contiguous());
        match tensor.numel() {
            0 => &mut [],
            // SAFETY: as in `floats`, and no other tensor has the memory, as asserted. Fresh from `allocate` the numbers are
            // whatever was there; every pattern of bits is one, and kernels write before they read.
            count => unsafe {
                std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), count)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::libtorch::LibTorchDevice;

    fn fresh() -> TchTensor {
        LibTorch::allocate(Shape::from([2, 3]), &LibTorchDevice::Cpu)
    }

    #[test]
    fn what_is_written_is_read_where_it_lies() {
        let mut tensor = fresh();
        let numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        LibTorch::floats_mut(&mut tensor).copy_from_slice(&numbers);
        assert_eq!(LibTorch::floats(&tensor), numbers);
        let transposed = TchTensor::new(tensor.tensor.transpose(0, 1));
        let host = LibTorch::host(transposed).expect("it is on the CPU");
        assert_eq!(LibTorch::floats(&host), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    #[should_panic(expected = "no other tensor has the memory")]
    fn memory_that_another_tensor_has_is_not_written() {
        let tensor = fresh();
        LibTorch::floats_mut(&mut tensor.clone());
    }

    #[test]
    #[should_panic(expected = "tensor.is_contiguous()")]
    fn a_tensor_with_gaps_is_not_read_as_one_without() {
        let tensor = fresh();
        LibTorch::floats(&TchTensor::new(tensor.tensor.transpose(0, 1)));
    }

    #[test]
    #[should_panic(expected = "tensor.kind() == Kind::Float")]
    fn double_precision_is_not_read_as_single() {
        let tensor = fresh();
        LibTorch::floats(&TchTensor::new(tensor.tensor.to_kind(Kind::Double)));
    }
}
