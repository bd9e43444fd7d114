//! The `arbora` command.

fn main() -> std::process::ExitCode {
    arbora::cli::main()
}
