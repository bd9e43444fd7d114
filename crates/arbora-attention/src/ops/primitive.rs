//! Backend primitives with the few methods that reference bodies are written in, so that they read
//! like tensor code. burn's own `Tensor` dispatches at run time and cannot be used below it.

use super::at_least_single;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Slice, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{BoolDType, DType, FloatDType, IntDType, Shape};
use std::ops::Range;

#[derive(Clone)]
pub(super) struct Float<B: Backend>(pub FloatTensor<B>);
#[derive(Clone)]
pub(super) struct Integer<B: Backend>(pub IntTensor<B>);
#[derive(Clone)]
pub(super) struct Mask<B: Backend>(pub BoolTensor<B>);

/// Methods that are an operation of the backend.
macro_rules! methods {
    (of one tensor: $($name:ident = $operation:ident),+) => {$(
        pub fn $name(self) -> Self {
            Self(B::$operation(self.0))
        }
    )+};
    (of two tensors: $($name:ident = $operation:ident),+) => {$(
        pub fn $name(self, other: Self) -> Self {
            Self(B::$operation(self.0, other.0))
        }
    )+};
    (of a tensor and a number: $($name:ident = $operation:ident),+) => {$(
        pub fn $name(self, number: f64) -> Self {
            Self(B::$operation(self.0, number.into()))
        }
    )+};
    (along an axis, which stays with length 1 where it is reduced: $($name:ident = $operation:ident),+) => {$(
        pub fn $name(self, axis: usize) -> Self {
            Self(B::$operation(self.0, axis))
        }
    )+};
    (whether it is so: $($name:ident = $operation:ident),+) => {$(
        pub fn $name(self, other: Self) -> Mask<B> {
            let dtype = bool_dtype::<B>(&self.0);
            Mask(B::$operation(self.0, other.0, dtype))
        }
    )+};
}

/// The type of masks on a tensor's device.
fn bool_dtype<B: Backend>(tensor: &impl TensorMetadata<Device = B::Device>) -> BoolDType {
    get_or_init_device_settings::<B>(&tensor.device()).bool_dtype
}

/// What tensors of all kinds have.
macro_rules! shape_methods {
    ($reshape:ident, $expand:ident, $cat:ident) => {
        pub fn reshape<const D: usize>(self, shape: [usize; D]) -> Self {
            Self(B::$reshape(self.0, Shape::from(shape)))
        }

        pub fn expand<const D: usize>(self, shape: [usize; D]) -> Self {
            Self(B::$expand(self.0, Shape::from(shape)))
        }

        pub fn cat(parts: Vec<Self>, axis: usize) -> Self {
            Self(B::$cat(
                parts.into_iter().map(|part| part.0).collect(),
                axis,
            ))
        }
    };
}

/// What tensors of numbers have.
macro_rules! number_methods {
    ($swap_dims:ident, $slice:ident) => {
        pub fn swap_dims(self, first: usize, second: usize) -> Self {
            Self(B::$swap_dims(self.0, first, second))
        }

        /// Some entries of one axis.
        pub fn narrow(self, axis: usize, range: Range<usize>) -> Self {
            let slices = slices(&self.0.shape(), axis, range);
            Self(B::$slice(self.0, &slices))
        }

        /// The entry at `index` of the last axis of three, as `[rows]`.
        pub fn last_of_three(self, index: usize) -> Self {
            let [a, b, _] = self.0.shape().dims();
            self.narrow(2, index..index + 1).reshape([a * b])
        }
    };
}

/// Some entries of one axis, and all of the others.
fn slices(dims: &[usize], axis: usize, range: Range<usize>) -> Vec<Slice> {
    let mut ranges: Vec<_> = dims.iter().map(|size| 0..*size).collect();
    ranges[axis] = range;
    ranges.into_iter().map(Slice::from).collect()
}

impl<B: Backend> Float<B> {
    shape_methods!(float_reshape, float_expand, float_cat);
    number_methods!(float_swap_dims, float_slice);

    methods!(of one tensor: detach = float_detach, sqrt = float_sqrt, exp = float_exp, log = float_log);

    methods!(
        of two tensors:
        matmul = float_matmul, add = float_add, sub = float_sub, mul = float_mul, div = float_div
    );

    methods!(
        of a tensor and a number:
        shift = float_add_scalar, scale = float_mul_scalar, clamp_min = float_clamp_min
    );

    methods!(
        along an axis, which stays with length 1 where it is reduced:
        sum = float_sum_dim, max = float_max_dim, cumsum = float_cumsum
    );

    methods!(whether it is so: at_least = float_greater_equal);

    pub fn dims<const D: usize>(&self) -> [usize; D] {
        self.0.shape().dims()
    }

    /// Half precision is computed in single precision.
    pub fn at_least_single(self) -> Self {
        let dtype = at_least_single(self.0.dtype());
        self.cast(dtype)
    }

    pub fn cast(self, dtype: DType) -> Self {
        if self.0.dtype() == dtype {
            self
        } else {
            Self(B::float_cast(self.0, dtype.into()))
        }
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Zeros of this type, on this device.
    pub fn zeros(&self, shape: impl Into<Shape>) -> Self {
        let dtype: FloatDType = self.0.dtype().into();
        Self(B::float_zeros(shape.into(), &self.0.device(), dtype))
    }

    pub fn zeros_like(&self) -> Self {
        self.zeros(self.0.shape())
    }

    /// Whole rows of the first axis.
    pub fn select_rows(self, indices: Integer<B>) -> Self {
        Self(B::float_select(self.0, 0, indices.0))
    }

    /// The entries of axis 1 from `first` on.
    pub fn rows_from(self, first: usize) -> Self {
        let end = self.0.shape()[1];
        self.narrow(1, first..end)
    }

    /// The two halves of the last axis of three.
    pub fn halves(self) -> (Self, Self) {
        let [.., width] = self.dims::<3>();
        let half = width / 2;
        (
            self.clone().narrow(2, 0..half),
            self.narrow(2, half..2 * half),
        )
    }

    /// The exact form. Its gradient is exact too, while burn's own operation has on some backends the
    /// gradient of the approximation by a hyperbolic tangent.
    pub fn gelu(self) -> Self {
        let cumulative = Self(B::float_erf(
            self.clone().scale(std::f64::consts::FRAC_1_SQRT_2).0,
        ));
        self.mul(cumulative.shift(1.0)).scale(0.5)
    }

    /// The sum of all entries, `[1]`.
    pub fn total(self) -> Self {
        Self(B::float_sum(self.0))
    }

    /// Of numbers of any size: past 80 nothing changes that single precision can tell from 1, and the
    /// exponential stays finite.
    pub fn sigmoid(self) -> Self {
        let clamped = B::float_clamp(self.0, (-80.0).into(), 80.0.into());
        Self(B::sigmoid(clamped))
    }

    /// Puts `value` where the mask is true.
    pub fn fill(self, mask: Mask<B>, value: f64) -> Self {
        Self(B::float_mask_fill(self.0, mask.0, value.into()))
    }

    pub fn at_most(self, other: Self) -> Mask<B> {
        other.at_least(self)
    }

    pub fn equals_zero(self) -> Mask<B> {
        let dtype = bool_dtype::<B>(&self.0);
        Mask(B::float_equal_elem(self.0, 0.0.into(), dtype))
    }
}

impl<B: Backend> Integer<B> {
    shape_methods!(int_reshape, int_expand, int_cat);
    number_methods!(int_swap_dims, int_slice);

    methods!(of two tensors: add = int_add, sub = int_sub);

    methods!(whether it is so: below = int_lower, equal = int_equal);

    pub fn arange(count: usize, like: &Self) -> Self {
        let dtype: IntDType = like.0.dtype().into();
        Self(B::int_arange(0..count as i64, &like.0.device(), dtype))
    }

    pub fn cast_like(self, like: &Self) -> Self {
        if self.0.dtype() == like.0.dtype() {
            self
        } else {
            Self(B::int_cast(self.0, like.0.dtype().into()))
        }
    }

    pub fn plus(self, value: i64) -> Self {
        Self(B::int_add_scalar(self.0, value.into()))
    }

    pub fn times(self, value: usize) -> Self {
        Self(B::int_mul_scalar(self.0, (value as i64).into()))
    }

    pub fn clamp(self, least: i64, most: i64) -> Self {
        Self(B::int_clamp(self.0, least.into(), most.into()))
    }

    /// The smaller of two entries.
    pub fn min(self, other: Self) -> Self {
        let less = self.clone().below(other.clone());
        Self(B::int_mask_where(other.0, less.0, self.0))
    }

    pub fn float(self, dtype: DType) -> Float<B> {
        Float(B::int_into_float(self.0, dtype.into()))
    }

    pub fn above(self, value: i64) -> Mask<B> {
        let dtype = bool_dtype::<B>(&self.0);
        Mask(B::int_greater_elem(self.0, value.into(), dtype))
    }

    pub fn sum(self, axis: usize) -> Self {
        Self(B::int_sum_dim(self.0, axis))
    }
}

impl<B: Backend> Mask<B> {
    shape_methods!(bool_reshape, bool_expand, bool_cat);

    methods!(of one tensor: not = bool_not);
    methods!(of two tensors: and = bool_and);

    pub fn float(self, dtype: DType) -> Float<B> {
        Float(B::bool_into_float(self.0, dtype.into()))
    }

    pub fn integer(self, like: &Integer<B>) -> Integer<B> {
        Integer(B::bool_into_int(self.0, like.0.dtype().into()))
    }

    /// True entries per row of `[rows, entries]`, as integers of the type of `like`.
    pub fn count(self, like: &Integer<B>) -> Integer<B> {
        let [rows, _] = self.0.shape().dims();
        self.integer(like).sum(1).reshape([rows])
    }
}
