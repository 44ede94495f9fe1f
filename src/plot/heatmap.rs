//! A value for every pair of row and column, as a shade.

use super::canvas::{Anchor, Canvas, Figure};
use super::scale::number;

const WIDTH: f64 = 460.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 34.0;
const ROW: f64 = 22.0;

/// Columns that are drawn at most; of more, evenly spread ones.
const COLUMNS: usize = 64;
/// Columns up to which the value is written into the cell.
const WRITTEN: usize = 7;

/// What a shade stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Hue {
    /// From the lowest value, pale, to the highest.
    Sequential,
    /// One hue below this value, another above, both pale next to it.
    Around(f64),
}

/// A table drawn as shades.
#[derive(Debug, Clone)]
pub struct HeatMap {
    /// What is shown.
    pub title: String,
    /// What the columns are.
    pub x: String,
    /// Headings of the columns.
    pub columns: Vec<String>,
    /// Heading and a value per column of each row, from the top.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
    /// What a shade stands for.
    pub hue: Hue,
}

impl HeatMap {
    /// Draws it; `None` if there is no value.
    pub fn draw(&self) -> Option<Figure> {
        let finite = || {
            self.rows
                .iter()
                .flat_map(|row| &row.1)
                .flatten()
                .filter(|v| v.is_finite())
        };
        let low = finite().copied().min_by(f64::total_cmp)?;
        let high = finite().copied().max_by(f64::total_cmp)?;
        let shades = Shades::new(self.hue, low, high);
        let shown = evenly(self.columns.len(), COLUMNS);
        let mut canvas = Canvas::default();
        canvas.text("ink title", (4.0, 16.0), Anchor::Start, &self.title);
        let width = (RIGHT - LEFT) / shown.len() as f64;
        let bottom = TOP + ROW * self.rows.len() as f64;
        for (r, (heading, values)) in self.rows.iter().enumerate() {
            let y = TOP + ROW * r as f64;
            canvas.text("muted", (LEFT - 6.0, y + 15.0), Anchor::End, heading);
            for (i, &c) in shown.iter().enumerate() {
                let Some(value) = values.get(c).copied().flatten().filter(|v| v.is_finite()) else {
                    continue;
                };
                let at = (LEFT + width * i as f64, y);
                let title = format!("{heading}, {} {}: {}", self.x, self.columns[c], number(value));
                shades.cell(
                    &mut canvas,
                    value,
                    at,
                    (width, ROW),
                    &title,
                    shown.len() <= WRITTEN,
                );
            }
        }
        let every = shown.len().div_ceil(8).max(1);
        for (i, &c) in shown.iter().enumerate().step_by(every) {
            let x = LEFT + width * (i as f64 + 0.5);
            canvas.text("muted", (x, bottom + 16.0), Anchor::Middle, &self.columns[c]);
        }
        canvas.text("muted", (LEFT - 6.0, bottom + 16.0), Anchor::End, &self.x);
        shades.key(&mut canvas, bottom + 26.0);
        let description = format!("From {} to {}.", number(low), number(high));
        let below = match self.hue {
            Hue::Sequential => 48.0,
            Hue::Around(_) => 58.0,
        };
        Some(canvas.finish(&self.title, description, (WIDTH, bottom + below)))
    }
}

/// At most `most` of the indices below `count`, the last among them.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    match count <= most {
        true => (0..count).collect(),
        false => (1..=most).map(|i| i * count / most - 1).collect(),
    }
}

struct Shades {
    hue: Hue,
    low: f64,
    high: f64,
}

impl Shades {
    fn new(hue: Hue, low: f64, high: f64) -> Self {
        match hue {
            Hue::Sequential => Self { hue, low, high },
            Hue::Around(middle) => {
                let reach = (high - middle).abs().max((middle - low).abs());
                Self {
                    hue,
                    low: middle - reach,
                    high: middle + reach,
                }
            }
        }
    }

    /// Class and opacity.
    fn shade(&self, value: f64) -> (&'static str, f64) {
        let extent = self.high - self.low;
        let share = if extent > 0.0 {
            (value - self.low) / extent
        } else {
            0.5
        };
        match self.hue {
            Hue::Sequential => ("heat", 0.06 + 0.94 * share),
            Hue::Around(_) if share < 0.5 => ("low", 0.04 + 0.96 * (1.0 - 2.0 * share)),
            Hue::Around(_) => ("high", 0.04 + 0.96 * (2.0 * share - 1.0)),
        }
    }

    fn cell(
        &self,
        canvas: &mut Canvas,
        value: f64,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        title: &str,
        written: bool,
    ) {
        let (class, opacity) = self.shade(value);
        canvas.rect(class, (x, y), (width, height), opacity, title);
        if written {
            let ink = if opacity > 0.65 { "paper" } else { "ink" };
            canvas.text(ink, (x + width / 2.0, y + 15.0), Anchor::Middle, &number(value));
        }
    }

    /// The shades with the values at their ends.
    fn key(&self, canvas: &mut Canvas, y: f64) {
        let steps = 24;
        let (left, width) = (LEFT + 70.0, 6.0);
        for i in 0..steps {
            let value = self.low + (self.high - self.low) * f64::from(i) / f64::from(steps - 1);
            let (class, opacity) = self.shade(value);
            let x = left + width * f64::from(i);
            canvas.rect(class, (x, y), (width, 10.0), opacity, "");
        }
        let right = left + width * f64::from(steps);
        canvas.text("muted", (left - 6.0, y + 9.0), Anchor::End, &number(self.low));
        canvas.text("muted", (right + 6.0, y + 9.0), Anchor::Start, &number(self.high));
        if let Hue::Around(value) = self.hue {
            // The scale reaches as far below it as above, also where no value does.
            let middle = f64::midpoint(left, right);
            canvas.line("rule", (middle, y - 1.0), (middle, y + 13.0), "");
            canvas.text("muted", (middle, y + 25.0), Anchor::Middle, &number(value));
        }
    }
}
