//! Standard output: lines, tables, and what happens when nobody reads them any more.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use clap::ValueEnum;
use ortdpo::table::{self, Table};
use ortdpo::{Error, Result};
use serde::Serialize;

/// Prints a line.
///
/// # Errors
/// Standard output is closed or full; hand the error on, `main` knows what to do with it.
pub fn line(text: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(Error::io("standard output", "write"))
}

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints a report for programs. `report` must have string keys only, as structs have.
///
/// # Errors
/// As [`line`].
pub fn json(report: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(report).expect("the report has only string keys"))
}

/// A table of words for people.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    Table::of_text(head, rows).render(table::Format::Text)
}

/// Whether `error` only says that the reader of our output has gone.
pub fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe)
}

/// A number of bytes in the unit that suits it.
pub fn bytes(n: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = (n.max(1).ilog2() / 10).min(4);
    match unit {
        0 => format!("{n} bytes"),
        _ => format!(
            "{:.1} {}",
            n as f64 / f64::from(1u32 << 10).powi(unit as i32),
            units[unit as usize]
        ),
    }
}

/// A time in the units that suit it.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let two = |large: u64, small: u64, [name, below]: [&str; 2]| match small {
        0 => format!("{large} {name}"),
        _ => format!("{large} {name} {small} {below}"),
    };
    match whole {
        0..10 => format!("{seconds:.3} s"),
        10..120 => format!("{seconds:.1} s"),
        120..7_200 => two(whole / 60, whole % 60, ["min", "s"]),
        7_200..172_800 => two(whole / 3_600, whole % 3_600 / 60, ["h", "min"]),
        _ => two(whole / 86_400, whole % 86_400 / 3_600, ["d", "h"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_given_in_the_unit_that_suits_them() {
        for (n, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1_500_000, "1.4 MiB"),
            (3_438_167_540, "3.2 GiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn times_are_given_in_the_units_that_suit_them() {
        for (seconds, text) in [
            (0.0295, "0.029 s"),
            (16.44, "16.4 s"),
            (120.0, "2 min"),
            (3_599.6, "60 min"),
            (7_275.0, "2 h 1 min"),
            (936_000.0, "10 d 20 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
