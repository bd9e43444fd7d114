//! Random problems for every operator with a kernel on the CPU, and for the functions that are composed of them.
//!
//! A problem is of one of four kinds:
//!
//! - *plain*: numbers around 1. Outputs and gradients equal those of the reference, to rounding.
//! - *scaled*: the same, where what enters linearly is scaled by up to 1e30 or down to 1e-30, and what is multiplied
//!   with one another is scaled to and fro. They equal those of the reference, to rounding at that scale.
//! - *extreme*: zeros of both signs, subnormal numbers and numbers up to the end of the operator's range. Everything is
//!   finite.
//! - *poisoned*: NaN or infinities in one example. All other examples are bit for bit what they are without them, and the
//!   other heads too where heads do not meet.
//!
//! In all of them axes of length 0 and 1 and odd lengths occur, and rarely one that kernels cut into tasks of several
//! threads. Tensors lie in memory in every way: with axes swapped, as parts of larger ones, backwards.

mod attention;
mod blocks;
mod compare;
mod functions;
mod search;

use crate::frame::{Target, Tries};
use anyhow::{Error, Result, anyhow};
use arbora::rl::seed::{mix, spread};
use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use compare::{close, contained, is_rounding, seen};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;
use std::path::Path;

/// What is tried.
pub fn targets() -> Vec<Target> {
    vec![
        Target::new("tree-search", begin::<search::TreeSearch>),
        Target::new("dense-attention", begin::<attention::Dense>),
        Target::new("leaf-attention", begin::<attention::Leaf>),
        Target::new("tree-build", begin::<blocks::TreeBuild>),
        Target::new("feed-forward", begin::<blocks::FeedForward>),
        Target::new("prefix-attention", begin::<functions::Prefix>),
        Target::new("routing", begin::<functions::Route>),
        Target::new("tree-coarse", begin::<functions::Coarse>),
    ]
}

fn begin<O: Operator>(_: &Path) -> Result<Tries> {
    let (_, device) = arbora_cli::backend::open(Some("flex"))?;
    Ok(Tries::drawn(move |rng| examine::<O>(rng, &device)))
}

/// A tensor of any rank, as operators of backends take it.
type Float = FloatTensor<Dispatch>;

/// A problem for one operator, without its numbers.
trait Operator: std::fmt::Debug + Sized {
    /// Shapes and options.
    fn draw(rng: &mut ChaCha8Rng) -> Self;
    /// The tensors of numbers that it takes.
    fn inputs(&self) -> Vec<Input>;
    /// What it gives, gradients included.
    ///
    /// - scales: what each input was multiplied by
    fn outputs(&self, scales: &[f64]) -> Vec<Output>;
    /// The numbers of all outputs by the operator.
    fn kernel(&self, inputs: Vec<Float>, device: &Device) -> Vec<Numbers>;
    /// The same by its definition; none where there is nothing to compare.
    fn reference(&self, inputs: &[Numbers], place: &mut Place) -> Vec<Numbers>;
    /// What else must hold of what the operator gives, whatever the numbers are.
    fn check(&self, _: &[Numbers], _: &[Output], _: Kind) -> Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    Scaled,
    Extreme,
    Poisoned,
}

impl Kind {
    /// Whether what is found is compared with what is expected of the numbers.
    fn is_compared(self) -> bool {
        matches!(self, Self::Plain | Self::Scaled)
    }
}

/// A tensor of numbers that an operator takes.
struct Input {
    dims: Vec<usize>,
    /// Its first axis counts examples, or it is shared by all.
    by_example: bool,
    /// The power of ten that the largest of its numbers may have.
    most: i32,
    /// How large its numbers usually are at most.
    size: f64,
    scaled: Scaling,
    /// How many heads of its third axis are one head of keys, where heads do not meet.
    heads: Option<usize>,
}

/// What a tensor may be scaled by where its operator is to be compared with the reference.
#[derive(Clone, Copy, PartialEq)]
enum Scaling {
    /// By nothing.
    None,
    /// By anything: outputs are linear in it.
    Free,
    /// By a factor, and by its inverse: the product of the two is what counts.
    To,
    Fro,
}

impl Input {
    fn new(dims: impl Into<Vec<usize>>, most: i32, scaled: Scaling) -> Self {
        Self {
            dims: dims.into(),
            by_example: true,
            most,
            size: 2.0,
            scaled,
            heads: None,
        }
    }

    fn by_heads(self, group: usize) -> Self {
        Self {
            heads: Some(group),
            ..self
        }
    }

    fn shared(self) -> Self {
        Self {
            by_example: false,
            ..self
        }
    }
}

/// The numbers of an input or of an output.
#[derive(Clone, Default)]
struct Numbers {
    values: Vec<f32>,
    dims: Vec<usize>,
}

impl Numbers {
    /// Those of a tensor, whatever its rank is and whether it is tracked.
    fn of(tensor: Float) -> Self {
        Self::from(Tensor::<1>::from_dispatch(tensor).into_data())
    }

    /// The same, each a little larger or smaller: by what a few steps of single precision lose.
    fn rounded(&self) -> Self {
        let mut rounded = self.clone();
        for (at, value) in rounded.values.iter_mut().enumerate() {
            let up = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0;
            *value *= if up { 1.0 + 4e-6 } else { 1.0 - 4e-6 };
        }
        rounded
    }

    /// A row of `[batch, rows, heads, width]`.
    fn row(&self, [batch, row, head]: [usize; 3]) -> &[f32] {
        let [rows, heads, width] = [1, 2, 3].map(|axis| self.dims[axis]);
        &self.values[((batch * rows + row) * heads + head) * width..][..width]
    }

    /// The largest, without its sign.
    fn largest(&self) -> f64 {
        let values = self.values.iter();
        values.fold(0.0, |largest, value| largest.max(f64::from(value.abs())))
    }
}

impl From<TensorData> for Numbers {
    fn from(data: TensorData) -> Self {
        Self {
            values: data.iter::<f32>().collect(),
            dims: data.shape().to_vec(),
        }
    }
}

/// What an operator gives.
struct Output {
    name: &'static str,
    numbers: Numbers,
    /// Which axis counts examples, if one does.
    examples: Option<usize>,
    /// Which axis counts heads of queries (and how many share one of keys), where heads do not meet.
    heads: Option<(usize, usize)>,
    /// The size of the numbers that it is summed of.
    unit: f64,
    /// Whether it is summed of numbers as large as those of the others of which this is true.
    is_together: bool,
    /// How far it may be from the reference, in parts of the largest number and of the unit.
    tolerance: f64,
}

/// To rounding: sums of tens of products in another order.
const TOLERANCE: f64 = 1e-4;

impl Output {
    fn new(name: &'static str, unit: f64) -> Self {
        Self {
            name,
            numbers: Numbers::default(),
            examples: Some(0),
            heads: None,
            unit,
            is_together: false,
            tolerance: TOLERANCE,
        }
    }

    fn by_heads(self, group: usize) -> Self {
        Self {
            heads: Some((2, group)),
            ..self
        }
    }

    fn examples(self, axis: Option<usize>) -> Self {
        Self {
            examples: axis,
            ..self
        }
    }

    fn is_finite(&self) -> bool {
        self.numbers.values.iter().all(|value| value.is_finite())
    }

    /// Its numbers, each with another one.
    fn beside<'a>(&'a self, other: &'a Numbers) -> impl Iterator<Item = (&'a f32, &'a f32)> {
        self.numbers.values.iter().zip(&other.values)
    }
}

/// One problem.
fn examine<O: Operator>(rng: &mut ChaCha8Rng, device: &Device) -> Result<()> {
    let problem = O::draw(rng);
    let kind = match rng.random_range(0..10) {
        0..=4 => Kind::Plain,
        5..=6 => Kind::Scaled,
        7..=8 => Kind::Extreme,
        _ => Kind::Poisoned,
    };
    let inputs = problem.inputs();
    let scales: Vec<f64> = match kind {
        Kind::Scaled => scales(&inputs, rng),
        _ => vec![1.0; inputs.len()],
    };
    let own = inputs.iter().zip(&scales);
    let numbers: Vec<Numbers> = own
        .map(|(input, scale)| draw(input, kind, *scale, rng))
        .collect();
    let mut place = Place {
        device: device.clone(),
        is_double: false,
        seed: rng.random(),
        drawn: 0,
    };
    let by_kernel = |numbers: &[Numbers], place: &mut Place| -> Vec<Output> {
        // The same way in memory each time, so that nothing else differs.
        place.drawn = 0;
        let tensors = numbers.iter().map(|one| place.float(one)).collect();
        let numbers = problem.kernel(tensors, device).into_iter();
        let outputs = problem.outputs(&scales).into_iter().zip(numbers);
        outputs
            .map(|(output, numbers)| Output { numbers, ..output })
            .collect()
    };
    let found = by_kernel(&numbers, &mut place);
    let about = |error: Error| anyhow!("{error}; {kind:?} {problem:?}");
    problem.check(&numbers, &found, kind).map_err(about)?;
    for output in &found {
        if !output.is_finite() {
            return Err(about(anyhow!("{} is not finite", output.name)));
        }
    }
    let mut own = inputs.iter().zip(&numbers);
    if !own.any(|(input, numbers)| input.by_example && !numbers.values.is_empty()) {
        // burn-flex panics over parts of tensors without numbers, as the references make them.
        let mut values = found.iter().flat_map(|output| &output.numbers.values);
        return if values.all(|value| *value == 0.0) {
            Ok(())
        } else {
            Err(about(anyhow!("nothing has a gradient")))
        };
    }
    match kind {
        Kind::Extreme => Ok(()),
        Kind::Plain | Kind::Scaled => {
            let expected = problem.reference(&numbers, &mut place);
            close(&found, &expected).or_else(|error| {
                // Rounding grows where sums cancel, as in normalisations of rows that are nearly constant: there the reference
                // is far from the same in double precision too, or that from what it is for inputs that hardly differ.
                place.is_double = true;
                let exact = problem.reference(&numbers, &mut place);
                let near: Vec<Numbers> = numbers.iter().map(Numbers::rounded).collect();
                let near = problem.reference(&near, &mut place);
                if is_rounding(&found, [&expected, &near], &exact) {
                    Ok(())
                } else {
                    Err(about(error))
                }
            })
        }
        Kind::Poisoned => {
            let Some((poisoned, example, heads)) = poison(&inputs, &numbers, rng) else {
                return Ok(());
            };
            let other = by_kernel(&poisoned, &mut place);
            problem.check(&poisoned, &other, kind).map_err(about)?;
            contained(&found, &other, example, heads).map_err(about)?;
            let mut numbers = poisoned.iter().flat_map(|numbers| &numbers.values);
            if numbers.any(|value| value.is_nan()) {
                seen(&found, &other).map_err(about)
            } else {
                Ok(())
            }
        }
    }
}

/// The powers of ten that a problem's inputs are multiplied by. What outputs are linear in is multiplied too, for gradients,
/// and the product stays where single precision is precise.
fn scales(inputs: &[Input], rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut free: i32 = rng.random_range(-30..=30);
    // Sums of products of keys and values stay below the largest number.
    let most = (34 - free.abs()).min(12);
    let product = rng.random_range(-most..=most);
    let power = |input: &Input| match input.scaled {
        Scaling::None => 0,
        Scaling::To => product,
        Scaling::Fro => -product,
        Scaling::Free => {
            free = -free;
            free
        }
    };
    let powers = inputs.iter().map(power);
    powers.map(|power| 10f64.powi(power)).collect()
}

/// Numbers for an input.
fn draw(input: &Input, kind: Kind, scale: f64, rng: &mut ChaCha8Rng) -> Numbers {
    let count = input.dims.iter().product();
    let most = 10f32.powi(input.most);
    let mut value = |_| match kind {
        Kind::Extreme => {
            let size = match rng.random_range(0..8) {
                0 => 0.0,
                1 => 1e-40,
                2 => 1e-30_f32.min(most),
                3 => most,
                4 => most * rng.random_range(0.0..1.0),
                5 => f32::MIN_POSITIVE,
                _ => rng.random_range(0.0..2.0_f32).min(most),
            };
            if rng.random() { size } else { -size }
        }
        _ => (rng.random_range(-input.size..input.size) * scale) as f32,
    };
    Numbers {
        values: (0..count).map(&mut value).collect(),
        dims: input.dims.clone(),
    }
}

/// The numbers with one that is none; of which example it is, and of which head of keys.
type Poisoned = (Vec<Numbers>, usize, Option<usize>);

fn poison(inputs: &[Input], numbers: &[Numbers], rng: &mut ChaCha8Rng) -> Option<Poisoned> {
    let own: Vec<usize> = (0..inputs.len())
        .filter(|at| inputs[*at].by_example && !numbers[*at].values.is_empty())
        .collect();
    let at = *own.get(rng.random_range(0..own.len().max(1)))?;
    let mut poisoned = numbers.to_vec();
    let Numbers { values, dims } = &mut poisoned[at];
    let size = values.len() / dims[0];
    let (example, place) = (rng.random_range(0..dims[0]), rng.random_range(0..size));
    values[example * size + place] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.random_range(0..3)];
    let head = inputs[at].heads.map(|group| {
        let width: usize = dims[3..].iter().product();
        place / width % dims[2] / group
    });
    Some((poisoned, example, head))
}

/// How tensors lie in memory.
struct Place {
    device: Device,
    /// In double precision.
    is_double: bool,
    seed: u64,
    drawn: u64,
}

impl Place {
    /// A number that is the same for the same tensor of a problem.
    fn next(&mut self, below: usize) -> usize {
        self.drawn += 1;
        mix(spread(self.seed, self.drawn)) as usize % below
    }

    /// A tensor of these numbers.
    fn tensor<const D: usize>(&mut self, numbers: &Numbers) -> Tensor<D> {
        let dims: [usize; D] = std::array::from_fn(|axis| numbers.dims[axis]);
        let data = TensorData::new(numbers.values.clone(), dims);
        let tensor = if self.is_double {
            Tensor::from_data(data, (&self.device, DType::F64))
        } else {
            Tensor::from_data(data, &self.device)
        };
        let (way, one, other) = (self.next(5), self.next(D), self.next(D));
        // What has no number lies nowhere.
        if numbers.values.is_empty() || self.is_double {
            return tensor;
        }
        // Copies what it is given, so that the way back is a view.
        let stored = |tensor: Tensor<D>| Tensor::<D>::from_data(tensor.into_data(), &self.device);
        match way {
            0 => stored(tensor.swap_dims(one, other)).swap_dims(one, other),
            1 => {
                let mut around = dims;
                around[one] = 1;
                let edge = Tensor::full(around, f32::NAN, &self.device);
                let wide = Tensor::cat(vec![edge.clone(), tensor, edge], one);
                stored(wide).narrow(one, 1, dims[one])
            }
            2 => stored(tensor.flip([one as isize])).flip([one as isize]),
            _ => tensor,
        }
    }

    /// The same, of the rank that the numbers have.
    fn float(&mut self, numbers: &Numbers) -> Float {
        match numbers.dims.len() {
            1 => self.tensor::<1>(numbers).into_dispatch(),
            2 => self.tensor::<2>(numbers).into_dispatch(),
            3 => self.tensor::<3>(numbers).into_dispatch(),
            _ => self.tensor::<4>(numbers).into_dispatch(),
        }
    }

    /// The same, whose gradient is asked for.
    fn tracked(&mut self, numbers: &Numbers) -> Float {
        let tensor = Tensor::<1>::from_dispatch(self.float(numbers));
        tensor.autodiff().require_grad().into_dispatch()
    }
}

/// A tensor of these integers.
fn integers<const D: usize>(values: &[i64], dims: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

/// A mask where there is one.
fn mask(values: Option<&Vec<bool>>, dims: [usize; 2], device: &Device) -> Option<Tensor<2, Bool>> {
    values.map(|values| Tensor::from_data(TensorData::new(values.clone(), dims), device))
}

/// The gradients of the sum of an output times its gradient, by tensors whose gradients are asked for. Of any rank: all is
/// element by element.
fn gradients(output: &Float, gradient: Float, tracked: &[Float]) -> Vec<Numbers> {
    let [output, gradient] = [output.clone(), gradient].map(Tensor::<1>::from_dispatch);
    let tracked: Vec<_> = (tracked.iter().cloned())
        .map(Tensor::<1>::from_dispatch)
        .collect();
    let mut sum = (output * gradient.autodiff()).sum();
    for one in &tracked {
        // The output may depend on none of them, and then there would be nothing to differentiate.
        sum = sum + one.clone().mul_scalar(0.0).sum();
    }
    let gradients = sum.backward();
    let found = tracked.iter().map(|one| one.grad(&gradients));
    let found = found.map(|one| one.expect("the sum is of all of them").into_data());
    found.map(Numbers::from).collect()
}

fn product(one: &[f32], other: &[f32]) -> f64 {
    let both = one.iter().zip(other);
    both.map(|(one, other)| f64::from(*one) * f64::from(*other))
        .sum()
}

/// A length: mostly within the range, sometimes one of the ends of all lengths.
fn length(rng: &mut ChaCha8Rng, usual: Range<usize>) -> usize {
    match rng.random_range(0..24) {
        0 => 0,
        1 | 2 => 1,
        _ => rng.random_range(usual),
    }
}

/// Rarely a length that kernels cut into tasks of several threads, for one axis of a problem: with two of them the
/// reference would take seconds. From numbers of its own, so that other problems of a seed are what they are without it.
fn long(rng: &ChaCha8Rng) -> Option<usize> {
    let mut own = rng.clone();
    own.set_stream(1);
    own.random_ratio(1, 32).then(|| own.random_range(257..600))
}

/// A width of heads: odd ones, one, and those of vectors of the machine.
fn width(rng: &mut ChaCha8Rng) -> usize {
    [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33][rng.random_range(0..11)]
}

/// So many of what is drawn.
fn drawn<T>(count: usize, draw: impl FnMut() -> T) -> Vec<T> {
    std::iter::repeat_with(draw).take(count).collect()
}

/// Powers of ten that query, key, value and the gradient of the context may reach: logits stay below 1e30, and the
/// products that gradients are made of below the largest number.
fn powers(rng: &mut ChaCha8Rng) -> [i32; 4] {
    [
        [13, 13, 10, 10],
        [3, 3, 30, 0],
        [0, 0, 0, 30],
        [20, 6, 10, 5],
    ][rng.random_range(0..4)]
}
