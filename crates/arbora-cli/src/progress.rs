//! What a person sees while something takes its time.

use crate::message::tell;
use arbora::rl::train::{EvaluationReport, Progress, StepReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Work that is done sooner is not announced.
const NOTICEABLE: Duration = Duration::from_secs(1);
const FRAME: Duration = Duration::from_millis(100);

/// Does work whose progress is not known. If it takes noticeable time, what it is and for how long it has been at it is
/// shown meanwhile, where standard error is a terminal; nothing of it stays.
pub fn meanwhile<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let spinner = ProgressBar::new_spinner();
    if spinner.is_hidden() {
        return work();
    }
    let template = "{spinner} {msg} [{elapsed}]";
    spinner.set_style(ProgressStyle::with_template(template).expect("a valid template"));
    thread::scope(|scope| {
        let (working, done) = channel::<()>();
        let show = move || {
            let mut wait = NOTICEABLE;
            while done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                spinner.set_message(what.to_owned());
                spinner.tick();
                wait = FRAME;
            }
            spinner.finish_and_clear();
        };
        // Where there is no further thread, the work is what counts.
        let _ = thread::Builder::new().spawn_scoped(scope, show);
        let result = work();
        drop(working);
        result
    })
}

/// A progress bar with loss, log-likelihood (for classes their accuracy) and share of tokens.
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
        // Where there are classes, a person judges a step by their accuracy.
        let quality = match report.metric("accuracy") {
            Some(accuracy) => format!("accuracy {:.1} %", 100.0 * accuracy),
            None => format!("log-lik {:.3}", number("log_likelihood")),
        };
        let tokens = report.metric("tokens_percent");
        let tokens = tokens.map_or(String::new(), |percent| format!("  tokens {percent:.1} %"));
        self.bar.set_message(format!(
            "loss {:.3}  {quality}{tokens}{}",
            number("loss"),
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
        let (short, told) = match report.metric("accuracy") {
            Some(accuracy) => {
                let short = format!("{:.2} %", 100.0 * accuracy);
                (short.clone(), format!("accuracy {short}"))
            }
            None => (
                format!("{log_likelihood:.3}"),
                format!("log-likelihood {log_likelihood:.4}"),
            ),
        };
        self.evaluated = format!("  held-out {short}");
        if self.bar.is_hidden() {
            // A log file still says how far the run is.
            tell!(
                "{}: step {}, held-out {told}",
                self.bar.prefix(),
                report.step
            );
        }
    }

    fn on_notice(&mut self, text: &str) {
        self.bar.suspend(|| tell!("{text}"));
    }
}
