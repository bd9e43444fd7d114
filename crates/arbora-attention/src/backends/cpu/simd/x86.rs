//! Vectors of x86-64 processors.

use super::{Arithmetic, LANES};
use std::arch::x86_64::*;

// What the blocks below rely on. Code of `Avx512` and `Avx2` is reached through `super::run_avx512` and `super::run_avx2` alone,
// and `super::dispatch` calls these on processors that have the features they are compiled for. Instructions on registers rely on
// nothing else. Those that read or write memory do so at any address, through references to as many numbers as they take.

/// Operations that are one instruction.
macro_rules! per_register {
    ($($name:ident($($vector:ident),+): $instruction:ident;)+) => {$(
        #[inline(always)]
        fn $name($($vector: Self::Vector),+) -> Self::Vector {
            // SAFETY: on registers, for AVX-512 F.
            unsafe { $instruction($($vector),+) }
        }
    )+};
}

/// Operations that are one instruction for each half of the lanes.
macro_rules! per_two_registers {
    ($($name:ident($($vector:ident),+): $instruction:ident;)+) => {$(
        #[inline(always)]
        fn $name($($vector: Self::Vector),+) -> Self::Vector {
            // SAFETY: on registers, for AVX2 and FMA.
            unsafe { [$instruction($($vector[0]),+), $instruction($($vector[1]),+)] }
        }
    )+};
}

/// Only for code reached through [`super::run_avx512`].
#[derive(Clone, Copy)]
pub(super) struct Avx512;

impl Arithmetic for Avx512 {
    const NAME: &'static str = "AVX-512";

    type Vector = __m512;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn splat(number: f32) -> Self::Vector {
        // SAFETY: on registers, for AVX-512 F.
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self::Vector {
        // SAFETY: reads 16 numbers, at any address, of an array of as many; for AVX-512 F.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(vector: Self::Vector, to: &mut [f32; LANES]) {
        // SAFETY: writes 16 numbers, at any address, of an array of as many; for AVX-512 F.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), vector) }
    }

    per_register! {
        add_lanes(a, b): _mm512_add_ps;
        sub_lanes(a, b): _mm512_sub_ps;
        mul_lanes(a, b): _mm512_mul_ps;
        mul_add_lanes(a, b, c): _mm512_fmadd_ps;
        max_lanes(a, b): _mm512_max_ps;
    }

    #[inline(always)]
    fn scale_lanes_by_power(vector: Self::Vector, rounded: Self::Vector) -> Self::Vector {
        // SAFETY: on registers, for AVX-512 F.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(rounded));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(vector), exponent))
        }
    }

    #[inline(always)]
    fn interleave_lanes(a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2] {
        // SAFETY: on registers, for AVX-512 F; permutations take any index by its low bits.
        unsafe {
            // Lanes of the second operand count from 16.
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [
                _mm512_permutex2var_ps(a, low, b),
                _mm512_permutex2var_ps(a, high, b),
            ]
        }
    }

    #[inline(always)]
    fn sum_lanes(vector: Self::Vector) -> f32 {
        // SAFETY: on registers, for AVX-512 F and DQ and what is part of them.
        unsafe { sum_eight(fold(vector)) }
    }

    #[inline(always)]
    fn sum_lanes_of_four([a, b, c, d]: [Self::Vector; 4]) -> [f32; 4] {
        // SAFETY: on registers, for AVX-512 F and DQ and what is part of them.
        unsafe {
            let halves = [fold(a), fold(b), fold(c), fold(d)];
            sum_four_of_eight(halves)
        }
    }
}

/// Only for code reached through [`super::run_avx2`].
#[derive(Clone, Copy)]
pub(super) struct Avx2;

impl Arithmetic for Avx2 {
    const NAME: &'static str = "AVX2";

    type Vector = [__m256; 2];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn splat(number: f32) -> Self::Vector {
        // SAFETY: on registers, for AVX.
        unsafe { [_mm256_set1_ps(number); 2] }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self::Vector {
        let (low, high) = from.split_at(LANES / 2);
        // SAFETY: reads 8 numbers, at any address, of each half of an array of 16; for AVX.
        unsafe {
            [
                _mm256_loadu_ps(low.as_ptr()),
                _mm256_loadu_ps(high.as_ptr()),
            ]
        }
    }

    #[inline(always)]
    fn store(vector: Self::Vector, to: &mut [f32; LANES]) {
        let (low, high) = to.split_at_mut(LANES / 2);
        // SAFETY: writes 8 numbers, at any address, of each half of an array of 16; for AVX.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), vector[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), vector[1]);
        }
    }

    per_two_registers! {
        add_lanes(a, b): _mm256_add_ps;
        sub_lanes(a, b): _mm256_sub_ps;
        mul_lanes(a, b): _mm256_mul_ps;
        mul_add_lanes(a, b, c): _mm256_fmadd_ps;
        max_lanes(a, b): _mm256_max_ps;
        scale_lanes_by_power(vector, rounded): scale_eight_by_power;
    }

    #[inline(always)]
    fn interleave_lanes(a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2] {
        // SAFETY: the processor has AVX2.
        unsafe { [interleave_eight(a[0], b[0]), interleave_eight(a[1], b[1])] }
    }

    #[inline(always)]
    fn sum_lanes(vector: Self::Vector) -> f32 {
        // SAFETY: on registers, for AVX.
        unsafe { sum_eight(_mm256_add_ps(vector[0], vector[1])) }
    }

    #[inline(always)]
    fn sum_lanes_of_four([a, b, c, d]: [Self::Vector; 4]) -> [f32; 4] {
        // SAFETY: on registers, for AVX.
        unsafe {
            sum_four_of_eight([
                _mm256_add_ps(a[0], a[1]),
                _mm256_add_ps(b[0], b[1]),
                _mm256_add_ps(c[0], c[1]),
                _mm256_add_ps(d[0], d[1]),
            ])
        }
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn scale_eight_by_power(eight: __m256, rounded: __m256) -> __m256 {
    // SAFETY: on registers, for what the caller promises.
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(eight), exponent))
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn interleave_eight(a: __m256, b: __m256) -> [__m256; 2] {
    // SAFETY: on registers, for what the caller promises.
    unsafe {
        // Within halves of a register first, which are then sorted.
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        [
            _mm256_permute2f128_ps::<0x20>(low, high),
            _mm256_permute2f128_ps::<0x31>(low, high),
        ]
    }
}

/// The upper half added to the lower.
///
/// # Safety
/// The processor has AVX-512 F and DQ.
#[inline(always)]
unsafe fn fold(vector: __m512) -> __m256 {
    // SAFETY: on registers, for what the caller promises.
    unsafe {
        _mm256_add_ps(
            _mm512_castps512_ps256(vector),
            _mm512_extractf32x8_ps::<1>(vector),
        )
    }
}

/// # Safety
/// The processor has AVX.
#[inline(always)]
unsafe fn sum_four_of_eight([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    // SAFETY: on registers, for AVX, as the caller promises; the one store, to any address, is to an array of the four numbers
    // that it writes.
    unsafe {
        // Each addition leaves half as many partial sums per vector, two vectors side by side.
        let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let low = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
        let high = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
        let abcd = _mm256_add_ps(low, high);
        let low = _mm256_castps256_ps128(abcd);
        let high = _mm256_extractf128_ps::<1>(abcd);
        let mut sums = [0.0; 4];
        _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(low, high));
        sums
    }
}

/// # Safety
/// The processor has AVX.
#[inline(always)]
unsafe fn sum_eight(eight: __m256) -> f32 {
    // SAFETY: on registers, for what the caller promises.
    unsafe {
        let low = _mm256_castps256_ps128(eight);
        let high = _mm256_extractf128_ps::<1>(eight);
        let four = _mm_add_ps(low, high);
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}
