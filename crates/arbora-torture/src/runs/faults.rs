//! System calls that fail, or are the last ones of a process: each of those that a job makes on its files.
//!
//! `strace` counts them in an undisturbed job, and later lets one fail, or kills the process as it makes it.

use super::{Yard, is_one_line, said, targets_of};
use crate::frame::{Target, Tries};
use anyhow::{Context as _, Result, ensure};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

/// Calls on files, and how each can fail beside the end of the process.
const CALLS: [(&str, &[&str]); 18] = [
    ("openat", &["ENOSPC", "EROFS", "EACCES", "EMFILE"]),
    ("mkdir", &["ENOSPC", "EROFS", "EACCES"]),
    ("write", &["ENOSPC", "EIO"]),
    ("fsync", &["EIO", "ENOSPC"]),
    ("fdatasync", &["EIO", "ENOSPC"]),
    ("rename", &["EIO", "ENOSPC", "EROFS"]),
    ("renameat", &["EIO", "ENOSPC", "EROFS"]),
    ("statx", &["EIO"]),
    ("newfstatat", &["EIO"]),
    ("unlink", &["EROFS", "EIO"]),
    ("unlinkat", &["EROFS", "EIO"]),
    ("rmdir", &["EROFS", "EIO"]),
    ("flock", &["EIO", "ENOLCK", "EOPNOTSUPP"]),
    ("read", &["EIO"]),
    ("getdents64", &["EIO"]),
    ("ftruncate", &["EIO"]),
    ("readlink", &["EIO", "EACCES"]),
    ("close", &[]),
];

/// Calls on a file that cannot fail of themselves, and the start of the process, which names the folder.
const HARMLESS: [&str; 3] = ["fcntl", "lseek", "execve"];

/// Every job.
pub fn targets() -> Vec<Target> {
    targets_of(|yard| {
        let mut faults = faults(&yard)?;
        // What little time allows for is of all kinds.
        faults.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        Ok(Tries::listed(faults, move |fault| yard.failing(fault)))
    })
}

/// What happens to a call that a job makes on a file of its own.
struct Fault {
    /// Of the call.
    name: &'static str,
    /// How many of this name its thread made before, and it.
    number: usize,
    /// As `strace` takes it.
    what: String,
}

/// Everything that can happen to every call of a job on its own files.
fn faults(yard: &Yard) -> Result<Vec<Fault>> {
    yard.clear()?;
    let trace = yard.path("trace");
    let mut command = traced(yard, "%file,%desc");
    command.arg("-y").arg("-o").arg(&trace);
    let output = called(command, yard).output();
    let output = output.context("cannot start strace")?;
    ensure!(output.status.success(), "under strace: {}", said(&output));
    let out = format!("{}/", yard.path("out").display());
    let mut made: HashMap<(String, &str), usize> = HashMap::new();
    let mut faults = Vec::new();
    for line in std::fs::read_to_string(&trace)?.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        // The second half of a call that another thread's came between.
        let Some((name, _)) = call.split_once('(').filter(|_| !call.starts_with('<')) else {
            continue;
        };
        let is_own = call.contains("\"out") || call.contains(&out);
        let Some((name, errors)) = CALLS.iter().find(|(known, _)| *known == name) else {
            ensure!(
                !is_own || HARMLESS.contains(&name),
                "no fault is known for {call}"
            );
            continue;
        };
        let number = made.entry((thread.into(), name)).or_default();
        *number += 1;
        if is_own {
            let errors = errors.iter().map(|error| format!("error={error}"));
            faults.extend(errors.chain(["signal=KILL".into()]).map(|what| Fault {
                name,
                number: *number,
                what,
            }));
        }
    }
    ensure!(!faults.is_empty(), "strace saw no call on {out}");
    Ok(faults)
}

/// The beginning of a call of `strace`, in the folder of a job.
fn traced(yard: &Yard, names: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qqq", "--seccomp-bpf", "-e", "signal=none", "-e"]);
    command.arg(format!("trace={names}"));
    command.current_dir(&yard.folder);
    command
}

/// The job under `strace`.
fn called(mut strace: Command, yard: &Yard) -> Command {
    let job = yard.command();
    strace.arg("--").arg(job.get_program()).args(job.get_args());
    for (name, value) in job.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace.stdin(std::process::Stdio::null());
    strace
}

impl Yard {
    /// Lets one call fail, or be the last, and goes on with the job.
    fn failing(&self, Fault { name, number, what }: &Fault) -> Result<()> {
        self.clear()?;
        let mut command = traced(self, name);
        command.args(["-e", &format!("inject={name}:{what}:when={number}")]);
        let what = format!("{name} number {number}, {what}");
        command.args(["-o", "/dev/null"]);
        let output = called(command, self).output()?;
        let is_fine = match output.status.code() {
            // Whether it matters is seen below.
            Some(0) => true,
            Some(2) => is_one_line(&output),
            Some(code) => code == 128 + libc::SIGKILL,
            None => output.status.signal() == Some(libc::SIGKILL),
        };
        ensure!(is_fine, "{what}: {}", said(&output));
        self.look().and_then(|()| self.finish()).context(what)
    }
}
