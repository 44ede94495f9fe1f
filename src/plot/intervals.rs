//! Estimates with their intervals, one below the other.

use super::canvas::{Anchor, Canvas, Figure};
use super::legend::{CHARACTER, shorten};
use super::scale::{Scale, Scaling, number};
use super::theme::SERIES;

const WIDTH: f64 = 460.0;
const RIGHT: f64 = WIDTH - 14.0;
const TOP: f64 = 34.0;
const ROW: f64 = 26.0;

/// One estimate.
#[derive(Debug, Clone)]
pub struct IntervalRow {
    /// What it is an estimate of.
    pub label: String,
    /// The estimate.
    pub value: f64,
    /// Its interval, where there is one.
    pub interval: Option<(f64, f64)>,
    /// Which colour of the theme; they repeat.
    pub colour: usize,
}

/// Estimates on a common axis.
#[derive(Debug, Clone)]
pub struct Intervals {
    /// What is shown.
    pub title: String,
    /// What the axis shows, with its unit.
    pub x: String,
    /// From the top.
    pub rows: Vec<IntervalRow>,
    /// The value that means "no difference".
    pub reference: Option<f64>,
}

impl Intervals {
    /// Draws them; `None` if there are none.
    pub fn draw(&self) -> Option<Figure> {
        let ends = |row: &IntervalRow| {
            [
                Some(row.value),
                row.interval.map(|i| i.0),
                row.interval.map(|i| i.1),
            ]
        };
        let values: Vec<f64> = self
            .rows
            .iter()
            .flat_map(ends)
            .chain([self.reference])
            .flatten()
            .filter(|v| v.is_finite())
            .collect();
        let low = values.iter().copied().min_by(f64::total_cmp)?;
        let high = values.iter().copied().max_by(f64::total_cmp)?;
        let labels: Vec<String> = self.rows.iter().map(|row| shorten(&row.label, 26)).collect();
        let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
        let left = 16.0 + CHARACTER * longest as f64;
        let x = Scale::new(Scaling::Linear, (low, high), (left, RIGHT)).padded();
        let bottom = TOP + ROW * self.rows.len() as f64;

        let mut canvas = Canvas::default();
        canvas.text("ink title", (4.0, 16.0), Anchor::Start, &self.title);
        let ticks = x.ticks(5);
        for (value, label) in &ticks.marks {
            let at = x.at(*value);
            canvas.line("grid", (at, TOP), (at, bottom), "");
            canvas.text("muted", (at, bottom + 16.0), Anchor::Middle, label);
        }
        if let Some(reference) = self.reference {
            canvas.line(
                "rule",
                (x.at(reference), TOP - 4.0),
                (x.at(reference), bottom),
                "3 3",
            );
        }
        for (i, (row, label)) in self.rows.iter().zip(&labels).enumerate() {
            let y = TOP + ROW * (i as f64 + 0.5);
            canvas.text("ink", (left - 8.0, y + 4.0), Anchor::End, label);
            mark(&mut canvas, row, x, y);
        }
        canvas.text(
            "muted",
            ((left + RIGHT) / 2.0, bottom + 33.0),
            Anchor::Middle,
            &ticks.label(&self.x),
        );
        Some(canvas.finish(&self.title, self.description(), (WIDTH, bottom + 40.0)))
    }

    fn description(&self) -> String {
        let words = |row: &IntervalRow| match row.interval {
            Some((low, high)) => {
                format!(
                    "{}: {}, from {} to {}.",
                    row.label,
                    number(row.value),
                    number(low),
                    number(high)
                )
            }
            None => format!("{}: {}.", row.label, number(row.value)),
        };
        self.rows.iter().map(words).collect::<Vec<_>>().join(" ")
    }
}

fn mark(canvas: &mut Canvas, row: &IntervalRow, x: Scale, y: f64) {
    let colour = row.colour % SERIES;
    if let Some((low, high)) = row.interval {
        let (low, high) = (x.at(low), x.at(high));
        let stroke = format!("stroke{colour}");
        canvas.polyline(&stroke, &[(low, y), (high, y)], "", None);
        for end in [low, high] {
            canvas.polyline(&stroke, &[(end, y - 5.0), (end, y + 5.0)], "", None);
        }
    }
    canvas.dot(&format!("fill{colour}"), (x.at(row.value), y), 5.0);
}
