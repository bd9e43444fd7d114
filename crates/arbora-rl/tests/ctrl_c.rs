//! Ctrl-C for real: a signal to this very process, which is why this test has a binary of its own.
#![cfg(all(unix, feature = "flex", feature = "train"))]

#[path = "../examples/contextual_bandit.rs"]
#[allow(dead_code, reason = "the example's own main is not called here")]
mod bandit;

use std::process::Command;
use std::time::Duration;

use arbora_rl::train::{Checkpoint, Progress, StepReport, Trainer, TrainerConfig};
use bandit::{Bandit, contexts, held_out};
use burn::tensor::Device;
use burn::train::Interrupter;

/// Sends the signal after step 3 and waits until the handler has seen it.
struct Interrupt(Interrupter);

impl Progress for Interrupt {
    fn on_step(&mut self, report: &StepReport) {
        if report.step != 3 {
            return;
        }
        let process = std::process::id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &process])
                .status()
                .unwrap()
                .success()
        );
        for _ in 0..1000 {
            if self.0.should_stop() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the handler did not run within ten seconds");
    }
}

#[test]
fn ctrl_c_saves_a_checkpoint_and_reports_the_interruption() {
    let run = tempfile::TempDir::new().unwrap();
    let device = Device::flex();
    let config = TrainerConfig {
        steps: 50,
        ..bandit::config()
    };
    let trainer = Trainer::new(config, run.path(), "bandit");
    trainer.stop_on_ctrl_c().unwrap();
    // Asking again, for this or another trainer, is no error.
    trainer.stop_on_ctrl_c().unwrap();
    let interrupter = trainer.interrupter();
    let report = trainer
        .progress(Interrupt(interrupter))
        .fit(Bandit::new(8, 1, &device), contexts, (1, held_out), &device)
        .unwrap();
    assert_eq!((report.step, report.interrupted), (3, true));
    assert_eq!(Checkpoint::newest(run.path()).unwrap().0.state().step, 3);
}
