//! The program: parse, dispatch, exit code. What it can do is in `cli/`, one file per subcommand.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::fault::report_panics_in_one_line();
    let error = match cli::Cli::parse().run() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    // `ortdpo … | head` closes the pipe when it has seen enough: nothing went wrong.
    if cli::output::is_closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error}");
    ExitCode::from(error.exit_code())
}
