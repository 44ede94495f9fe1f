//! What a user sees of a fault in the program itself.

use std::panic::{self, PanicHookInfo};

/// Replaces Rust's report of a panic by one line; `RUST_BACKTRACE` adds the stack.
pub fn report_panics_in_one_line() {
    panic::set_hook(Box::new(|info| {
        eprintln!("error: {}", one_line(info));
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
    }));
}

fn one_line(info: &PanicHookInfo<'_>) -> String {
    let place = info
        .location()
        .map(|at| format!(" at {}:{}", at.file(), at.line()))
        .unwrap_or_default();
    let what = info
        .payload_as_str()
        .unwrap_or("no message")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    format!(
        "a fault in ortdpo {}{place}: {what}. Please report it, with the command that led to it.",
        env!("CARGO_PKG_VERSION")
    )
}
