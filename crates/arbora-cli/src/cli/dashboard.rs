//! `--dashboard`: burn's plots of a run in the terminal.

use anyhow::{Result, bail};
use std::io::IsTerminal;

/// Refuses a dashboard that cannot be shown.
pub fn check() -> Result<()> {
    if !cfg!(feature = "dashboard") {
        bail!("--dashboard is not compiled in; build with --features dashboard");
    }
    if !std::io::stdout().is_terminal() {
        bail!("--dashboard: standard output is no terminal");
    }
    Ok(())
}

#[cfg(feature = "dashboard")]
pub use shown::show;

#[cfg(feature = "dashboard")]
mod shown {
    use crate::message::tell;
    use arbora::rl::train::{Progress, Trainer};
    use burn::train::renderer::tui::TuiMetricsRendererWrapper;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Takes over the terminal until the trainer is done. What a person should know is kept until what
    /// is returned is dropped: then it is printed. [`check`](super::check) comes first.
    ///
    /// - shown: whether there is to be a dashboard at all
    pub fn show(trainer: Trainer, names: &[&str], shown: bool) -> (Trainer, Option<Notices>) {
        if !shown {
            return (trainer, None);
        }
        let notices = Rc::new(RefCell::new(Vec::new()));
        let renderer = TuiMetricsRendererWrapper::new(trainer.interrupter(), None);
        let trainer = trainer
            .progress(Keep(notices.clone()))
            .renderer(Box::new(renderer), names);
        (trainer, Some(Notices(notices)))
    }

    /// Notices of a run whose dashboard has the terminal; printed at the end.
    pub struct Notices(Rc<RefCell<Vec<String>>>);

    impl Drop for Notices {
        fn drop(&mut self) {
            self.0.borrow().iter().for_each(|text| tell!("{text}"));
        }
    }

    struct Keep(Rc<RefCell<Vec<String>>>);

    impl Progress for Keep {
        fn on_notice(&mut self, text: &str) {
            self.0.borrow_mut().push(text.to_owned());
        }
    }
}
