//! Tries that do what no try may, so that a test can see them counted.

use crate::frame::{Target, Tries};
use anyhow::Result;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// What is tried.
pub const TARGETS: [Target; 8] = [
    target("good", |_| Ok(Tries::drawn(|_| Ok(())))),
    target("refuses", |_| third(|| Err("no reason".into()))),
    target("panics", |_| third(|| panic!("number {}", 17))),
    target("dies", |_| third(|| std::process::abort())),
    target("takes", |_| {
        third(|| {
            let memory = vec![1_u8; 3 << 30];
            Err(format!("has {}", memory.len()))
        })
    }),
    target("hangs", |_| {
        third(|| {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        })
    }),
    target("contains", |_| {
        third(|| {
            let caught = std::panic::catch_unwind(|| panic!("number {}", 17));
            caught.map_or(Ok(()), |()| Err("no panic".into()))
        })
    }),
    target("listed", |_| Ok(Tries::listed(vec![1, 2, 3], odd))),
];

const fn target(name: &'static str, begin: fn(&Path) -> Result<Tries>) -> Target {
    Target { name, begin }
}

fn odd(number: &i32) -> Result<(), String> {
    match number % 2 {
        1 => Ok(()),
        _ => Err(format!("{number} is even")),
    }
}

/// Does it in about every third try.
fn third(wrong: fn() -> Result<(), String>) -> Result<Tries> {
    Ok(Tries::drawn(move |rng: &mut ChaCha8Rng| {
        match rng.random_range(0..3) {
            0 => wrong(),
            _ => Ok(()),
        }
    }))
}
