//! What an evaluation found: the table that people publish, and how its models compare with the baseline.

use super::evaluation::Evaluation;
use super::html::{Cell, Section, fold, table};
use super::ranking::signed;
use super::results::{Comparison, ModelResult, Rate, Results};
use crate::plot::{Figure, IntervalRow, Intervals, fixed, number};

/// Always a section: an evaluation without numbers says so.
pub fn section(evaluation: &Evaluation) -> Section {
    let mut section = Section::new(format!("Evaluation {}", evaluation.name));
    if let Some(baseline) = evaluation.baseline() {
        let images: usize = evaluation.models.iter().map(|model| model.images.len()).sum();
        section.say(&format!(
            "{} models, {} prompts, {images} images. Comparisons are with {}, image by image from the same noise.",
            evaluation.models.len(),
            evaluation.prompts().len(),
            baseline.name
        ));
    }
    match (evaluation.results(), &evaluation.table) {
        (Some(results), _) if !results.models.is_empty() => results_of(&results, &mut section),
        (_, Some((head, rows))) => {
            let rows = rows.iter().map(|row| row.iter().map(printed).collect()).collect();
            section.body.push_str(&table("Results", head, rows));
        }
        _ => section.say("There are no results yet."),
    }
    section
}

/// A cell of a table that was printed before.
fn printed(text: &String) -> Cell {
    match text.parse::<f64>() {
        Ok(value) => Cell::Number(number(value)),
        Err(_) => Cell::text(text),
    }
}

fn results_of(results: &Results, section: &mut Section) {
    section
        .body
        .push_str(&scores("Mean scores with their standard errors", &results.models));
    let comparisons = comparisons(results);
    if !comparisons.is_empty() {
        let level = results.level.map_or(String::new(), |level| {
            format!(" with {:.0} % intervals", 100.0 * level)
        });
        let baseline = results.baseline.as_deref().unwrap_or("the baseline");
        section.plots(win_rate_plot(results, baseline, &level).into_iter().collect());
        section.plots(difference_plots(results, baseline, &level));
        let caption = format!("Against {baseline}{level}; the win rate is (wins + ½ ties) / n");
        let head = [
            "model",
            "by",
            "wins",
            "ties",
            "losses",
            "win rate",
            "mean difference",
        ]
        .map(String::from);
        section.body.push_str(&table(&caption, &head, comparisons));
    }
    for (group, models) in &results.groups {
        section
            .body
            .push_str(&fold(group, &scores(&format!("Mean scores, {group}"), models)));
    }
}

/// A row per model.
fn scores(caption: &str, models: &[ModelResult]) -> String {
    let rewards = names(models.iter().flat_map(|model| model.rewards.keys()));
    let sets = names(models.iter().flat_map(|model| model.set_metrics.keys()));
    let unscored = models.iter().any(|model| model.unscored > 0);
    let mut head = vec!["model".to_owned(), "images".to_owned()];
    head.extend(unscored.then(|| "not scored".to_owned()));
    head.extend(rewards.iter().chain(&sets).map(|name| (*name).clone()));
    let row = |model: &ModelResult| {
        let mut cells = vec![Cell::text(&model.name), Cell::Number(model.images.to_string())];
        cells.extend(unscored.then(|| Cell::Number(model.unscored.to_string())));
        cells.extend(rewards.iter().map(|name| {
            let result = model.rewards.get(*name);
            Cell::number(result.and_then(|r| Some(with_error(r.mean?, r.standard_error))))
        }));
        cells.extend(sets.iter().map(|name| {
            let metric = |model: &ModelResult| model.set_metrics.get(*name).copied().flatten();
            let largest = models.iter().filter_map(metric).map(f64::abs).fold(0.0, f64::max);
            Cell::number(metric(model).map(|value| fixed(value, digits_of(largest / 100.0))))
        }));
        cells
    };
    table(caption, &head, models.iter().map(row).collect())
}

/// Every name once, in the order in which they come.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A mean to the digits that its standard error leaves meaning to.
pub(super) fn with_error(mean: f64, error: Option<f64>) -> String {
    match error.filter(|error| error.is_finite() && *error > 0.0) {
        Some(error) => {
            let digits = digits_of(error);
            format!("{} ± {}", fixed(mean, digits), fixed(error, digits))
        }
        None => number(mean),
    }
}

/// Digits behind the point that show two digits of an error.
fn digits_of(error: f64) -> usize {
    match error > 0.0 {
        true => (1.0 - error.log10().floor()).clamp(0.0, 9.0) as usize,
        false => 3,
    }
}

/// A difference to the digits that its interval leaves meaning to.
pub(super) fn difference_of(rate: Rate) -> String {
    match rate.interval {
        // The interval is about four standard errors wide.
        Some(interval) => {
            let digits = digits_of((interval.high - interval.low) / 4.0);
            with_interval(rate, |value| signed(value, digits))
        }
        None => number(rate.value),
    }
}

/// A row per model and reward, and one for the average of the rewards.
fn comparisons(results: &Results) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for model in &results.models {
        for (reward, result) in &model.rewards {
            let Some(Comparison {
                wins,
                ties,
                losses,
                win_rate,
                difference,
            }) = &result.against_baseline
            else {
                continue;
            };
            let counts = [wins, ties, losses].map(|count| Cell::Number(count.to_string()));
            let mut row = vec![Cell::text(&model.name), Cell::text(reward)];
            row.extend(counts);
            row.push(Cell::number(win_rate.map(|rate| with_interval(rate, percent))));
            row.push(Cell::number(difference.map(difference_of)));
            rows.push(row);
        }
        if let (Some(average), true) = (model.average_win_rate, model.rewards.len() > 1) {
            let mut row = vec![Cell::text(&model.name), Cell::text("average")];
            row.extend((0..3).map(|_| Cell::number(None)));
            row.push(Cell::Number(with_interval(average, percent)));
            row.push(Cell::number(None));
            rows.push(row);
        }
    }
    rows
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

pub(super) fn with_interval(rate: Rate, show: impl Fn(f64) -> String) -> String {
    match rate.interval {
        Some(interval) => format!(
            "{} [{}, {}]",
            show(rate.value),
            show(interval.low),
            show(interval.high)
        ),
        None => show(rate.value),
    }
}

/// An estimate drawn; `model` gives the colour.
pub(super) fn interval_row(label: String, model: usize, rate: Rate, factor: f64) -> IntervalRow {
    IntervalRow {
        label,
        value: factor * rate.value,
        interval: rate.interval.map(|i| (factor * i.low, factor * i.high)),
        colour: model,
    }
}

/// Every model's win rates by every reward.
fn win_rate_plot(results: &Results, baseline: &str, level: &str) -> Option<Figure> {
    let mut rows = Vec::new();
    for (m, model) in results.models.iter().enumerate() {
        for (reward, result) in &model.rewards {
            let rate = result.against_baseline.as_ref().and_then(|c| c.win_rate);
            rows.extend(rate.map(|rate| interval_row(format!("{}, {reward}", model.name), m, rate, 100.0)));
        }
    }
    let plot = Intervals {
        title: format!("Win rate against {baseline}"),
        x: format!("%{level}"),
        rows,
        reference: Some(50.0),
    };
    plot.draw()
}

/// The mean difference by each reward; each has its own unit.
fn difference_plots(results: &Results, baseline: &str, level: &str) -> Vec<Figure> {
    let plot = |reward: &&String| {
        let row = |(m, model): (usize, &ModelResult)| {
            let comparison = model.rewards.get(*reward)?.against_baseline.as_ref()?;
            Some(interval_row(model.name.clone(), m, comparison.difference?, 1.0))
        };
        let rows: Vec<IntervalRow> = results.models.iter().enumerate().filter_map(row).collect();
        if rows.is_empty() {
            return None;
        }
        let plot = Intervals {
            title: format!("Difference to {baseline} by {reward}"),
            x: format!("mean difference{level}"),
            rows,
            reference: Some(0.0),
        };
        plot.draw()
    };
    names(results.models.iter().flat_map(|model| model.rewards.keys()))
        .iter()
        .filter_map(plot)
        .collect()
}
