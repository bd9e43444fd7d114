//! System calls that fail, or are the last ones of a process: each of those that a job makes on its files.
//!
//! `strace` counts them in an undisturbed job, and later lets one fail, or kills the process as it makes it.

use super::{JOBS, Yard, command_of, is_one_line, said};
use crate::frame::{Target, Try};
use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

/// Calls on files, and how each can fail beside the end of the process.
const CALLS: [(&str, &[&str]); 14] = [
    ("openat", &["ENOSPC", "EROFS", "EACCES", "EMFILE"]),
    ("mkdir", &["ENOSPC", "EROFS", "EACCES"]),
    ("write", &["ENOSPC", "EIO"]),
    ("fsync", &["EIO", "ENOSPC"]),
    ("fdatasync", &["EIO", "ENOSPC"]),
    ("rename", &["EIO", "ENOSPC", "EROFS"]),
    ("unlink", &["EROFS", "EIO"]),
    ("unlinkat", &["EROFS", "EIO"]),
    ("rmdir", &["EROFS", "EIO"]),
    ("flock", &["EIO"]),
    ("read", &["EIO"]),
    ("getdents64", &["EIO"]),
    ("ftruncate", &["EIO"]),
    ("close", &[]),
];

/// Every job.
pub const TARGETS: [Target; JOBS.len()] = [of::<0>(), of::<1>(), of::<2>(), of::<3>(), of::<4>()];

const fn of<const JOB: usize>() -> Target {
    fn begin<const JOB: usize>(folder: &Path) -> Result<Try> {
        let yard = Yard::new(folder, JOBS[JOB])?;
        let calls = calls(&yard)?;
        Ok(Box::new(move |rng| yard.failing(&calls, rng)))
    }
    Target {
        name: JOBS[JOB].name,
        begin: begin::<JOB>,
    }
}

/// A call that a job makes on a file of its own: its name, and how many of this name its thread made before, and it.
type Call = (String, usize);

/// The calls of a job on its own files.
fn calls(yard: &Yard) -> Result<Vec<Call>> {
    yard.clear().map_err(anyhow::Error::msg)?;
    let trace = yard.path("trace");
    let names: Vec<&str> = CALLS.iter().map(|(name, _)| *name).collect();
    let mut command = traced(yard, &names.join(","));
    command.arg("-y").arg("-o").arg(&trace);
    let output = called(command, yard).output();
    let output = output.context("cannot start strace")?;
    ensure!(output.status.success(), "under strace: {}", said(&output));
    let out = format!("{}/", yard.path("out").display());
    let mut made: HashMap<(String, String), usize> = HashMap::new();
    let mut own = Vec::new();
    for line in std::fs::read_to_string(&trace)?.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        // The second half of a call that another thread's came between.
        let Some((name, _)) = call.split_once('(').filter(|_| !call.starts_with('<')) else {
            continue;
        };
        let count = made.entry((thread.into(), name.into())).or_default();
        *count += 1;
        if call.contains("\"out") || call.contains(&out) {
            own.push((name.to_owned(), *count));
        }
    }
    ensure!(!own.is_empty(), "strace saw no call on {out}");
    Ok(own)
}

fn traced(yard: &Yard, names: &str) -> Command {
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-qqq",
        "--seccomp-bpf",
        "-e",
        &format!("trace={names}"),
    ]);
    command
        .args(["-e", "signal=none"])
        .current_dir(&yard.folder);
    command
}

/// The job under `strace`.
fn called(mut strace: Command, yard: &Yard) -> Command {
    let job = yard.command();
    strace.arg("--").arg(job.get_program()).args(job.get_args());
    let inherited = command_of(&yard.job, &yard.folder);
    for (name, value) in inherited.get_envs() {
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
    fn failing(&self, calls: &[Call], rng: &mut ChaCha8Rng) -> Result<(), String> {
        self.clear()?;
        let (name, count) = calls.choose(rng).ok_or("no calls")?;
        let known = CALLS.iter().find(|(known, _)| known == name);
        let failures = known.map_or(&[][..], |(_, failures)| failures);
        let fault = match failures.choose(rng).filter(|_| rng.random_bool(0.5)) {
            Some(error) => format!("error={error}"),
            None => "signal=KILL".into(),
        };
        let what = format!("{name} number {count}, {fault}");
        let mut command = traced(self, name);
        command.args(["-e", &format!("inject={name}:{fault}:when={count}")]);
        command.args(["-o", "/dev/null"]);
        let output = called(command, self).output();
        let output = output.map_err(|error| error.to_string())?;
        let is_fine = match output.status.code() {
            // Whether it matters is seen below.
            Some(0) => true,
            Some(2) => is_one_line(&output),
            Some(code) => code == 128 + libc::SIGKILL,
            None => output.status.signal() == Some(libc::SIGKILL),
        };
        if !is_fine {
            return Err(format!("{what}: {}", said(&output)));
        }
        self.look().map_err(|reason| format!("{what}: {reason}"))?;
        self.finish().map_err(|reason| format!("{what}: {reason}"))
    }
}
