//! Panics of libraries, as messages.

use crate::message::tell;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

/// How many calls of [`without_panic`] are at work.
static SILENCED: AtomicUsize = AtomicUsize::new(0);
/// The thread of [`hold_panics`].
static HOLDER: OnceLock<ThreadId> = OnceLock::new();
/// The last panic that somebody may yet catch, as Rust prints it.
static HELD: Mutex<String> = Mutex::new(String::new());

/// What `work` returns, or the message of its panic. No panic of the process is printed meanwhile.
pub fn without_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    install();
    SILENCED.fetch_add(1, SeqCst);
    let result = catch_unwind(AssertUnwindSafe(work));
    SILENCED.fetch_sub(1, SeqCst);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| Some(panic.downcast_ref::<&str>()?.to_string()));
        text.unwrap_or_else(|| "no reason given".into())
    })
}

/// What `work`, all that the process does, returns. A panic of this thread is printed where nobody catches it: who does makes
/// an error of it, and one line says that. Called once, before other hooks for panics are set.
pub fn hold_panics<T>(work: impl FnOnce() -> T) -> T {
    let _ = HOLDER.set(thread::current().id());
    install();
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        tell!("{}", HELD.lock().unwrap_or_else(PoisonError::into_inner));
        resume_unwind(panic)
    })
}

/// Sets the hook of the process.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if SILENCED.load(SeqCst) > 0 {
                return;
            }
            if may_be_caught() {
                hold(panic, &previous)
            } else {
                previous(panic)
            }
        }));
    });
}

/// Whether the panic of this thread unwinds into [`hold_panics`]; rayon hands those of its threads to who called it.
fn may_be_caught() -> bool {
    let holder = HOLDER.get();
    let is_holder = holder.is_some_and(|holder| *holder == thread::current().id());
    is_holder || (holder.is_some() && rayon::current_thread_index().is_some())
}

fn hold(panic: &PanicHookInfo<'_>, previous: &dyn Fn(&PanicHookInfo<'_>)) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    // A panic where none can unwind, as in a destructor over another: the process ends here.
    if panic
        .payload_as_str()
        .is_some_and(|text| text.starts_with("panic in a "))
    {
        tell!("{held}");
        return previous(panic);
    }
    let thread = thread::current();
    *held = format!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        *held += &format!("\n{trace}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_gives_its_message_within_another_too() {
        let code = 7;
        let panics = || without_panic(|| -> u8 { panic!("no adapter {code}") });
        assert_eq!(panics().unwrap_err(), "no adapter 7");
        assert_eq!(without_panic(|| panics().is_err()), Ok(true));
        assert_eq!(without_panic(|| 3), Ok(3));
    }

    #[test]
    fn a_panic_is_printed_where_nobody_catches_it() {
        const CHILD: &str = "ARBORA_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            return hold_panics(|| {
                let caught = || panic!("caught on this thread");
                assert!(catch_unwind(caught).is_err());
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                let caught = || pool.unwrap().install(|| panic!("caught of rayon's thread"));
                assert!(catch_unwind(AssertUnwindSafe(caught)).is_err());
                panic!("nobody catches this");
            });
        }
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture"]);
        command.arg("catch_panic::tests::a_panic_is_printed_where_nobody_catches_it");
        let output = command.env(CHILD, "1").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert_eq!(stderr.matches("nobody catches this").count(), 1, "{stderr}");
        assert!(
            stderr.contains("src/catch_panic.rs") && !stderr.contains("caught o"),
            "{stderr}"
        );
    }
}
