//! Panics of libraries, as messages.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` returns, or the message of its panic. No panic within it is printed, caught or not.
pub fn without_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
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
    fn what_panics_gives_its_message() {
        let code = 7;
        let opened = without_panic(|| -> u8 { panic!("no adapter {code}") });
        assert_eq!(opened.unwrap_err(), "no adapter 7");
        assert_eq!(without_panic(|| 3), Ok(3));
    }
}
