//! Devices of other processes, where the feature `remote` is off: what names one is refused.

use anyhow::{Error, Result, anyhow};
use burn::tensor::Device;

/// Whether a text is meant as an address and not as the name of a backend.
pub fn is_address(text: &str) -> bool {
    text.contains("://")
}

/// Refuses what needs the feature.
pub fn not_compiled_in(what: &str) -> Error {
    anyhow!("{what}: devices of other processes are not compiled in; build with --features remote")
}

/// Refuses the device at an address.
///
/// # Errors
/// Always.
pub fn open_at(address: &str) -> Result<(String, Device)> {
    Err(not_compiled_in(address))
}

/// There is no server to lose.
pub fn end_on_loss(_end: fn(&str) -> !) {}

/// There is no server to lose.
pub fn lost() -> Option<String> {
    None
}

/// Nothing is kept for a message about a lost server.
pub fn saved(_text: Option<String>) -> Option<String> {
    None
}

/// Nothing else ends the process.
pub fn finish() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_another_process_is_refused_in_one_line_that_names_the_feature() {
        let address = "ws://127.0.0.1:3000";
        assert!(is_address(address) && !is_address("flex"));
        for (what, refusal) in [
            (address, open_at(address).unwrap_err()),
            ("serve", not_compiled_in("serve")),
        ] {
            let text = format!("{refusal:#}");
            assert!(text.starts_with(what) && text.ends_with("build with --features remote"));
            assert_eq!(text.lines().count(), 1);
        }
    }
}
