//! Tries that do what no try may, so that a test can see them counted.

use crate::frame::{Target, Tries};
use anyhow::{Result, bail, ensure};
use rand::Rng as _;

/// What is tried.
pub fn targets() -> Vec<Target> {
    vec![
        Target::new("good", |_| Ok(Tries::drawn(|_| Ok(())))),
        Target::new("refuses", |_| third(|| bail!("no reason"))),
        Target::new("panics", |_| third(|| panic!("number {}", 17))),
        Target::new("dies", |_| third(|| std::process::abort())),
        Target::new("takes", |_| {
            third(|| {
                let memory = vec![1_u8; 3 << 30];
                bail!("has {}", memory.len())
            })
        }),
        Target::new("hangs", |_| {
            third(|| {
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
            })
        }),
        Target::new("contains", |_| {
            third(|| {
                let caught = std::panic::catch_unwind(|| panic!("number {}", 17));
                ensure!(caught.is_err(), "no panic");
                Ok(())
            })
        }),
        Target::new("listed", |_| Ok(Tries::listed(vec![1, 2, 3], odd))),
    ]
}

fn odd(number: &i32) -> Result<()> {
    ensure!(number % 2 == 1, "{number} is even");
    Ok(())
}

/// Does it in about every third try.
fn third(wrong: fn() -> Result<()>) -> Result<Tries> {
    Ok(Tries::drawn(move |rng| match rng.random_range(0..3) {
        0 => wrong(),
        _ => Ok(()),
    }))
}
