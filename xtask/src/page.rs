//! Pages of which one part is written by a command and the rest by hand.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::shell;

const END: &str = "<!-- end -->";

/// The line before the part that `command` makes.
fn begin(command: &str) -> String {
    format!("<!-- begin: made by `{command}` -->")
}

/// A page with the part that `command` makes replaced, and every other byte as it was.
///
/// # Errors
/// When the page has no such part.
pub fn put_generated(page: &str, command: &str, generated: &str) -> Result<String> {
    let begin = begin(command);
    let Some((before, rest)) = page.split_once(&begin) else {
        bail!("no line {begin}");
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("no line {END} after {begin}");
    };
    Ok(format!(
        "{before}{begin}\n\n{}\n\n{END}{after}",
        generated.trim()
    ))
}

/// Puts the generated part into the page at `path`.
///
/// # Errors
/// When the page cannot be read or written, or has no such part.
pub fn update(path: &Path, command: &str, generated: &str) -> Result<()> {
    let old =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let new = put_generated(&old, command, generated)
        .with_context(|| format!("in {}", path.display()))?;
    replace(path, &new)
}

/// Writes beside and renames: a page is whole or as it was.
///
/// # Errors
/// When the file cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("unfinished");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The machine that made a page.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub threads: usize,
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_string())
        });
        Self {
            cpu: model.unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH)),
            threads: std::thread::available_parallelism().map_or(1, |count| count.get()),
        }
    }
}

/// The day, in universal time.
///
/// # Errors
/// When `date` cannot be run.
pub fn today() -> Result<String> {
    let date = shell::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(date.trim().to_string())
}

/// A number with a comma between groups of three digits.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_keeps_what_people_wrote() {
        let begin = begin("cargo xtask bench");
        let page = format!("# Title\n\nBefore.\n\n{begin}\nold\n{END}\n\nAfter.\n");
        let once = put_generated(&page, "cargo xtask bench", "new\n").unwrap();
        assert_eq!(
            once,
            format!("# Title\n\nBefore.\n\n{begin}\n\nnew\n\n{END}\n\nAfter.\n")
        );
        let again = put_generated(&once, "cargo xtask bench", "new").unwrap();
        assert_eq!(again, once);
        assert!(put_generated(&once, "cargo xtask reproduce", "new").is_err());
        assert!(put_generated("# Title\n", "cargo xtask bench", "new").is_err());
    }

    #[test]
    fn digits_come_in_threes() {
        assert_eq!(thousands(12), "12");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
