//! What code numbers are of, and when they were made.

use std::process::Command;

use anyhow::Result;

use crate::shell;

/// The code and the day that numbers of now are of.
pub fn now() -> Result<(String, String)> {
    Ok((commit()?, today()?))
}

/// The commit that is checked out, and whether the code is another.
fn commit() -> Result<String> {
    let git =
        |args: &[&str]| shell::output(Command::new("git").current_dir(shell::root()).args(args));
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let code = ["Cargo.lock", "Cargo.toml", "benches", "crates"];
    let changed = git(&[&["status", "--porcelain", "--"], &code[..]].concat())?;
    Ok(match changed.trim() {
        "" => format!("commit {}", commit.trim()),
        _ => format!("commit {} with uncommitted changes", commit.trim()),
    })
}

/// The day, in universal time.
fn today() -> Result<String> {
    let date = shell::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(date.trim().to_string())
}
