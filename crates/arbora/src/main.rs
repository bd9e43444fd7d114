//! The `arbora` command.
fn main() {}
