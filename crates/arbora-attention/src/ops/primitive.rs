//! Backend primitives with the few methods that reference bodies are written in, so that they read
//! like tensor code. burn's own `Tensor` dispatches at run time and cannot be used below it.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Scalar, Slice, TensorMetadata, get_or_init_device_settings};
use burn::tensor::{DType, FloatDType, IntDType, Shape};

pub(super) struct Float<B: Backend>(pub FloatTensor<B>);
pub(super) struct Integer<B: Backend>(pub IntTensor<B>);
pub(super) struct Mask<B: Backend>(pub BoolTensor<B>);

impl<B: Backend> Clone for Float<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Clone for Integer<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Clone for Mask<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

fn scalar(value: impl Into<Scalar>) -> Scalar {
    value.into()
}

fn full_slice(dims: &[usize]) -> Vec<Slice> {
    dims.iter()
        .map(|size| Slice::new(0, Some(*size as isize), 1))
        .collect()
}

impl<B: Backend> Float<B> {
    pub fn dims<const D: usize>(&self) -> [usize; D] {
        self.0.shape().dims()
    }

    /// Half precision is computed in single precision.
    pub fn at_least_single(self) -> Self {
        match self.0.dtype() {
            DType::F16 | DType::BF16 => Self(B::float_cast(self.0, FloatDType::F32)),
            _ => self,
        }
    }

    pub fn cast(self, dtype: DType) -> Self {
        match self.0.dtype() == dtype {
            true => self,
            false => Self(B::float_cast(self.0, dtype.into())),
        }
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Zeros of this type, on this device.
    pub fn zeros<const D: usize>(&self, shape: [usize; D]) -> Self {
        let dtype: FloatDType = self.0.dtype().into();
        Self(B::float_zeros(Shape::from(shape), &self.0.device(), dtype))
    }

    pub fn zeros_like(&self) -> Self {
        let dtype: FloatDType = self.0.dtype().into();
        Self(B::float_zeros(self.0.shape(), &self.0.device(), dtype))
    }

    pub fn detach(self) -> Self {
        Self(B::float_detach(self.0))
    }

    pub fn reshape<const D: usize>(self, shape: [usize; D]) -> Self {
        Self(B::float_reshape(self.0, Shape::from(shape)))
    }

    /// Whole rows of the first axis.
    pub fn select_rows(self, indices: Integer<B>) -> Self {
        Self(B::float_select(self.0, 0, indices.0))
    }

    /// The entry at `index` of the last axis of three, as `[rows]`.
    pub fn last_of_three(self, index: usize) -> Self {
        let [a, b, c] = self.dims();
        let mut slices = full_slice(&[a, b, c]);
        slices[2] = Slice::new(index as isize, Some(index as isize + 1), 1);
        Self(B::float_slice(self.0, &slices)).reshape([a * b])
    }

    /// The entries of axis 1 from `first` on.
    pub fn rows_from(self, first: usize) -> Self {
        let shape = self.0.shape();
        let mut slices = full_slice(&shape);
        slices[1] = Slice::new(first as isize, Some(shape[1] as isize), 1);
        Self(B::float_slice(self.0, &slices))
    }

    /// The two halves of the last axis of three.
    pub fn halves(self) -> (Self, Self) {
        let dims: [usize; 3] = self.dims();
        let half = (dims[2] / 2) as isize;
        let part = |from: isize, to: isize| {
            let mut slices = full_slice(&dims);
            slices[2] = Slice::new(from, Some(to), 1);
            Self(B::float_slice(self.0.clone(), &slices))
        };
        (part(0, half), part(half, 2 * half))
    }

    pub fn swap_dims(self, first: usize, second: usize) -> Self {
        Self(B::float_swap_dims(self.0, first, second))
    }

    pub fn matmul(self, other: Self) -> Self {
        Self(B::float_matmul(self.0, other.0))
    }

    /// The exact form. Its gradient is exact too, while burn's own operation has on some backends the
    /// gradient of the approximation by a hyperbolic tangent.
    pub fn gelu(self) -> Self {
        let cumulative = Self(B::float_erf(
            self.clone().scale(std::f64::consts::FRAC_1_SQRT_2).0,
        ));
        self.mul(cumulative.shift(1.0)).scale(0.5)
    }

    pub fn sqrt(self) -> Self {
        Self(B::float_sqrt(self.0))
    }

    /// Adds a number to every entry.
    pub fn shift(self, number: f64) -> Self {
        Self(B::float_add_scalar(self.0, scalar(number)))
    }

    /// The sum of all entries, `[1]`.
    pub fn total(self) -> Self {
        Self(B::float_sum(self.0))
    }

    pub fn add(self, other: Self) -> Self {
        Self(B::float_add(self.0, other.0))
    }

    pub fn sub(self, other: Self) -> Self {
        Self(B::float_sub(self.0, other.0))
    }

    pub fn mul(self, other: Self) -> Self {
        Self(B::float_mul(self.0, other.0))
    }

    pub fn div(self, other: Self) -> Self {
        Self(B::float_div(self.0, other.0))
    }

    pub fn scale(self, factor: f64) -> Self {
        Self(B::float_mul_scalar(self.0, scalar(factor)))
    }

    pub fn exp(self) -> Self {
        Self(B::float_exp(self.0))
    }

    pub fn log(self) -> Self {
        Self(B::float_log(self.0))
    }

    /// Of numbers of any size: past 80 nothing changes that single precision can tell from 1, and the
    /// exponential stays finite.
    pub fn sigmoid(self) -> Self {
        Self(B::sigmoid(B::float_clamp(
            self.0,
            scalar(-80.0),
            scalar(80.0),
        )))
    }

    pub fn clamp_min(self, least: f64) -> Self {
        Self(B::float_clamp_min(self.0, scalar(least)))
    }

    /// Sums an axis, which stays with length 1.
    pub fn sum(self, axis: usize) -> Self {
        Self(B::float_sum_dim(self.0, axis))
    }

    /// The largest entry along an axis, which stays with length 1.
    pub fn max(self, axis: usize) -> Self {
        Self(B::float_max_dim(self.0, axis))
    }

    pub fn cumsum(self, axis: usize) -> Self {
        Self(B::float_cumsum(self.0, axis))
    }

    pub fn expand<const D: usize>(self, shape: [usize; D]) -> Self {
        Self(B::float_expand(self.0, Shape::from(shape)))
    }

    /// Puts `value` where the mask is true.
    pub fn fill(self, mask: Mask<B>, value: f64) -> Self {
        Self(B::float_mask_fill(self.0, mask.0, scalar(value)))
    }

    pub fn at_least(self, other: Self) -> Mask<B> {
        let dtype = get_or_init_device_settings::<B>(&self.0.device()).bool_dtype;
        Mask(B::float_greater_equal(self.0, other.0, dtype))
    }

    pub fn at_most(self, other: Self) -> Mask<B> {
        other.at_least(self)
    }

    pub fn equals_zero(self) -> Mask<B> {
        let dtype = get_or_init_device_settings::<B>(&self.0.device()).bool_dtype;
        Mask(B::float_equal_elem(self.0, scalar(0.0), dtype))
    }

    pub fn cat(parts: Vec<Self>, axis: usize) -> Self {
        Self(B::float_cat(
            parts.into_iter().map(|part| part.0).collect(),
            axis,
        ))
    }
}

impl<B: Backend> Integer<B> {
    pub fn arange(count: usize, like: &Self) -> Self {
        let dtype: IntDType = like.0.dtype().into();
        Self(B::int_arange(0..count as i64, &like.0.device(), dtype))
    }

    pub fn reshape<const D: usize>(self, shape: [usize; D]) -> Self {
        Self(B::int_reshape(self.0, Shape::from(shape)))
    }

    pub fn expand<const D: usize>(self, shape: [usize; D]) -> Self {
        Self(B::int_expand(self.0, Shape::from(shape)))
    }

    pub fn swap_dims(self, first: usize, second: usize) -> Self {
        Self(B::int_swap_dims(self.0, first, second))
    }

    pub fn cast_like(self, like: &Self) -> Self {
        match self.0.dtype() == like.0.dtype() {
            true => self,
            false => Self(B::int_cast(self.0, like.0.dtype().into())),
        }
    }

    pub fn last_of_three(self, index: usize) -> Self {
        let [a, b, c] = self.0.shape().dims();
        let mut slices = full_slice(&[a, b, c]);
        slices[2] = Slice::new(index as isize, Some(index as isize + 1), 1);
        Self(B::int_slice(self.0, &slices)).reshape([a * b])
    }

    pub fn add(self, other: Self) -> Self {
        Self(B::int_add(self.0, other.0))
    }

    pub fn sub(self, other: Self) -> Self {
        Self(B::int_sub(self.0, other.0))
    }

    pub fn plus(self, value: i64) -> Self {
        Self(B::int_add_scalar(self.0, scalar(value)))
    }

    pub fn times(self, value: usize) -> Self {
        Self(B::int_mul_scalar(self.0, scalar(value as i64)))
    }

    pub fn clamp(self, least: i64, most: i64) -> Self {
        Self(B::int_clamp(self.0, scalar(least), scalar(most)))
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
        let dtype = get_or_init_device_settings::<B>(&self.0.device()).bool_dtype;
        Mask(B::int_greater_elem(self.0, scalar(value), dtype))
    }

    pub fn below(self, other: Self) -> Mask<B> {
        let dtype = get_or_init_device_settings::<B>(&self.0.device()).bool_dtype;
        Mask(B::int_lower(self.0, other.0, dtype))
    }

    pub fn equal(self, other: Self) -> Mask<B> {
        let dtype = get_or_init_device_settings::<B>(&self.0.device()).bool_dtype;
        Mask(B::int_equal(self.0, other.0, dtype))
    }

    pub fn sum(self, axis: usize) -> Self {
        Self(B::int_sum_dim(self.0, axis))
    }

    pub fn cat(parts: Vec<Self>, axis: usize) -> Self {
        Self(B::int_cat(
            parts.into_iter().map(|part| part.0).collect(),
            axis,
        ))
    }
}

impl<B: Backend> Mask<B> {
    pub fn not(self) -> Self {
        Self(B::bool_not(self.0))
    }

    pub fn and(self, other: Self) -> Self {
        Self(B::bool_and(self.0, other.0))
    }

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

    pub fn reshape<const D: usize>(self, shape: [usize; D]) -> Self {
        Self(B::bool_reshape(self.0, Shape::from(shape)))
    }

    pub fn expand<const D: usize>(self, shape: [usize; D]) -> Self {
        Self(B::bool_expand(self.0, Shape::from(shape)))
    }

    pub fn cat(parts: Vec<Self>, axis: usize) -> Self {
        Self(B::bool_cat(
            parts.into_iter().map(|part| part.0).collect(),
            axis,
        ))
    }
}
