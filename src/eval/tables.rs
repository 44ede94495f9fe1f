//! Results as tables: as papers print them, and number by number for programs.

use super::results::{Comparison, ModelResult, Rate, Results};
use crate::table::estimate::{digits_for, percent, with_error, with_interval};
use crate::table::{Cell, Column, Format, Table};

/// The results in a format: for people a table of scores and one of win rates, and a table of scores for each group; as
/// CSV a row per model and reward; as JSON the results themselves. Ends without a line break.
pub fn render(results: &Results, format: Format) -> String {
    match format {
        Format::Csv => numbers(results).render(Format::Csv),
        Format::Json => serde_json::to_string_pretty(results).expect("results have string keys only"),
        Format::Text | Format::Markdown | Format::Latex => printed(results, format),
    }
}

fn printed(results: &Results, format: Format) -> String {
    let mut parts = vec![scores(results, &results.models).render(format)];
    let wins = win_rates(results);
    if !wins.rows().is_empty() {
        let baseline = results.baseline.as_deref().unwrap_or_default();
        let percent = results.level * 100.0;
        parts.push(format.heading(&format!(
            "Against {baseline}; {percent:.0} % intervals over prompts"
        )));
        parts.push(wins.render(format));
    }
    for (group, models) in &results.groups {
        parts.push(format.heading(group));
        parts.push(scores(results, models).render(format));
    }
    parts.join("\n\n")
}

/// A row per model: images, those that some reward could not score if there are any, mean and standard error by every
/// reward, win rates, set metrics.
fn scores(results: &Results, models: &[ModelResult]) -> Table {
    let mut sets: Vec<&str> = Vec::new();
    for name in models.iter().flat_map(|model| model.set_metrics.keys()) {
        if !sets.contains(&name.as_str()) {
            sets.push(name);
        }
    }
    let compared = models.iter().any(|model| model.average_win_rate.is_some());
    let incomplete = models.iter().any(|model| model.unscored > 0);
    let mut columns = vec![Column::text("model"), Column::integer("images")];
    columns.extend(incomplete.then(|| Column::integer("unscored")));
    for reward in results.rewards.keys() {
        columns.push(Column::text(reward));
        columns.extend(compared.then(|| Column::real("win %", 1)));
    }
    columns.extend(compared.then(|| Column::text("average win %")));
    columns.extend(sets.iter().map(|name| {
        let values = models.iter().filter_map(|model| model.set_metrics.get(*name));
        let largest = values.fold(0.0, |largest: f64, value| largest.max(value.abs()));
        Column::real(*name, digits_for(largest / 100.0))
    }));
    let mut table = Table::new(columns);
    for model in models {
        let mut row: Vec<Cell> = vec![model.name.as_str().into(), model.images.into()];
        row.extend(incomplete.then(|| model.unscored.into()));
        for reward in results.rewards.keys() {
            row.push(mean(models, model, reward));
            let rate = comparison(model, reward).map(|comparison| 100.0 * comparison.win_rate.value);
            row.extend(compared.then(|| rate.into()));
        }
        row.extend(compared.then(|| model.average_win_rate.map(Rate::in_percent).into()));
        row.extend(
            sets.iter()
                .map(|name| model.set_metrics.get(*name).copied().into()),
        );
        table.push(row);
    }
    table
}

/// A row per model and reward: wins, ties, losses, rate, difference.
fn win_rates(results: &Results) -> Table {
    let mut table = Table::new([
        Column::text("model"),
        Column::text("reward"),
        Column::integer("wins"),
        Column::integer("ties"),
        Column::integer("losses"),
        Column::text("win %"),
        Column::text("difference"),
    ]);
    for model in &results.models {
        for reward in results.rewards.keys() {
            let Some(Comparison {
                count,
                win_rate,
                difference,
            }) = comparison(model, reward)
            else {
                continue;
            };
            table.push([
                model.name.as_str().into(),
                reward.as_str().into(),
                count.wins.into(),
                count.ties.into(),
                count.losses.into(),
                win_rate.in_percent().into(),
                difference.with_sign().into(),
            ]);
        }
    }
    table
}

/// Every number of the results, a row per model, group and reward; the average over rewards is a reward called `average`.
fn numbers(results: &Results) -> Table {
    let mut columns = vec![
        Column::text("group"),
        Column::text("model"),
        Column::text("reward"),
        Column::integer("n"),
    ];
    let reals = ["mean", "standard_error", "mean_low", "mean_high"];
    columns.extend(reals.map(|name| Column::real(name, 6)));
    columns.extend(["wins", "ties", "losses"].map(Column::integer));
    let reals = [
        "win_rate",
        "win_rate_low",
        "win_rate_high",
        "difference",
        "difference_low",
        "difference_high",
    ];
    columns.extend(reals.map(|name| Column::real(name, 6)));
    let mut table = Table::new(columns);
    let groups = results
        .groups
        .iter()
        .map(|(name, models)| (name.as_str(), models));
    for (group, models) in std::iter::once(("", &results.models)).chain(groups) {
        for model in models {
            rows_of(group, model).into_iter().for_each(|row| table.push(row));
        }
    }
    table
}

fn rows_of(group: &str, model: &ModelResult) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for (name, result) in &model.rewards {
        let against = result.against_baseline.as_ref();
        let mut row: Vec<Cell> = vec![
            group.into(),
            model.name.as_str().into(),
            name.as_str().into(),
            result.summary.n.into(),
            result.summary.mean.into(),
            result.summary.standard_error.into(),
            result.interval.low.into(),
            result.interval.high.into(),
            against.map(|c| c.count.wins).into(),
            against.map(|c| c.count.ties).into(),
            against.map(|c| c.count.losses).into(),
        ];
        row.extend(Rate::cells(against.map(|c| c.win_rate)));
        row.extend(Rate::cells(against.map(|c| c.difference)));
        rows.push(row);
    }
    if model.average_win_rate.is_some() {
        let mut row: Vec<Cell> = vec![group.into(), model.name.as_str().into(), "average".into()];
        row.extend(std::iter::repeat_n(Cell::Missing, 8));
        row.extend(Rate::cells(model.average_win_rate));
        row.extend(Rate::cells(None));
        rows.push(row);
    }
    rows
}

fn comparison<'a>(model: &'a ModelResult, reward: &str) -> Option<&'a Comparison> {
    model.rewards.get(reward)?.against_baseline.as_ref()
}

/// Mean ± standard error, with as many digits as the column's standard errors carry.
fn mean(models: &[ModelResult], model: &ModelResult, reward: &str) -> Cell {
    let Some(result) = model.rewards.get(reward) else {
        return Cell::Missing;
    };
    let errors = models
        .iter()
        .filter_map(|model| model.rewards.get(reward)?.summary.standard_error);
    let digits = digits_for(errors.fold(0.0, f64::max));
    with_error(result.summary.mean, result.summary.standard_error, digits).into()
}

impl Rate {
    /// In per cent with its interval, as a share.
    pub(crate) fn in_percent(self) -> String {
        percent(self.value, (self.interval.low, self.interval.high))
    }

    /// With its interval and signs, as a difference.
    pub(crate) fn with_sign(self) -> String {
        let (low, high) = (self.interval.low, self.interval.high);
        with_interval(self.value, (low, high), digits_for((high - low) / 4.0), true)
    }

    /// Value and ends in columns of their own; empty where there is none.
    pub(crate) fn cells(rate: Option<Self>) -> [Cell; 3] {
        [
            rate.map(|rate| rate.value).into(),
            rate.map(|rate| rate.interval.low).into(),
            rate.map(|rate| rate.interval.high).into(),
        ]
    }
}
