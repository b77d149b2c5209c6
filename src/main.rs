//! The command line of codecllm: glue over the library, which anyone can use the same way.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
