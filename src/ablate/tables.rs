//! Results as tables: as papers print them, and number by number for programs.

use super::results::{ArmResult, Compared, Results, TuningResult};
use super::rows::in_words;
use crate::eval::results::Rate;
use crate::stats::Summary;
use crate::table::estimate::{digits_for, with_error};
use crate::table::{Cell, Column, Format, Table};

/// The results in a format: for people the main table, win rates, the ablation and what was tried to choose hyperparameters; as
/// CSV a row per arm, reward and comparison; as JSON the results themselves. Ends without a line break.
pub fn render(results: &Results, format: Format) -> String {
    match format {
        Format::Csv => numbers(results).render(Format::Csv),
        Format::Json => serde_json::to_string_pretty(results).expect("results have text keys only"),
        Format::Text | Format::Markdown | Format::Latex => printed(results, format),
    }
}

fn printed(results: &Results, format: Format) -> String {
    let level = format!("{:.0} % intervals over seeds and prompts", 100.0 * results.level);
    let mut parts = Vec::new();
    let mut add = |heading: String, table: Table| {
        if !table.rows().is_empty() {
            parts.push(format.heading(&heading));
            parts.push(table.render(format));
        }
    };
    let images = format!(
        "{} prompts, {} images each",
        results.prompts, results.images_per_prompt
    );
    add(
        format!(
            "Methods alone and with {}: mean ± standard error over seeds; {images}",
            results.ours
        ),
        main(results),
    );
    add(format!("Win rates, %; {level}"), wins(results));
    add(
        format!(
            "Strategies: gain over {} of the same method and seed; {level}",
            results.baseline
        ),
        ablation(results),
    );
    if let Some(tuning) = &results.tuning {
        let seeds: Vec<String> = tuning.seeds.iter().map(u64::to_string).collect();
        let heading = format!(
            "Tuning: every candidate that was tried; the highest mean {} on {} other prompts is chosen (seeds {})",
            tuning.by,
            tuning.prompts,
            seeds.join(", ")
        );
        add(heading, tried(tuning));
    }
    parts.join("\n\n")
}

/// The arms of the main table with what they are called there: each method under the baseline, then under ours.
fn compared(results: &Results) -> Vec<(String, &ArmResult)> {
    let mut rows = Vec::new();
    for method in results.methods() {
        let plain = results.arm(method, &results.baseline);
        rows.extend(plain.map(|arm| (method.to_owned(), arm)));
        if results.ours != results.baseline {
            let ours = results.arm(method, &results.ours);
            rows.extend(ours.map(|arm| (format!("{method} + {}", results.ours), arm)));
        }
    }
    rows.retain(|(_, arm)| !arm.seeds.is_empty() || arm.failed > 0);
    rows
}

/// A row for the initial model and for each method alone and with ours.
fn main(results: &Results) -> Table {
    let rows = compared(results);
    let sets: Vec<&String> = results.base.iter().flat_map(|base| base.sets.keys()).collect();
    let failed = rows.iter().any(|(_, arm)| arm.failed > 0);
    let mut columns = vec![Column::text("model"), Column::integer("seeds")];
    columns.extend(failed.then(|| Column::integer("failed")));
    columns.extend(
        results
            .rewards
            .iter()
            .chain(sets.iter().copied())
            .map(Column::text),
    );
    let mut table = Table::new(columns);
    let arms: Vec<&ArmResult> = rows.iter().map(|(_, arm)| *arm).collect();
    if let Some(base) = &results.base {
        let mut row: Vec<Cell> = vec!["base".into(), Cell::Missing];
        row.extend(failed.then_some(Cell::Missing));
        let alone = |value: Option<&f64>, digits: usize| -> Cell {
            value.map(|value| format!("{value:.digits$}")).into()
        };
        row.extend(
            results
                .rewards
                .iter()
                .map(|name| alone(base.rewards.get(name), digits(&arms, |arm| reward(arm, name)))),
        );
        row.extend(sets.iter().map(|name| {
            alone(
                base.sets.get(*name),
                digits(&arms, |arm| arm.sets.get(*name).copied()),
            )
        }));
        table.push(row);
    }
    for (name, arm) in &rows {
        let mut row: Vec<Cell> = vec![name.as_str().into(), arm.seeds.len().into()];
        row.extend(failed.then(|| arm.failed.into()));
        row.extend(
            results
                .rewards
                .iter()
                .map(|name| mean(&arms, arm, |arm| reward(arm, name))),
        );
        row.extend(
            sets.iter()
                .map(|name| mean(&arms, arm, |arm| arm.sets.get(*name).copied())),
        );
        table.push(row);
    }
    table
}

/// A row for each comparison of the main table: with the initial model, and of ours with the method alone.
fn wins(results: &Results) -> Table {
    let head = [Column::text("model"), Column::text("against")];
    let rewards = results.rewards.iter().map(Column::text);
    let mut table = Table::new(head.into_iter().chain(rewards).chain([Column::text("average")]));
    let row = |name: &str, against: &str, rate: &dyn Fn(&str) -> Option<Rate>, average: Option<Rate>| {
        let mut row: Vec<Cell> = vec![name.into(), against.into()];
        row.extend(
            results
                .rewards
                .iter()
                .map(|reward| rate(reward).map(Rate::in_percent).into()),
        );
        row.push(average.map(Rate::in_percent).into());
        row
    };
    for (name, arm) in compared(results) {
        let against = |pick: fn(&super::results::RewardResult) -> Option<Compared>| {
            move |name: &str| Some(pick(arm.rewards.get(name)?)?.win_rate)
        };
        let with_base = against(|result| Some(result.against_base));
        table.push(row(&name, "base", &with_base, arm.average_win_rate));
        if arm.strategy != results.baseline && arm.rewards.values().any(|r| r.against_baseline.is_some()) {
            let with_plain = against(|result| result.against_baseline);
            table.push(row(&name, &arm.method, &with_plain, None));
        }
    }
    table
}

/// A row per arm of the methods that have several: what it moves, its means, and its gains over the baseline.
fn ablation(results: &Results) -> Table {
    let mut columns = vec![
        Column::text("method"),
        Column::text("strategy"),
        Column::text("reference"),
        Column::text("timesteps"),
        Column::integer("seeds"),
    ];
    for reward in &results.rewards {
        columns.extend([Column::text(reward), Column::text(format!("{reward} gain"))]);
    }
    let mut table = Table::new(columns);
    for method in results.methods() {
        let of_method = results.arms.iter().filter(|arm| arm.method == method);
        let arms: Vec<&ArmResult> = of_method.filter(|arm| !arm.seeds.is_empty()).collect();
        if arms.len() < 2 {
            continue;
        }
        for arm in &arms {
            let marked = |is: bool| Cell::from(if is { "yes" } else { "" });
            let mut row: Vec<Cell> = vec![
                method.into(),
                arm.strategy.as_str().into(),
                marked(arm.moves_reference),
                marked(arm.treats_timesteps),
                arm.seeds.len().into(),
            ];
            for name in &results.rewards {
                row.push(mean(&arms, arm, |arm| reward(arm, name)));
                let gain = arm.rewards.get(name).and_then(|result| result.against_baseline);
                row.push(gain.map(|compared| compared.difference.with_sign()).into());
            }
            table.push(row);
        }
    }
    table
}

/// A row per candidate.
fn tried(tuning: &TuningResult) -> Table {
    let mut table = Table::new([
        Column::text("method"),
        Column::text("strategy"),
        Column::text("values"),
        Column::real(&tuning.by, 4),
        Column::text("chosen"),
    ]);
    for candidate in &tuning.candidates {
        table.push([
            candidate.method.as_str().into(),
            candidate.strategy.as_str().into(),
            in_words(&candidate.choice).into(),
            candidate.value.into(),
            match (candidate.chosen, candidate.at_the_edge.is_empty()) {
                (false, _) => "".into(),
                (true, true) => "yes".into(),
                (true, false) => format!("yes, at the edge of {}", candidate.at_the_edge.join(", ")).into(),
            },
        ]);
    }
    table
}

/// Every number, a row per arm, measure and what it is compared with; the initial model is a method called `base`.
fn numbers(results: &Results) -> Table {
    let mut columns = ["method", "strategy", "measure", "against"]
        .map(Column::text)
        .to_vec();
    columns.push(Column::integer("seeds"));
    columns.extend(
        [
            "mean",
            "standard_error",
            "win_rate",
            "win_rate_low",
            "win_rate_high",
            "difference",
            "difference_low",
            "difference_high",
        ]
        .map(|name| Column::real(name, 6)),
    );
    let mut table = Table::new(columns);
    if let Some(base) = &results.base {
        for (name, value) in base.rewards.iter().chain(&base.sets) {
            let mut row: Vec<Cell> = vec!["base".into(), "".into(), name.as_str().into(), "".into()];
            row.extend([Cell::Missing, (*value).into()]);
            row.extend(std::iter::repeat_n(Cell::Missing, 7));
            table.push(row);
        }
    }
    for arm in &results.arms {
        numbers_of(arm, &results.baseline)
            .into_iter()
            .for_each(|row| table.push(row));
    }
    table
}

/// The rows of an arm.
fn numbers_of(arm: &ArmResult, baseline: &str) -> Vec<Vec<Cell>> {
    let row = |measure: &str, against: &str, summary: Option<Summary>, compared: [Option<Rate>; 2]| {
        let mut row: Vec<Cell> = vec![
            arm.method.as_str().into(),
            arm.strategy.as_str().into(),
            measure.into(),
            against.into(),
            arm.seeds.len().into(),
            summary.map(|s| s.mean).into(),
            summary.and_then(|s| s.standard_error).into(),
        ];
        row.extend(compared.into_iter().flat_map(Rate::cells));
        row
    };
    let mut rows = Vec::new();
    for (name, result) in &arm.rewards {
        let with_base = Some((result.against_base, "base"));
        let with_baseline = result.against_baseline.map(|compared| (compared, baseline));
        for (compared, against) in with_base.into_iter().chain(with_baseline) {
            let rates = [Some(compared.win_rate), Some(compared.difference)];
            rows.push(row(name, against, Some(result.summary), rates));
        }
    }
    if arm.average_win_rate.is_some() {
        rows.push(row("average", "base", None, [arm.average_win_rate, None]));
    }
    let sets = arm.sets.iter();
    rows.extend(sets.map(|(name, summary)| row(name, "", Some(*summary), [None, None])));
    rows
}

fn reward(arm: &ArmResult, name: &str) -> Option<Summary> {
    arm.rewards.get(name).map(|result| result.summary)
}

/// Digits that show the largest standard error among `arms`.
fn digits(arms: &[&ArmResult], of: impl Fn(&ArmResult) -> Option<Summary>) -> usize {
    let errors = arms.iter().filter_map(|arm| of(arm)?.standard_error);
    digits_for(errors.fold(0.0, f64::max))
}

fn mean(arms: &[&ArmResult], arm: &ArmResult, of: impl Fn(&ArmResult) -> Option<Summary>) -> Cell {
    let digits = digits(arms, &of);
    of(arm)
        .map(|summary| with_error(summary.mean, summary.standard_error, digits))
        .into()
}
