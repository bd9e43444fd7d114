//! What a person sees while a model trains.

use arbora_rl::train::{EvaluationReport, Progress, StepReport};
use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar with loss, log-likelihood and share of tokens.
pub struct Bar {
    bar: ProgressBar,
    evaluated: String,
}

impl Bar {
    /// A bar over `steps` steps. It is hidden where standard error is no terminal.
    pub fn new(name: &str, steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let template = "{prefix:>16} {bar:24} {pos}/{len} [{elapsed}<{eta}] {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        bar.set_prefix(name.to_owned());
        Self {
            bar,
            evaluated: String::new(),
        }
    }
}

impl Progress for Bar {
    fn on_step(&mut self, report: &StepReport) {
        let number = |name| report.metric(name).unwrap_or(f32::NAN);
        self.bar.set_message(format!(
            "loss {:.3}  log-lik {:.3}  tokens {:.1} %{}",
            number("loss"),
            number("log_likelihood"),
            number("tokens_percent"),
            self.evaluated
        ));
        // Not the number of calls: a resumed run starts in the middle.
        self.bar.set_position(report.step);
        if report.step == report.steps {
            self.bar.finish();
        }
    }

    fn on_evaluation(&mut self, report: &EvaluationReport) {
        let log_likelihood = report.metric("log_likelihood").unwrap_or(f64::NAN);
        self.evaluated = format!("  held-out {log_likelihood:.3}");
        if self.bar.is_hidden() {
            // A log file still says how far the run is.
            let name = self.bar.prefix();
            eprintln!(
                "{name}: step {}, held-out log-likelihood {log_likelihood:.4}",
                report.step
            );
        }
    }

    fn on_notice(&mut self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}
