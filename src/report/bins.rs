//! Timestep bins: how they were drawn and weighted, and what they learned, over training and at its end.

use super::html::{Cell, Section, fold, table};
use super::metrics::Bin;
use super::run::Run;
use crate::plot::{Axis, Chart, Figure, HeatMap, Hue, Series, number};

/// A quantity of a bin.
struct Quantity {
    name: &'static str,
    of: fn(&Bin) -> Option<f64>,
    hue: Hue,
}

const QUANTITIES: [Quantity; 5] = [
    Quantity {
        name: "probability",
        of: |bin| bin.p,
        hue: Hue::Sequential,
    },
    Quantity {
        name: "loss weight",
        of: |bin| bin.w,
        hue: Hue::Around(1.0),
    },
    Quantity {
        name: "variance of the reward signal",
        of: |bin| bin.v,
        hue: Hue::Sequential,
    },
    Quantity {
        name: "held-out margin",
        of: |bin| bin.margin,
        hue: Hue::Around(0.0),
    },
    Quantity {
        name: "held-out accuracy",
        of: |bin| bin.acc,
        hue: Hue::Around(0.5),
    },
];

/// A section, if any run logged its bins.
pub fn sections(runs: &[Run]) -> Option<Section> {
    let logged: Vec<&Run> = runs.iter().filter(|run| !run.metrics.bins.is_empty()).collect();
    if logged.is_empty() {
        return None;
    }
    let mut section = Section::new("Timestep bins");
    section.say(
        "Equal bins of the training timesteps; bin 1 is the noisiest, where composition is decided, the last the \
         cleanest. Probability is how often the sampling rule draws a bin, weight what the loss of its samples is \
         multiplied by.",
    );
    section.plots(QUANTITIES.iter().filter_map(|q| last_state(q, runs)).collect());
    for run in logged {
        let heading = match runs.len() {
            1 => "Over training".to_owned(),
            _ => format!("{} over training", run.name),
        };
        section
            .body
            .push_str(&format!("<h3>{}</h3>", crate::plot::escape(&heading)));
        section.plots(
            QUANTITIES
                .iter()
                .filter_map(|q| over_training(q, run, runs.len()))
                .collect(),
        );
        section.body.push_str(&values(run));
    }
    Some(section)
}

/// A quantity by bin at the last evaluation of each run.
fn last_state(quantity: &Quantity, runs: &[Run]) -> Option<Figure> {
    let series = runs.iter().enumerate().filter_map(|(r, run)| {
        let (step, bins) = run.metrics.bins.last()?;
        let points = bins
            .iter()
            .enumerate()
            .filter_map(|(i, bin)| Some((i as f64 + 1.0, (quantity.of)(bin)?)));
        Some(Series {
            label: format!("{}, step {step}", run.name),
            points: points.collect(),
            colour: r,
            dash: r,
            noisy: false,
        })
    });
    let chart = Chart {
        title: format!("Final {}", quantity.name),
        x: Axis {
            label: "bin, from noisy to clean".into(),
            ..Axis::default()
        },
        series: series.collect(),
        ..Chart::default()
    };
    chart.draw()
}

/// A quantity that was the same in every bin at every evaluation has no map.
fn over_training(quantity: &Quantity, run: &Run, runs: usize) -> Option<Figure> {
    let log = &run.metrics.bins;
    let bins = log.iter().map(|(_, bins)| bins.len()).max()?;
    let values = |i: usize| {
        log.iter()
            .map(|(_, bins)| bins.get(i).and_then(quantity.of))
            .collect()
    };
    let rows: Vec<(String, Vec<Option<f64>>)> = (0..bins).map(|i| (bin_name(i, bins), values(i))).collect();
    let mut known = rows.iter().flat_map(|(_, values)| values).flatten();
    let first = *known.next()?;
    if known.all(|value| *value == first) {
        return None;
    }
    let title = match runs {
        1 => format!("{} by bin", capitalised(quantity.name)),
        _ => format!("{} by bin, {}", capitalised(quantity.name), run.name),
    };
    let map = HeatMap {
        title,
        x: "step".into(),
        columns: log.iter().map(|(step, _)| step.to_string()).collect(),
        rows,
        hue: quantity.hue,
    };
    map.draw()
}

fn bin_name(i: usize, bins: usize) -> String {
    match i + 1 {
        1 => "1, noisy".into(),
        last if last == bins => format!("{last}, clean"),
        between => between.to_string(),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// The last evaluation as a table.
fn values(run: &Run) -> String {
    let Some((step, bins)) = run.metrics.bins.last() else {
        return String::new();
    };
    let head: Vec<String> = ["bin"]
        .into_iter()
        .chain(QUANTITIES.iter().map(|q| q.name))
        .map(String::from)
        .collect();
    let row = |(i, bin): (usize, &Bin)| {
        let cells = QUANTITIES.iter().map(|q| Cell::number((q.of)(bin).map(number)));
        [Cell::text(bin_name(i, bins.len()))]
            .into_iter()
            .chain(cells)
            .collect()
    };
    let rows = bins.iter().enumerate().map(row).collect();
    let caption = format!("Bins of {} at step {step}", run.name);
    fold("The last values as a table", &table(&caption, &head, rows))
}
