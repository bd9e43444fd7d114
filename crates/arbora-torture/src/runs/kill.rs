//! `kill -9` at random moments.

use super::{Yard, said, targets_of};
use crate::frame::{Target, Tries};
use anyhow::{Result, ensure};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

/// Every job.
pub fn targets() -> Vec<Target> {
    targets_of(|yard| Ok(Tries::drawn(move |rng| yard.killed(rng))))
}

impl Yard {
    /// Kills the job one to three times, each at any moment, and goes on with it. Once more if it was always done before.
    fn killed(&self, rng: &mut ChaCha8Rng) -> Result<()> {
        self.clear()?;
        let mut is_killed = false;
        for _ in 0..rng.random_range(1..=3) {
            let mut command = self.command();
            let mut child = command.stdout(Stdio::null()).spawn()?;
            std::thread::sleep(self.length.mul_f64(rng.random_range(0.0..1.1)));
            // It may have ended.
            let _ = child.kill();
            let output = child.wait_with_output()?;
            let is_dead = output.status.signal() == Some(libc::SIGKILL);
            is_killed |= is_dead;
            ensure!(is_dead || output.status.success(), "{}", said(&output));
            if rng.random_bool(0.25) {
                self.look()?;
            }
        }
        if !is_killed {
            return self.killed(rng);
        }
        self.finish()
    }
}
