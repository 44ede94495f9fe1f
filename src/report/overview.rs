//! The runs at a glance.

use serde_json::Value;

use super::html::{Cell, Section, table};
use super::run::Run;
use crate::plot::number;

/// A row per run; nothing without runs.
pub fn section(runs: &[Run]) -> Option<Section> {
    if runs.is_empty() {
        return None;
    }
    let mut section = Section::new(if runs.len() == 1 { "The run" } else { "The runs" });
    if let [run] = runs {
        section.body.push_str(&tiles(run));
    }
    let head = [
        "run",
        "objective",
        "reference",
        "steps",
        "pairs",
        "accuracy before",
        "accuracy after",
        "margin after",
        "peak memory",
        "time",
    ];
    let rows = runs.iter().map(row).collect();
    let caption = "Accuracy and margin are held-out, against the initial policy";
    section
        .body
        .push_str(&table(caption, &head.map(String::from), rows));
    Some(section)
}

/// The few numbers one looks for first.
fn tiles(run: &Run) -> String {
    let percent = |path: &[&str]| {
        let share = run.fact(path).and_then(Value::as_f64)?;
        Some(format!("{:.1} %", 100.0 * share))
    };
    let tiles = [
        ("held-out accuracy", percent(&["final", "acc_init"])),
        ("accuracy of the labels' own scorer", percent(&["ceiling_acc"])),
        ("steps", Some(run.metrics.steps.to_string())),
        (
            "trained values",
            run.fact(&["trainable"]).and_then(Value::as_u64).map(grouped),
        ),
        (
            "time",
            run.fact(&["seconds"]).and_then(Value::as_f64).map(duration),
        ),
    ];
    let tile = |(label, value): (&str, Option<String>)| {
        let value = value?;
        Some(format!("<div><dt>{label}</dt><dd>{value}</dd></div>"))
    };
    let tiles: String = tiles.into_iter().filter_map(tile).collect();
    format!(r#"<dl class="tiles">{tiles}</dl>"#)
}

fn row(run: &Run) -> Vec<Cell> {
    let settings = run.settings();
    let setting = |key: &str| {
        let found = settings.iter().find(|(name, _)| name == key);
        Cell::text(found.map_or("\u{2013}", |(_, value)| value))
    };
    let fact = |path: &[&str]| Cell::number(run.fact(path).and_then(Value::as_f64).map(number));
    vec![
        Cell::text(&run.name),
        setting("objective.kind"),
        setting("reference.update"),
        Cell::Number(run.metrics.steps.to_string()),
        fact(&["data", "pairs"]),
        fact(&["initial", "acc_init"]),
        fact(&["final", "acc_init"]),
        fact(&["final", "margin_init"]),
        Cell::number(
            run.fact(&["peak_rss_mb"])
                .and_then(Value::as_f64)
                .map(|mb| format!("{mb:.0} MB")),
        ),
        Cell::number(run.fact(&["seconds"]).and_then(Value::as_f64).map(duration)),
    ]
}

/// A count with its thousands apart.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let parts: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|part| std::str::from_utf8(part).ok())
        .collect();
    parts.join(",")
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}
