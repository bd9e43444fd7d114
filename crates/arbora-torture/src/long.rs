//! A run of many steps: its memory stays what it is, and stopping it again and again changes nothing.

use crate::frame::{Target, Tries};
use crate::runs::{arbora, copy, resident, said};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

/// What is tried: each for hours.
pub fn targets() -> Vec<Target> {
    let target = |name, work: fn(&Yard) -> Result<()>| {
        Target::new(name, move |folder| {
            let yard = Yard::new(folder)?;
            Ok(Tries::drawn(move |_| work(&yard)))
        })
    };
    vec![
        target("memory", Yard::memory),
        target("resumed", Yard::resumed),
    ]
}

/// How many steps, where they are not to be this many.
const STEPS: &str = "ARBORA_TORTURE_STEPS";
/// Steps after which memory must stay what it is, and between stops.
const FIRST: u64 = 1000;

/// A folder for runs of one kind.
struct Yard {
    folder: std::path::PathBuf,
    steps: u64,
}

impl Yard {
    fn new(folder: &Path) -> Result<Self> {
        let steps = std::env::var(STEPS).ok();
        let steps = steps.map_or(Ok(100_000), |steps| steps.parse())?;
        let mut settings = copy();
        settings["trainer"]["steps"] = steps.into();
        settings["trainer"]["eval_every"] = FIRST.into();
        settings["trainer"]["checkpoint_every"] = FIRST.into();
        fs::write(folder.join("settings.json"), settings.to_string())?;
        Ok(Self {
            folder: folder.into(),
            steps,
        })
    }

    fn begin(&self, out: &str, more: &[&str]) -> Result<Child> {
        let mut command = arbora(&self.folder);
        command.args(["train", "copy", "--config", "settings.json", "--out", out]);
        command.args(more).stdout(Stdio::null());
        command.spawn().context("cannot start arbora")
    }

    /// Lines in the log of a run.
    fn lines(&self, out: &str) -> u64 {
        let log = fs::read(self.folder.join(out).join("metrics.jsonl")).unwrap_or_default();
        log.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Memory after the first steps and at the end differ by at most a hundredth.
    fn memory(&self) -> Result<()> {
        let _ = fs::remove_dir_all(self.folder.join("out"));
        let mut child = self.begin("out", &[])?;
        let mut first = None;
        let mut last = 0;
        while child.try_wait()?.is_none() {
            let lines = self.lines("out");
            if let Some(resident) = resident(&child)
                && lines > FIRST + 10
                && lines < self.steps
            {
                first.get_or_insert(resident);
                last = resident;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        succeeded(child.wait_with_output()?)?;
        let first: u64 = first.context("the run was too short to be seen")?;
        // Standard output is for what failed.
        eprintln!("memory {first} kB after {FIRST} steps, {last} kB in the end");
        ensure!(
            last.abs_diff(first) * 100 <= first,
            "memory was {first} kB after {FIRST} steps and {last} kB in the end"
        );
        Ok(())
    }

    /// A run that is stopped after every thousand steps has the log of one that never was.
    fn resumed(&self) -> Result<()> {
        for out in ["out", "whole"] {
            let _ = fs::remove_dir_all(self.folder.join(out));
        }
        succeeded(self.begin("whole", &[])?.wait_with_output()?)?;
        let mut stops = 0;
        loop {
            let more: &[&str] = if stops > 0 { &["--resume"] } else { &[] };
            let mut child = self.begin("out", more)?;
            let begun = self.lines("out");
            while child.try_wait()?.is_none() && self.lines("out") < begun + FIRST {
                std::thread::sleep(Duration::from_millis(20));
            }
            // One that has ended, and been waited for, has no number any more.
            if child.try_wait()?.is_none() {
                // SAFETY: the call touches no memory. The number is the child's: it has not been waited for, so no other process
                // can have it yet.
                unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
            }
            let output = child.wait_with_output()?;
            match output.status.code() {
                Some(0) => break,
                Some(130) => stops += 1,
                _ => {
                    // Before it watches for signals it just ends.
                    let early = output.status.signal() == Some(libc::SIGTERM);
                    ensure!(early && self.lines("out") <= begun + 1, "{}", said(&output));
                }
            }
        }
        let logs =
            ["whole", "out"].map(|out| fs::read(self.folder.join(out).join("metrics.jsonl")));
        let [whole, out] = logs;
        ensure!(whole? == out?, "another log after {stops} stops");
        Ok(())
    }
}

fn succeeded(output: Output) -> Result<()> {
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}
