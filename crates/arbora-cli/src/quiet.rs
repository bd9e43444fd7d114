//! Panics of libraries, as messages.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Mutex, PoisonError};

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// How many calls are at work, and what prints panics when none is. There is one hook for all threads.
static SILENCED: Mutex<(usize, Option<Hook>)> = Mutex::new((0, None));

/// What `work` returns, or the message of its panic. No panic of the process is printed meanwhile.
pub fn without_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let silenced = || SILENCED.lock().unwrap_or_else(PoisonError::into_inner);
    {
        let (count, hook) = &mut *silenced();
        if *count == 0 {
            *hook = Some(std::panic::take_hook());
            std::panic::set_hook(Box::new(|_| {}));
        }
        *count += 1;
    }
    let result = catch_unwind(AssertUnwindSafe(work));
    {
        let (count, hook) = &mut *silenced();
        *count -= 1;
        if *count == 0
            && let Some(hook) = hook.take()
        {
            std::panic::set_hook(hook);
        }
    }
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| Some(panic.downcast_ref::<&str>()?.to_string()));
        text.unwrap_or_else(|| "no reason given".into())
    })
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
}
