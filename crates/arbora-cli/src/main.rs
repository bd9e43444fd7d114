//! The `arbora` command.

fn main() -> std::process::ExitCode {
    arbora_cli::main()
}
