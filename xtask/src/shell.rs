//! How tasks find the workspace and call other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The root of the workspace.
pub fn root() -> PathBuf {
    // Cargo sets the variable for `cargo run`; the built-in value serves a binary started by hand.
    let manifest = std::env::var("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_string());
    Path::new(&manifest)
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

/// The cargo that runs this task, started in the root of the workspace.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    // `cargo run` describes this crate to us in variables that some build scripts watch (ring's):
    // passed on, they would rebuild what cargo built when called by hand.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name();
    let words = program.into_iter().chain(command.get_args());
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// A word as a shell takes it, in quotes where it would not take it as it is.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=+.,:/@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command to its end with the terminal's output.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status();
    let status = status.with_context(|| format!("cannot start `{}`", shown(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", shown(command));
    Ok(())
}

/// Runs a command and returns its standard output. Its standard error is shown only when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    read(command, Stdio::piped())
}

/// Runs a command and returns its standard output. Its standard error goes to the terminal.
pub fn stdout(command: &mut Command) -> Result<String> {
    read(command, Stdio::inherit())
}

fn read(command: &mut Command, errors: Stdio) -> Result<String> {
    let out = command.stdin(Stdio::null()).stderr(errors).output();
    let out = out.with_context(|| format!("cannot start `{}`", shown(command)))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    let failure = format!("`{}` failed ({})\n{errors}", shown(command), out.status);
    ensure!(out.status.success(), "{}", failure.trim_end());
    String::from_utf8(out.stdout).with_context(|| format!("output of `{}`", shown(command)))
}

/// A program that cargo has compiled.
#[derive(Deserialize)]
pub struct Artifact {
    pub manifest_path: PathBuf,
    pub target: Target,
    pub executable: PathBuf,
}

/// What a program is compiled of.
#[derive(Deserialize)]
pub struct Target {
    pub name: String,
    /// `test`, `bin` and others.
    pub kind: Vec<String>,
}

/// The programs that a call of cargo compiles. What it says about that goes to the terminal.
pub fn compiled(cargo: &mut Command, what: &str) -> Result<Vec<Artifact>> {
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let messages = stdout(cargo).with_context(|| format!("{what} does not compile"))?;
    // Messages about other things lack a field.
    let programs = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(programs.collect())
}

/// Whether `program` can be started from here.
pub fn have(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_shell_takes_them() {
        let mut command = Command::new("/usr/bin/arbora");
        command.args(["--set", "a=1", r#"b={"kind":"x"}"#, "it's"]);
        assert_eq!(
            shown(&command),
            r#"arbora --set a=1 'b={"kind":"x"}' 'it'\''s'"#
        );
    }
}
