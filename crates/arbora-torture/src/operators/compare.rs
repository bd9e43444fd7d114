//! What outputs must be beside those of the reference, and beside those of inputs of which one is no number.

use super::{Numbers, Output, TOLERANCE};
use anyhow::{Result, bail, ensure};

/// Whether outputs are the same where the poison must not come.
pub fn contained(
    clean: &[Output],
    poisoned: &[Output],
    example: usize,
    head: Option<usize>,
) -> Result<()> {
    for (clean, poisoned) in clean.iter().zip(poisoned) {
        let Some(axis) = clean.examples else {
            continue;
        };
        let index = |at: usize, axis: usize| {
            let dims = &clean.numbers.dims;
            let below: usize = dims[axis + 1..].iter().product();
            at / below % dims[axis]
        };
        for (at, (one, other)) in clean.beside(&poisoned.numbers).enumerate() {
            let own = index(at, axis) == example
                && match (clean.heads, head) {
                    (Some((axis, group)), Some(head)) => index(at, axis) / group == head,
                    _ => true,
                };
            if !own && one.to_bits() != other.to_bits() {
                bail!(
                    "{}: what is no number in example {example} makes {other} of {one} at {at}",
                    clean.name
                );
            }
        }
    }
    Ok(())
}

/// Whether outputs that NaN alters show it: a model whose numbers are lost must not go on as if they were not. A query that
/// takes another path reads other numbers, and then one of its outputs shows it.
pub fn seen(clean: &[Output], poisoned: &[Output]) -> Result<()> {
    let altered: Vec<&Output> = clean
        .iter()
        .zip(poisoned)
        .filter(|(clean, poisoned)| {
            let mut both = clean.beside(&poisoned.numbers);
            both.any(|(one, other)| one.to_bits() != other.to_bits())
        })
        .map(|(_, poisoned)| poisoned)
        .collect();
    let names: Vec<&str> = altered.iter().map(|output| output.name).collect();
    let hidden = if names.contains(&"path") || names.contains(&"counts") {
        altered.iter().all(|output| output.is_finite())
    } else {
        altered.iter().any(|output| output.is_finite())
    };
    ensure!(
        altered.is_empty() || !hidden,
        "NaN alters {names:?} and is not seen"
    );
    Ok(())
}

/// Whether outputs are those of the reference.
pub fn close(got: &[Output], expected: &[Numbers]) -> Result<()> {
    let both = || got.iter().zip(expected);
    let together = both().filter(|(got, _)| got.is_together);
    let together = together.fold(0.0, |largest: f64, (_, one)| largest.max(one.largest()));
    for (got, expected) in both() {
        let dims = &got.numbers.dims;
        if *dims != expected.dims {
            bail!("{}: {dims:?}, expected {:?}", got.name, expected.dims);
        }
        let unit = if got.is_together {
            got.unit.max(together)
        } else {
            got.unit
        };
        // Below the smallest normal number there is no relative precision.
        let allowed = got.tolerance * unit.max(expected.largest());
        let allowed = allowed.max(f64::from(f32::MIN_POSITIVE));
        for (at, (one, other)) in got.beside(expected).enumerate() {
            let distance = (f64::from(*one) - f64::from(*other)).abs();
            // False for what is no number.
            let is_close = distance <= allowed;
            if !is_close {
                bail!(
                    "{}: {one} at {at}, expected {other} within {allowed:e}",
                    got.name
                );
            }
        }
    }
    Ok(())
}

/// Whether no output is much farther from the exact one than outputs that differ from it by rounding.
pub fn is_rounding(got: &[Output], rounded: [&[Numbers]; 2], exact: &[Numbers]) -> bool {
    let distance = |one: &Numbers, other: &Numbers| {
        let both = one.values.iter().zip(&other.values);
        let distances = both.map(|(one, other)| f64::from(one - other).abs());
        distances.fold(0.0, f64::max)
    };
    (0..got.len()).all(|at| {
        let (got, exact) = (&got[at], &exact[at]);
        let own = TOLERANCE * exact.largest().max(got.unit);
        let rounding = rounded.map(|rounded| distance(&rounded[at], exact));
        got.numbers.dims == exact.dims
            && distance(&got.numbers, exact) <= 4.0 * rounding[0].max(rounding[1]) + own
    })
}
