//! Vector arithmetic that is chosen at run time.
//!
//! Inner loops are written over plain slices and arrays of [`LANES`] numbers, as generic code marked
//! `#[inline(always)]`. [`dispatch`] compiles them once per instruction set and picks the widest that
//! the processor has; the compiler turns the loops into vector instructions of that set.

/// Numbers per vector: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// The instructions that a kernel is compiled for.
///
/// Loops over lanes become vector instructions by themselves; rows of a matrix do not, so those are
/// read and written as [`Vector`](Self::Vector)s.
pub(crate) trait Arithmetic: Copy {
    /// The instructions, as people call them.
    const NAME: &'static str;

    /// [`LANES`] numbers in registers.
    type Vector: Copy;

    /// Whether there are registers for more than sixteen vectors.
    const MANY_REGISTERS: bool;

    /// `a * b + c`, with one rounding where the processor has an instruction for it. Elsewhere one
    /// rounding would cost a function call.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;

    /// The same number in every lane.
    fn splat(number: f32) -> Self::Vector;

    /// Reads a vector.
    fn load(from: &[f32; LANES]) -> Self::Vector;

    /// Writes a vector.
    fn store(vector: Self::Vector, to: &mut [f32; LANES]);

    /// `a + b` per lane.
    fn add_lanes(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a - b` per lane.
    fn sub_lanes(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a * b` per lane.
    fn mul_lanes(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `a * b + c` per lane.
    fn mul_add_lanes(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The greater number per lane, `b` where either is NaN.
    fn max_lanes(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `vector * 2^n` per lane, where `rounded` is `n + ROUND` for an integer `n`, and the product is a
    /// normal number.
    fn scale_lanes_by_power(vector: Self::Vector, rounded: Self::Vector) -> Self::Vector;

    /// The lanes of both in turns: those of the first halves, and those of the second halves.
    fn interleave_lanes(a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2];

    /// The sum over lanes: halves add to halves.
    fn sum_lanes(vector: Self::Vector) -> f32;

    /// The sums over lanes of four vectors, which cost less together than one by one.
    fn sum_lanes_of_four(vectors: [Self::Vector; 4]) -> [f32; 4];
}

/// What every processor has.
#[derive(Clone, Copy)]
struct Portable<const FUSED: bool>;

/// Operations of two numbers, lane by lane.
macro_rules! per_lane {
    ($($name:ident: |$a:ident, $b:ident| $result:expr;)+) => {$(
        #[inline(always)]
        fn $name(mut vector: Self::Vector, other: Self::Vector) -> Self::Vector {
            for (lane, $b) in vector.iter_mut().zip(other) {
                let $a = *lane;
                *lane = $result;
            }
            vector
        }
    )+};
}

impl<const FUSED: bool> Arithmetic for Portable<FUSED> {
    const NAME: &'static str = "portable";

    type Vector = [f32; LANES];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        if FUSED { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    fn splat(number: f32) -> Self::Vector {
        [number; LANES]
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self::Vector {
        *from
    }

    #[inline(always)]
    fn store(vector: Self::Vector, to: &mut [f32; LANES]) {
        *to = vector;
    }

    per_lane! {
        add_lanes: |a, b| a + b;
        sub_lanes: |a, b| a - b;
        mul_lanes: |a, b| a * b;
        max_lanes: |a, b| if a > b { a } else { b };
    }

    #[inline(always)]
    fn mul_add_lanes(a: Self::Vector, b: Self::Vector, mut c: Self::Vector) -> Self::Vector {
        for (c, (a, b)) in c.iter_mut().zip(a.into_iter().zip(b)) {
            *c = Self::mul_add(a, b, *c);
        }
        c
    }

    #[inline(always)]
    fn scale_lanes_by_power(mut vector: Self::Vector, rounded: Self::Vector) -> Self::Vector {
        // The integer goes straight to the exponent; the high bits of `ROUND` are shifted out.
        for (number, rounded) in vector.iter_mut().zip(rounded) {
            let bits = number.to_bits().wrapping_add(rounded.to_bits() << 23);
            *number = f32::from_bits(bits);
        }
        vector
    }

    #[inline(always)]
    fn interleave_lanes(a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2] {
        let mut both = [[0.0; LANES]; 2];
        let pairs = a.into_iter().zip(b);
        for (at, (a, b)) in pairs.enumerate() {
            let half = &mut both[at / (LANES / 2)];
            half[2 * at % LANES] = a;
            half[2 * at % LANES + 1] = b;
        }
        both
    }

    #[inline(always)]
    fn sum_lanes(vector: Self::Vector) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|lane| vector[lane] + vector[lane + 8]);
        let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn sum_lanes_of_four(vectors: [Self::Vector; 4]) -> [f32; 4] {
        vectors.map(Self::sum_lanes)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

/// Work to be compiled for each instruction set. `run` and all that it calls must be
/// `#[inline(always)]`, or the called code keeps the instructions that every processor has.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;

    /// Does the work.
    fn run<A: Arithmetic>(self) -> Self::Output;
}

/// Runs a kernel with the widest instructions of this processor.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the processor has all features that the function is compiled for, as just asked from the same list.
            return unsafe { run_avx512(kernel) };
        }
        if has_avx2() {
            // SAFETY: as above.
            return unsafe { run_avx2(kernel) };
        }
        kernel.run::<Portable<false>>()
    }
    #[cfg(target_arch = "aarch64")]
    {
        // Every such processor has fused multiplication and vectors of four.
        kernel.run::<Portable<true>>()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        kernel.run::<Portable<false>>()
    }
}

/// The name of the instructions that [`dispatch`] picks on this processor.
pub(crate) fn instructions() -> &'static str {
    struct Name;

    impl Kernel for Name {
        type Output = &'static str;

        #[inline(always)]
        fn run<A: Arithmetic>(self) -> &'static str {
            A::NAME
        }
    }

    dispatch(Name)
}

/// A function that runs a kernel compiled for some features of a processor, and one that says whether the processor has them: of one
/// list, so that none is used that nobody asked for.
#[cfg(target_arch = "x86_64")]
macro_rules! compiled_for {
    ($run:ident, $has:ident, $arithmetic:ty: $($feature:tt)+) => {
        $(#[target_feature(enable = $feature)])+
        fn $run<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<$arithmetic>()
        }

        fn $has() -> bool {
            $(is_x86_feature_detected!($feature))&&+
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled_for!(run_avx512, has_avx512, x86::Avx512: "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma");
#[cfg(target_arch = "x86_64")]
compiled_for!(run_avx2, has_avx2, x86::Avx2: "avx2" "fma");

/// `sum(a * b)` over two slices of one length, in a fixed order.
#[inline(always)]
pub(crate) fn dot<A: Arithmetic>(a: &[f32], b: &[f32]) -> f32 {
    let (a_vectors, a_rest) = a.as_chunks::<LANES>();
    let (b_vectors, b_rest) = b.as_chunks::<LANES>();
    let mut rest = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        rest = A::mul_add(*a, *b, rest);
    }
    if a_vectors.is_empty() {
        return rest;
    }
    let mut total = A::splat(0.0);
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        total = A::mul_add_lanes(A::load(a), A::load(b), total);
    }
    A::sum_lanes(total) + rest
}

/// The dot products of four neighbouring parts, of `WIDTH` numbers each, of two slices. `WIDTH` is a
/// multiple of [`LANES`].
#[inline(always)]
pub(crate) fn dot_of_four<A: Arithmetic, const WIDTH: usize>(a: &[f32], b: &[f32]) -> [f32; 4] {
    let (a, _) = a[..4 * WIDTH].as_chunks::<LANES>();
    let (b, _) = b[..4 * WIDTH].as_chunks::<LANES>();
    let vectors = WIDTH / LANES;
    // A closure would be compiled for every processor, and its vectors with it.
    let mut totals = [A::splat(0.0); 4];
    for (part, total) in totals.iter_mut().enumerate() {
        for at in part * vectors..(part + 1) * vectors {
            *total = A::mul_add_lanes(A::load(&a[at]), A::load(&b[at]), *total);
        }
    }
    A::sum_lanes_of_four(totals)
}

/// `target += factor * source`
#[inline(always)]
pub(crate) fn add_scaled<A: Arithmetic>(target: &mut [f32], factor: f32, source: &[f32]) {
    let (targets, target_rest) = target.as_chunks_mut::<LANES>();
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let factors = A::splat(factor);
    for (target, source) in targets.iter_mut().zip(sources) {
        A::store(
            A::mul_add_lanes(factors, A::load(source), A::load(target)),
            target,
        );
    }
    for (target, source) in target_rest.iter_mut().zip(source_rest) {
        *target = A::mul_add(factor, *source, *target);
    }
}

/// `1.5 * 2^23`: adding it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `e^x` to within 2 units in the last place; exactly 0 below the least normal result, and infinite
/// above the greatest finite one.
#[inline(always)]
pub(crate) fn exp<A: Arithmetic>(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_83;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(LOWEST, HIGHEST);
    let rounded = A::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let count = rounded - ROUND;
    let rest = A::mul_add(count, -LN2_HIGH, clamped);
    let rest = A::mul_add(count, -LN2_LOW, rest);
    // Minimax polynomial of e^r on |r| <= ln(2) / 2 (Cephes).
    let mut series = 1.987_569_1e-4;
    series = A::mul_add(series, rest, 1.398_199_9e-3);
    series = A::mul_add(series, rest, 8.333_452e-3);
    series = A::mul_add(series, rest, 4.166_579_6e-2);
    series = A::mul_add(series, rest, 1.666_666_5e-1);
    series = A::mul_add(series, rest, 0.5);
    let value = A::mul_add(series, rest * rest, rest) + 1.0;
    // 2^count in two factors, since 2^128 is no number of its own.
    let count = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = count >> 1;
    let power = |count: i32| f32::from_bits(((count + 127) << 23) as u32);
    let value = value * power(half) * power(count - half);
    match (x < LOWEST, x > HIGHEST) {
        (true, _) => 0.0,
        (_, true) => f32::INFINITY,
        _ => value,
    }
}

/// As [`exp`] for a vector in registers, with less to do: `x` is at most a little above 0, as logits less
/// their maximum are, and far below it the result is the least normal number, not 0. To within 2 units
/// in the last place of that number or of the result, whichever is greater, beside what `x` loses to
/// rounding in `x * log2(e)`.
#[inline(always)]
pub(crate) fn exp_lanes_up_to_zero<A: Arithmetic>(x: A::Vector) -> A::Vector {
    let round = A::splat(ROUND);
    let x = A::mul_lanes(x, A::splat(std::f32::consts::LOG2_E));
    // In this order NaN stays NaN.
    let x = A::max_lanes(A::splat(-126.0), x);
    let rounded = A::add_lanes(x, round);
    let rest = A::sub_lanes(x, A::sub_lanes(rounded, round));
    // Minimax polynomial of 2^r on |r| <= 1/2.
    let mut series = A::splat(1.546_144_5e-4);
    for factor in [
        1.340_042_8e-3,
        9.618_057e-3,
        5.550_327e-2,
        2.402_265e-1,
        6.931_472e-1,
        1.0,
    ] {
        series = A::mul_add_lanes(series, rest, A::splat(factor));
    }
    A::scale_lanes_by_power(series, rounded)
}

/// Natural logarithm of a positive normal number, to within 2 units in the last place.
#[inline(always)]
pub(crate) fn ln<A: Arithmetic>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    let bits = x.to_bits() as i32;
    // x = mantissa * 2^exponent with the mantissa in [0.5, 1).
    let exponent = ((bits >> 23) - 126) as f32;
    let mantissa = f32::from_bits(((bits & 0x007f_ffff) | 0x3f00_0000) as u32);
    let below = mantissa < ROOT_HALF;
    let exponent = if below { exponent - 1.0 } else { exponent };
    let rest = if below { mantissa + mantissa } else { mantissa } - 1.0;
    // Minimax polynomial of ln(1 + r) on sqrt(1/2) - 1 <= r <= sqrt(2) - 1 (Cephes).
    let square = rest * rest;
    let mut series = 7.037_683_6e-2;
    series = A::mul_add(series, rest, -1.151_461e-1);
    series = A::mul_add(series, rest, 1.167_699_9e-1);
    series = A::mul_add(series, rest, -1.242_014_1e-1);
    series = A::mul_add(series, rest, 1.424_932_3e-1);
    series = A::mul_add(series, rest, -1.666_805_8e-1);
    series = A::mul_add(series, rest, 2.000_071_5e-1);
    series = A::mul_add(series, rest, -2.499_999_4e-1);
    series = A::mul_add(series, rest, 3.333_333e-1);
    let value = A::mul_add(exponent, LN2_LOW, series * rest * square);
    let value = A::mul_add(-0.5, square, value);
    A::mul_add(exponent, LN2_HIGH, rest + value)
}

/// Asks for the memory of a slice ahead of its use.
#[inline(always)]
pub(crate) fn prefetch(slice: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in slice.chunks(16) {
        // SAFETY: a hint that every such processor has (SSE). It reads nothing and faults at no address; this one is inside the
        // slice.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                line.as_ptr().cast(),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that is one expression.
    macro_rules! kernel {
        ($name:ident($($input:ident: $type:ty)?) -> $output:ty, |$arithmetic:ident| $result:expr) => {
            #[derive(Clone)]
            struct $name($($type)?);

            impl Kernel for $name {
                type Output = $output;

                #[inline(always)]
                fn run<$arithmetic: Arithmetic>(self) -> $output {
                    $(let $input = self.0;)?
                    $result
                }
            }
        };
    }

    kernel!(Exp(x: Vec<f32>) -> Vec<f32>, |A| x.into_iter().map(exp::<A>).collect());
    kernel!(Ln(x: Vec<f32>) -> Vec<f32>, |A| x.into_iter().map(ln::<A>).collect());

    /// What a kernel gives with the vectors of this processor, and with portable ones.
    fn both<K: Kernel + Clone>(kernel: K) -> [K::Output; 2] {
        [dispatch(kernel.clone()), kernel.run::<Portable<false>>()]
    }

    /// Largest distance to the exact value, in units in the last place of the result.
    fn worst(inputs: Vec<f32>, got: Vec<f32>, exact: impl Fn(f64) -> f64) -> f64 {
        inputs
            .into_iter()
            .zip(got)
            .map(|(x, got)| {
                let exact = exact(f64::from(x));
                let unit = f64::from((exact as f32).abs().max(f32::MIN_POSITIVE))
                    * f64::from(f32::EPSILON);
                (f64::from(got) - exact).abs() / unit
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exponentials_are_within_two_units() {
        let inputs: Vec<f32> = (-87_000..88_000).map(|x| x as f32 / 1000.0).collect();
        for got in both(Exp(inputs.clone())) {
            assert!(worst(inputs.clone(), got, f64::exp) <= 2.0);
        }
    }

    // Of -100 to 0.
    kernel!(ExpLanes() -> Vec<f32>, |A| {
        let mut results = Vec::new();
        for first in (0..100_000).step_by(LANES) {
            let x: [f32; LANES] = std::array::from_fn(|lane| (first + lane) as f32 / -1000.0);
            let mut numbers = [0.0; LANES];
            A::store(exp_lanes_up_to_zero::<A>(A::load(&x)), &mut numbers);
            results.extend(numbers);
        }
        results
    });

    #[test]
    fn exponentials_of_lanes_are_close_and_end_near_zero() {
        for got in both(ExpLanes()) {
            for (index, got) in got.into_iter().enumerate() {
                let x = f64::from(index as f32 / -1000.0);
                // What the argument and its factor lose by rounding is a share of the result.
                let share = f64::from(f32::EPSILON) * (2.0 + x.abs());
                let error = (f64::from(got) - x.exp()).abs();
                assert!(
                    error <= share * x.exp() + f64::from(f32::MIN_POSITIVE),
                    "{x}"
                );
            }
        }
    }

    // What each operation on vectors makes of some numbers, none of which it rounds.
    kernel!(Operations() -> Vec<[f32; LANES]>, |A| {
        let a = A::load(&std::array::from_fn(|lane| lane as f32 - 7.5));
        let b = A::load(&std::array::from_fn(|lane| 3.0 - lane as f32));
        let [low, high] = A::interleave_lanes(a, b);
        let integers = A::add_lanes(A::add_lanes(a, A::splat(0.5)), A::splat(ROUND));
        let vectors = [
            A::splat(2.5),
            A::add_lanes(a, b),
            A::sub_lanes(a, b),
            A::mul_lanes(a, b),
            A::mul_add_lanes(a, b, A::splat(0.5)),
            A::max_lanes(a, b),
            A::scale_lanes_by_power(A::splat(1.5), integers),
            low,
            high,
        ];
        let mut results = vec![[0.0; LANES]; vectors.len()];
        for (vector, result) in vectors.into_iter().zip(&mut results) {
            A::store(vector, result);
        }
        results
    });

    #[test]
    fn vectors_of_all_kinds_compute_the_same() {
        let portable = Operations().run::<Portable<false>>();
        assert_eq!(portable, Operations().run::<Portable<true>>());
        assert_eq!(portable, dispatch(Operations()));
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            // SAFETY: the processor has all features that the function is compiled for.
            assert_eq!(portable, unsafe { run_avx2(Operations()) });
        }
        let [power, low, high] = portable.last_chunk().expect("there are nine operations");
        let lanes = std::array::from_fn(|lane| 1.5 * f32::powi(2.0, lane as i32 - 7));
        assert_eq!(*power, lanes);
        assert_eq!(low[..4], [-7.5, 3.0, -6.5, 2.0]);
        assert_eq!(high[..4], [0.5, -5.0, 1.5, -6.0]);
    }

    #[test]
    fn exponentials_end_in_zero_and_infinity() {
        let got = dispatch(Exp(vec![-1e30, -88.0, 0.0, 89.0, 1e30]));
        assert_eq!(got, [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
    }

    #[test]
    fn logarithms_are_within_two_units_away_from_one() {
        let inputs: Vec<f32> = (1..100_000)
            .map(|x| x as f32 / 50.0)
            .filter(|x| (x - 1.0).abs() > 0.01)
            .collect();
        for got in both(Ln(inputs.clone())) {
            assert!(worst(inputs.clone(), got, f64::ln) <= 2.0);
        }
        assert_eq!(dispatch(Ln(vec![1.0])), [0.0]);
        assert!((dispatch(Ln(vec![f32::MIN_POSITIVE]))[0] - f32::MIN_POSITIVE.ln()).abs() < 1e-5);
    }

    #[test]
    fn four_dot_products_at_once_are_four_dot_products() {
        kernel!(Dots() -> ([f32; 4], [f32; 4]), |A| {
            let a: Vec<f32> = (0..128).map(|x| (x % 7) as f32).collect();
            let b: Vec<f32> = (0..128).map(|x| (x % 5) as f32 - 2.0).collect();
            let single = |part: usize| {
                let range = part * 32..(part + 1) * 32;
                dot::<A>(&a[range.clone()], &b[range])
            };
            (dot_of_four::<A, 32>(&a, &b), std::array::from_fn(single))
        });
        // Small integers add up without rounding, in any order.
        for (four, single) in both(Dots()) {
            assert_eq!(four, single);
        }
    }

    #[test]
    fn dot_products_take_any_length() {
        kernel!(Dot(length: usize) -> f32, |A| {
            let ones = vec![1.0; length];
            dot::<A>(&ones, &ones)
        });
        for length in [0, 1, 15, 16, 17, 48, 67] {
            assert_eq!(dispatch(Dot(length)), length as f32);
        }
    }
}
