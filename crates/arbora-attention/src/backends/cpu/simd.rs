//! Vector arithmetic that is chosen at run time.
//!
//! Inner loops are written over plain slices and arrays of [`LANES`] numbers, as generic code marked
//! `#[inline(always)]`. [`dispatch`] compiles them once per instruction set and picks the widest that
//! the processor has; the compiler turns the loops into vector instructions of that set.

/// Numbers per vector: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// How numbers are multiplied and added.
pub(crate) trait Arithmetic: Copy {
    /// `a * b + c`
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// With one rounding, where the processor has an instruction for it.
#[derive(Clone, Copy)]
struct Fused;

/// With two roundings: without that instruction, one rounding costs a function call.
#[derive(Clone, Copy)]
struct Separate;

impl Arithmetic for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Arithmetic for Separate {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

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
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor has these instructions.
            return unsafe { run_avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has these instructions.
            return unsafe { run_avx2(kernel) };
        }
        kernel.run::<Separate>()
    }
    #[cfg(target_arch = "aarch64")]
    {
        // Every such processor has fused multiplication and vectors of four.
        kernel.run::<Fused>()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        kernel.run::<Separate>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Fused>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Fused>()
}

/// `sum(a * b)` over two slices of one length, in a fixed order.
#[inline(always)]
pub(crate) fn dot<A: Arithmetic>(a: &[f32], b: &[f32]) -> f32 {
    let (a_vectors, a_rest) = a.as_chunks::<LANES>();
    let (b_vectors, b_rest) = b.as_chunks::<LANES>();
    let mut total = [0.0; LANES];
    for (a, b) in a_vectors.iter().zip(b_vectors) {
        for lane in 0..LANES {
            total[lane] = A::mul_add(a[lane], b[lane], total[lane]);
        }
    }
    let mut rest = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        rest = A::mul_add(*a, *b, rest);
    }
    match a_vectors.is_empty() {
        true => rest,
        false => sum_lanes(total) + rest,
    }
}

/// `target += factor * source`
#[inline(always)]
pub(crate) fn add_scaled<A: Arithmetic>(target: &mut [f32], factor: f32, source: &[f32]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target = A::mul_add(factor, *source, *target);
    }
}

/// Halves add to halves, so that the sum stays in vector registers.
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut eight = [0.0; 8];
    for lane in 0..8 {
        eight[lane] = lanes[lane] + lanes[lane + 8];
    }
    let mut four = [0.0; 4];
    for lane in 0..4 {
        four[lane] = eight[lane] + eight[lane + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// `e^x` to within 2 units in the last place; exactly 0 below the least normal result, and infinite
/// above the greatest finite one.
#[inline(always)]
pub(crate) fn exp<A: Arithmetic>(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_83;
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
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
        // SAFETY: a hint; it reads nothing, and the address is inside the slice.
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

    macro_rules! map_kernel {
        ($name:ident, $function:ident) => {
            struct $name(Vec<f32>);
            impl Kernel for $name {
                type Output = Vec<f32>;
                #[inline(always)]
                fn run<A: Arithmetic>(self) -> Vec<f32> {
                    self.0.into_iter().map(|x| $function::<A>(x)).collect()
                }
            }
        };
    }
    map_kernel!(Exp, exp);
    map_kernel!(Ln, ln);

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
        for got in [
            dispatch(Exp(inputs.clone())),
            Exp(inputs.clone()).run::<Separate>(),
        ] {
            assert!(worst(inputs.clone(), got, f64::exp) <= 2.0);
        }
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
        for got in [
            dispatch(Ln(inputs.clone())),
            Ln(inputs.clone()).run::<Separate>(),
        ] {
            assert!(worst(inputs.clone(), got, f64::ln) <= 2.0);
        }
        assert_eq!(dispatch(Ln(vec![1.0])), [0.0]);
        assert!((dispatch(Ln(vec![f32::MIN_POSITIVE]))[0] - f32::MIN_POSITIVE.ln()).abs() < 1e-5);
    }

    #[test]
    fn dot_products_take_any_length() {
        struct Dot(usize);
        impl Kernel for Dot {
            type Output = f32;
            #[inline(always)]
            fn run<A: Arithmetic>(self) -> f32 {
                let ones = vec![1.0; self.0];
                dot::<A>(&ones, &ones)
            }
        }
        for length in [0, 1, 15, 16, 17, 48, 67] {
            assert_eq!(dispatch(Dot(length)), length as f32);
        }
    }
}
