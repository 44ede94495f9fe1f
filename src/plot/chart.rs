//! Curves over a common axis.

use super::canvas::{Anchor, Canvas, Figure};
use super::legend;
use super::scale::{Scale, Scaling, number};
use super::smooth;
use super::theme::SERIES;

const WIDTH: f64 = 460.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = WIDTH - 12.0;
const PLOT_HEIGHT: f64 = 190.0;
const BELOW: f64 = 40.0;

/// Dashes before they repeat; the first is a solid line.
const DASHES: [&str; 4] = ["", "7 4", "2 4", "9 3 2 3"];

/// Name and spread of an axis.
#[derive(Debug, Clone, Default)]
pub struct Axis {
    /// What is shown, with its unit.
    pub label: String,
    /// How values are spread.
    pub scaling: Scaling,
}

/// One curve.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its entry in the legend.
    pub label: String,
    /// Points by ascending x; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Which colour of the theme; they repeat.
    pub colour: usize,
    /// Which dash, 0 for none; they repeat.
    pub dash: usize,
    /// Whether to draw the points faintly and their moving mean (see [`smooth::window`]) over them.
    pub noisy: bool,
}

/// A value to compare with: a horizontal line across the drawing.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What the value is.
    pub label: String,
    /// The value.
    pub value: f64,
}

/// Curves with their axes.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// The axis below.
    pub x: Axis,
    /// The axis at the left.
    pub y: Axis,
    /// The curves.
    pub series: Vec<Series>,
    /// Values to compare with.
    pub rules: Vec<Rule>,
}

impl Chart {
    /// Draws the curves; `None` if there is not one point to show.
    pub fn draw(&self) -> Option<Figure> {
        let curves: Vec<Curve<'_>> = self.series.iter().filter_map(|s| self.curve(s)).collect();
        let xs = || curves.iter().flat_map(|c| c.raw.iter().map(|p| p.0));
        let ys = || {
            let rules = self.rules.iter().map(|rule| rule.value);
            let points = curves.iter().flat_map(|c| c.shown().map(|p| p.1));
            points.chain(rules).filter(|y| Scale::takes(self.y.scaling, *y))
        };
        let (x_range, y_range) = (extent(xs())?, extent(ys())?);

        let mut canvas = Canvas::default();
        let ticks = Scale::new(self.y.scaling, y_range, (0.0, 1.0)).padded().ticks(5);
        let unit = ticks.label(&self.y.label);
        let top = self.head(&mut canvas, &curves, &unit);
        let bottom = top + PLOT_HEIGHT;
        let x = Scale::new(self.x.scaling, x_range, (LEFT, RIGHT));
        let y = Scale::new(self.y.scaling, y_range, (bottom, top)).padded();
        self.axes(&mut canvas, x, y);
        let rules = || {
            self.rules
                .iter()
                .filter(|r| Scale::takes(self.y.scaling, r.value))
        };
        for rule in rules() {
            let height = y.at(rule.value);
            canvas.line("rule", (LEFT, height), (RIGHT, height), "3 3");
        }
        let place = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect()
        };
        for curve in &curves {
            if curve.series.noisy && curve.mean.is_some() {
                let class = format!("raw {}", curve.stroke());
                canvas.polyline(&class, &place(&curve.raw), "", None);
            }
        }
        for curve in &curves {
            self.curve_itself(&mut canvas, curve, &place(curve.line()));
        }
        // Above the curves, which would strike the words through.
        for rule in rules() {
            let height = y.at(rule.value);
            let beside = if height - top < 20.0 {
                height + 13.0
            } else {
                height - 4.0
            };
            canvas.text("note", (RIGHT, beside), Anchor::End, &rule.label);
        }
        let figure = canvas.finish(&self.title, self.description(&curves), (WIDTH, bottom + BELOW));
        Some(figure.with_data(readout(x, y, self.y.scaling)))
    }

    fn curve<'a>(&self, series: &'a Series) -> Option<Curve<'a>> {
        let takes = |p: &&(f64, f64)| p.0.is_finite() && Scale::takes(self.y.scaling, p.1);
        let all: Vec<_> = series.points.iter().filter(takes).copied().collect();
        let (first, last) = (*all.first()?, *all.last()?);
        let window = smooth::window(all.len());
        let mean = (series.noisy && window > 1).then(|| smooth::thin(smooth::moving_mean(&all, window)));
        Some(Curve {
            series,
            ends: (first, last),
            raw: smooth::thin(all),
            mean,
        })
    }

    /// Title, unit and legend; returns where the drawing below begins.
    fn head(&self, canvas: &mut Canvas, curves: &[Curve<'_>], unit: &str) -> f64 {
        canvas.text("ink title", (4.0, 16.0), Anchor::Start, &self.title);
        let mut top = 30.0;
        if !unit.is_empty() {
            canvas.text("muted", (4.0, top + 3.0), Anchor::Start, unit);
            top += 14.0;
        }
        if curves.len() < 2 {
            return top;
        }
        let entry = |c: &Curve<'_>| (c.series.label.clone(), c.stroke(), c.dash());
        let entries: Vec<_> = curves.iter().map(entry).collect();
        let entries: Vec<_> = entries
            .iter()
            .map(|(l, s, d)| (l.as_str(), s.clone(), *d))
            .collect();
        top + legend::draw(canvas, &entries, (4.0, RIGHT), top + 8.0)
    }

    fn axes(&self, canvas: &mut Canvas, x: Scale, y: Scale) {
        let (bottom, _) = y.pixels;
        for (value, label) in y.ticks(5).marks {
            let height = y.at(value);
            canvas.line("grid", (LEFT, height), (RIGHT, height), "");
            canvas.text("muted", (LEFT - 6.0, height + 4.0), Anchor::End, &label);
        }
        let ticks = x.ticks(6);
        for (value, label) in &ticks.marks {
            let at = x.at(*value);
            canvas.line("axis", (at, bottom), (at, bottom + 4.0), "");
            canvas.text(
                "muted",
                (at.min(RIGHT - 8.0), bottom + 17.0),
                Anchor::Middle,
                label,
            );
        }
        canvas.line("axis", (LEFT, bottom), (RIGHT, bottom), "");
        let below = ticks.label(&self.x.label);
        canvas.text(
            "muted",
            ((LEFT + RIGHT) / 2.0, bottom + 33.0),
            Anchor::Middle,
            &below,
        );
    }

    fn curve_itself(&self, canvas: &mut Canvas, curve: &Curve<'_>, points: &[(f64, f64)]) {
        let label = Some(curve.series.label.as_str());
        canvas.polyline(&curve.stroke(), points, curve.dash(), label);
        // A few measurements are points with a line between them, not a curve.
        if points.len() <= 30 && !curve.series.noisy {
            let class = format!("fill{}", curve.series.colour % SERIES);
            points.iter().for_each(|p| canvas.dot(&class, *p, 2.5));
        }
    }

    fn description(&self, curves: &[Curve<'_>]) -> String {
        let words = |c: &Curve<'_>| {
            let ((x0, y0), (x1, y1)) = c.ends;
            let label = &c.series.label;
            format!(
                "{label}: {} at {}, {} at {}.",
                number(y0),
                number(x0),
                number(y1),
                number(x1)
            )
        };
        curves.iter().map(words).collect::<Vec<_>>().join(" ")
    }
}

/// A series made ready to be drawn.
struct Curve<'a> {
    series: &'a Series,
    ends: ((f64, f64), (f64, f64)),
    raw: Vec<(f64, f64)>,
    mean: Option<Vec<(f64, f64)>>,
}

impl Curve<'_> {
    fn line(&self) -> &[(f64, f64)] {
        self.mean.as_ref().unwrap_or(&self.raw)
    }

    fn shown(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.raw.iter().chain(self.mean.iter().flatten())
    }

    fn stroke(&self) -> String {
        format!("stroke{}", self.series.colour % SERIES)
    }

    fn dash(&self) -> &'static str {
        DASHES[self.series.dash % DASHES.len()]
    }
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range: Option<(f64, f64)>, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// Values and pixels of both axes, for the pointer readout.
fn readout(x: Scale, y: Scale, y_scaling: Scaling) -> String {
    let numbers = [x.values, x.pixels, y.values, y.pixels].map(|(a, b)| format!("{a:e} {b:e}"));
    let kind = if y_scaling == Scaling::Log {
        "log"
    } else {
        "linear"
    };
    format!("{} {kind}", numbers.join(" "))
}
