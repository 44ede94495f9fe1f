//! What was run: differences between the runs' configurations, and everything in full behind folds.

use serde_json::Value;

use super::evaluation::Evaluation;
use super::html::{Cell, Section, fold, table, verbatim};
use super::run::Run;

/// Configurations, manifests and summaries.
pub fn section(runs: &[Run], evaluations: &[Evaluation]) -> Option<Section> {
    let mut section = Section::new("Settings");
    if runs.len() > 1 {
        section.body.push_str(&differences(runs));
    }
    for run in runs {
        let parts = [
            ("configuration", run.config.clone()),
            ("manifest", run.manifest.as_ref().map(pretty)),
            ("summary", run.summary.as_ref().map(pretty)),
        ];
        add(&mut section, &run.name, parts);
    }
    for evaluation in evaluations {
        let parts = [
            ("manifest", evaluation.manifest.as_ref().map(pretty)),
            ("results", evaluation.results.as_ref().map(pretty)),
        ];
        add(&mut section, &evaluation.name, parts);
    }
    (!section.body.is_empty()).then_some(section)
}

fn add<const N: usize>(section: &mut Section, name: &str, parts: [(&str, Option<String>); N]) {
    for (what, text) in parts {
        if let Some(text) = text {
            section
                .body
                .push_str(&fold(&format!("{name}: {what}"), &verbatim(&text)));
        }
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("JSON values have text keys")
}

/// The keys whose values are not the same in all runs.
fn differences(runs: &[Run]) -> String {
    let all: Vec<Vec<(String, String)>> = runs.iter().map(Run::settings).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in all.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |settings: &[(String, String)], key: &str| {
        let found = settings.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone())
    };
    let row = |key: &&String| {
        let values: Vec<_> = all.iter().map(|settings| value(settings, key)).collect();
        if values.iter().all(|v| *v == values[0]) {
            return None;
        }
        let cells = values
            .into_iter()
            .map(|v| Cell::Text(v.unwrap_or_else(|| "\u{2013}".into())));
        Some([Cell::text(key)].into_iter().chain(cells).collect())
    };
    let rows: Vec<Vec<Cell>> = keys.iter().filter_map(row).collect();
    if rows.is_empty() {
        return "<p>The runs have the same configuration.</p>".into();
    }
    let head: Vec<String> = ["key".to_owned()]
        .into_iter()
        .chain(runs.iter().map(|run| run.name.clone()))
        .collect();
    table("Where the configurations differ", &head, rows)
}
