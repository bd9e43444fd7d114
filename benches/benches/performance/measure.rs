//! Time and memory of a piece of work.

use crate::numbers::Measured;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long measurements take.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Turns of each entrant.
    rounds: usize,
    /// Work shorter than this is repeated within a turn, each repetition a sample.
    turn_seconds: f64,
    /// With slow entrants there are fewer rounds, but at least two.
    most_seconds: f64,
}

impl Effort {
    pub fn new(quick: bool) -> Self {
        if quick {
            Self {
                rounds: 3,
                turn_seconds: 0.02,
                most_seconds: 2.0,
            }
        } else {
            // Seven samples, or half a second of them.
            Self {
                rounds: 7,
                turn_seconds: 0.075,
                most_seconds: 40.0,
            }
        }
    }
}

/// Before each turn. libtorch's threads keep waiting at full speed for a few milliseconds after their
/// work is done, and would take a core from whoever comes next.
const PAUSE: Duration = Duration::from_millis(30);

/// Work under a name. Each call does all of it and waits for the device.
pub struct Entrant<'a> {
    pub name: String,
    work: Box<dyn FnMut() + 'a>,
}

impl<'a> Entrant<'a> {
    pub fn new(name: impl Into<String>, work: impl FnMut() + 'a) -> Self {
        Self {
            name: name.into(),
            work: Box::new(work),
        }
    }
}

/// Measures entrants side by side: they take turns, so that a disturbance of the machine meets all of
/// them.
pub fn contest(effort: &Effort, mut entrants: Vec<Entrant<'_>>) -> Vec<Measured> {
    let mut turns = Vec::new();
    let mut round = 0.0;
    for entrant in &mut entrants {
        // The first call warms up; the second tells how long one takes.
        sleep(PAUSE);
        (entrant.work)();
        let guess = timed(&mut entrant.work).max(1e-9);
        let repeats = (effort.turn_seconds / guess).ceil().clamp(1.0, 1000.0);
        round += guess * repeats;
        turns.push((repeats as usize, Vec::new()));
    }
    let rounds = ((effort.most_seconds / round) as usize).clamp(2, effort.rounds.max(2));
    for _ in 0..rounds {
        for (entrant, (repeats, samples)) in entrants.iter_mut().zip(&mut turns) {
            sleep(PAUSE);
            samples.extend((0..*repeats).map(|_| timed(&mut entrant.work)));
        }
    }
    entrants
        .into_iter()
        .zip(turns)
        .map(|(mut entrant, (_, mut samples))| {
            samples.sort_by(f64::total_cmp);
            Measured {
                name: entrant.name,
                seconds: median(&samples),
                fastest: samples[0],
                samples: samples.len(),
                peak_bytes: peak(&mut entrant.work),
            }
        })
        .collect()
}

/// Of sorted samples, at least one.
fn median(samples: &[f64]) -> f64 {
    let (low, high) = ((samples.len() - 1) / 2, samples.len() / 2);
    (samples[low] + samples[high]) / 2.0
}

fn timed(work: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Linux counts the highest resident size since it was last reset.
fn peak(work: &mut dyn FnMut()) -> Option<u64> {
    give_back_freed_memory();
    let before = status("VmRSS:")?;
    fs::write("/proc/self/clear_refs", "5").ok()?;
    work();
    Some(status("VmHWM:")?.saturating_sub(before))
}

/// A line of the process's status, in bytes.
fn status(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Memory that the allocator keeps for reuse is resident, and would hide what a call takes.
fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(keep: usize) -> i32;
        }
        // SAFETY: the signature is glibc's; the function may be called at any time.
        unsafe {
            malloc_trim(0);
        }
    }
}
