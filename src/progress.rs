//! How far a long job is: a bar on a terminal, plain lines where standard error goes elsewhere, nothing when quiet.
//!
//! Everything goes to standard error, so that results on standard output stay clean.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Pause between two plain lines of one job.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where and how progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// A bar that is drawn over and over.
    Bars,
    /// A line now and then.
    Lines,
    /// Nothing.
    Quiet,
}

impl Console {
    /// What suits standard error.
    pub fn new(quiet: bool) -> Self {
        match quiet {
            true => Self::Quiet,
            false if io::stderr().is_terminal() => Self::Bars,
            false => Self::Lines,
        }
    }

    /// Begins a job of `total` parts.
    pub fn job(self, name: &str, total: u64) -> Job {
        let display = match self {
            Self::Bars => Display::Bar(bar(name, total)),
            Self::Lines => Display::Lines(Lines {
                name: name.to_owned(),
                every: LINE_EVERY,
                last: None,
                out: Box::new(io::stderr()),
            }),
            Self::Quiet => Display::Nothing,
        };
        Job { total, display }
    }

    /// Says one thing, outside of any job.
    pub fn say(self, text: &str) {
        if self != Self::Quiet {
            write_line(&mut io::stderr(), text);
        }
    }
}

/// A job under way. Its bar disappears when it is dropped.
pub struct Job {
    total: u64,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines(Lines),
    Nothing,
}

struct Lines {
    name: String,
    every: Duration,
    last: Option<Instant>,
    out: Box<dyn Write + Send>,
}

impl Job {
    /// `done` parts are done; `detail` is shown behind them.
    pub fn advance(&mut self, done: u64, detail: &str) {
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(detail.to_owned());
            }
            Display::Lines(lines) => {
                let is_due = lines.last.is_none_or(|last| last.elapsed() >= lines.every);
                if is_due || done == self.total {
                    lines.last = Some(Instant::now());
                    let text = format!("{} {done}/{}  {detail}", lines.name, self.total);
                    write_line(&mut lines.out, text.trim_end());
                }
            }
            Display::Nothing => {}
        }
    }

    /// Says something that stays, above the bar or as a line.
    pub fn say(&mut self, text: &str) {
        match &mut self.display {
            Display::Bar(bar) => bar.println(text),
            Display::Lines(lines) => write_line(&mut lines.out, text),
            Display::Nothing => {}
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn bar(name: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {pos}/{len}  {wide_msg}")
        .expect("the template is part of the program, and every terminal run draws it")
        .progress_chars("=> ");
    ProgressBar::new(total)
        .with_style(style)
        .with_prefix(name.to_owned())
}

/// `1:02:03` or `2:03`, rounded to whole seconds.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Nobody is told when standard error is closed: there is nobody left to tell.
fn write_line(out: &mut dyn Write, text: &str) {
    writeln!(out, "{text}").ok();
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn plain_lines_come_first_last_and_now_and_then() {
        let printed = |every| {
            let out = Shared::default();
            let lines = Lines {
                name: "work".into(),
                every,
                last: None,
                out: Box::new(out.clone()),
            };
            let mut job = Job {
                total: 4,
                display: Display::Lines(lines),
            };
            for done in 1..=4 {
                job.advance(done, if done == 4 { "" } else { "detail" });
            }
            job.say("done");
            let bytes = out.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(
            printed(Duration::from_secs(3600)),
            "work 1/4  detail\nwork 4/4\ndone\n"
        );
        assert_eq!(printed(Duration::ZERO).lines().count(), 5);
    }

    #[test]
    fn the_bar_can_be_drawn() {
        let bar = bar("work", 4);
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        bar.set_position(2);
        assert_eq!(
            (bar.position(), bar.length(), bar.prefix()),
            (2, Some(4), "work".into())
        );
    }

    #[test]
    fn times_are_written_as_on_a_clock() {
        assert_eq!(
            [0.0, 59.6, 3600.0, 36_061.0].map(clock),
            ["0:00", "1:00", "1:00:00", "10:01:01"]
        );
    }
}
