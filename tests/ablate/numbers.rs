//! Numbers and tables, held against the rows they come from.

use std::fs;

use serde_json::Value;

use crate::common::train::paragraph;
use crate::common::{stderr, stdout};
use crate::workspace::Workspace;

/// The numbers of every image, prompt by prompt.
pub fn scores(row: &Value, reward: &str) -> Vec<f64> {
    let values = row["evaluation"]["rewards"][reward].as_array().unwrap();
    values.iter().map(|value| value.as_f64().unwrap()).collect()
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Whether a number of the results is `expected`, up to rounding.
fn close(found: &Value, expected: f64) -> bool {
    (found.as_f64().unwrap() - expected).abs() < 1e-9 * expected.abs().max(1.0)
}

/// Means, errors, wins and gains counted here, from the rows.
pub fn numbers_are_those_of_the_rows(workspace: &Workspace) {
    let (rows, results) = (workspace.rows(), workspace.results());
    let of = |strategy: &str, seed: u64| {
        let is_it = |row: &&Value| row["run"]["strategy"] == strategy && row["run"]["seed"] == seed;
        rows.iter().find(is_it).unwrap()
    };
    assert_eq!(results["base"]["rewards"].as_object().unwrap().len(), 2);
    for (arm, strategy) in ["plain", "ema"].into_iter().enumerate() {
        let arm = &results["arms"][arm];
        assert_eq!(
            (&arm["strategy"], &arm["seeds"]),
            (&strategy.into(), &serde_json::json!([0, 1]))
        );
        assert_eq!(arm["moves_reference"], strategy == "ema");
        let mut average = Vec::new();
        for reward in ["clip", "aesthetic"] {
            let base = scores(&rows[0], reward);
            assert_eq!(base.len(), 3 * 4, "three prompts, two seeds, two images each");
            let own = [0, 1].map(|seed| scores(of(strategy, seed), reward));
            let means = own.each_ref().map(|values| mean(values));
            let found = &arm["rewards"][reward];
            assert!(close(&found["mean"], mean(&means)), "{found}");
            // Of two values, half their distance.
            assert!(
                close(&found["standard_error"], (means[0] - means[1]).abs() / 2.0),
                "{found}"
            );
            let win = |a: &f64, b: &f64| f64::from(u8::from(a > b)) + 0.5 * f64::from(u8::from(a == b));
            let all = own.iter().flat_map(|values| values.iter().zip(&base));
            let outcomes: Vec<f64> = all.clone().map(|(a, b)| win(a, b)).collect();
            let differences: Vec<f64> = all.map(|(a, b)| a - b).collect();
            let against = &found["against_base"];
            assert!(close(&against["win_rate"]["value"], mean(&outcomes)), "{found}");
            assert!(
                close(&against["difference"]["value"], mean(&differences)),
                "{found}"
            );
            average.push(mean(&outcomes));
            let gains = [0, 1].map(|seed| {
                let plain = scores(of("plain", seed), reward);
                mean(&own[seed as usize]) - mean(&plain)
            });
            match strategy {
                "plain" => assert!(found["against_baseline"].is_null()),
                _ => {
                    let gain = &found["against_baseline"]["difference"];
                    assert!(close(&gain["value"], mean(&gains)), "{found}");
                    let ends = ["low", "high"].map(|end| gain["interval"][end].as_f64().unwrap());
                    assert!(ends[0] <= mean(&gains) && mean(&gains) <= ends[1], "{found}");
                }
            }
        }
        assert!(close(&arm["average_win_rate"]["value"], mean(&average)));
        assert!(
            arm["sets"]["diversity clip"]["mean"].as_f64().unwrap() > 0.0,
            "{arm}"
        );
        assert_eq!(
            arm["curves"]["acc_init"].as_array().unwrap().len(),
            3,
            "before, in the middle, after"
        );
    }
}

/// The settings of the last row.
fn last_settings(rows: &str) -> String {
    let row: Value = serde_json::from_str(rows.lines().last().unwrap()).unwrap();
    row["settings"].as_str().unwrap().to_owned()
}

/// The page that an ablation leaves, and its plots.
pub fn the_report_shows_the_numbers(workspace: &Workspace) {
    let page = fs::read_to_string(workspace.path("out/report.html")).unwrap();
    let gain = &workspace.results()["arms"][1]["rewards"]["clip"]["against_baseline"];
    let rate = gain["win_rate"]["value"].as_f64().unwrap();
    for part in [
        "Ablation out",
        "dpo + ema",
        "Gain over plain by aesthetic",
        "dpo: acc_init",
        &format!("{:.1} % [", 100.0 * rate),
    ] {
        assert!(page.contains(part), "{part}");
    }
    for plot in ["gain-over-plain-by-clip", "dpo-margin-init"] {
        assert!(
            workspace.path(&format!("out/plots/{plot}.svg")).is_file(),
            "{plot}"
        );
    }
}

/// The rows as somebody might find them in a repository, without the folder they were made in.
pub fn tables_come_from_the_rows_alone(workspace: &Workspace) {
    let printed = stdout(&workspace.ran(&["--format", "markdown"]));
    assert!(
        printed.contains("**Methods alone and with ema: mean ± standard error over seeds")
            && printed.contains("| dpo + ema | dpo     |"),
        "{printed}"
    );
    assert_eq!(
        printed,
        fs::read_to_string(workspace.path("out/tables.md")).unwrap()
    );
    let expected = fs::read_to_string(workspace.path("out/ablation.json")).unwrap();
    fs::rename(workspace.path("out/rows.jsonl"), workspace.path("kept.jsonl")).unwrap();
    fs::rename(workspace.path("out"), workspace.path("gone")).unwrap();
    let again = workspace.ran(&["--tables-only", "--rows", "kept.jsonl", "--format", "json"]);
    assert_eq!(stdout(&again), expected);
    let again = workspace.ran(&["--tables-only", "--rows", "kept.jsonl", "--format", "markdown"]);
    assert_eq!(stdout(&again), printed);
    assert!(!workspace.path("out").exists());
    // Rows of other settings are taken, and it is said.
    let kept = fs::read_to_string(workspace.path("kept.jsonl")).unwrap();
    let settings = last_settings(&kept);
    let changed: String = kept.replace(&settings, &"0".repeat(settings.len()));
    workspace.write("changed.jsonl", &changed);
    let again = workspace.ran(&["--tables-only", "--rows", "changed.jsonl", "--format", "json"]);
    assert_eq!(stdout(&again), expected);
    assert!(
        stderr(&again).contains("changed.jsonl: 1 rows were made under other settings"),
        "{}",
        stderr(&again)
    );
    let error = paragraph(&workspace.run(&["--tables-only"]), 2);
    assert!(error.contains("out/rows.jsonl: is not there"), "{error}");
}
