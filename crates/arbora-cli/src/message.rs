//! Messages for a person.

/// Writes a line to standard error. Where nobody reads it any more, the work goes on all the same.
macro_rules! tell {
    ($($message:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($message)*);
    }};
}
pub(crate) use tell;
