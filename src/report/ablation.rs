//! The folder of an ablation (`ortdpo ablate`): `ablation.json` as tables, gains, and curves over training.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::html::{Cell, Section, fold, table, verbatim};
use super::results::Rate;
use super::run;
use super::tables::{difference_of, interval_row, percent, with_error, with_interval};
use crate::plot::{Axis, Chart, Figure, Intervals, Series, number};
use crate::{Error, Result};

const FILE: &str = "ablation.json";

/// What an ablation left.
#[derive(Debug)]
pub struct Ablation {
    /// What it is called in the report.
    pub name: String,
    results: Results,
    /// The ablation's own configuration.
    config: Option<String>,
}

/// `ablation.json`. Whatever a version of the program leaves out is empty here, what it adds is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Results {
    level: Option<f64>,
    baseline: String,
    rewards: Vec<String>,
    prompts: usize,
    images_per_prompt: usize,
    base: Option<Base>,
    arms: Vec<Arm>,
    tuning: Option<Tuning>,
    failures: Vec<Failure>,
    missing: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tuning {
    by: String,
    prompts: usize,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Candidate {
    method: String,
    strategy: String,
    choice: IndexMap<String, Value>,
    value: Option<f64>,
    chosen: bool,
    at_the_edge: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Base {
    rewards: IndexMap<String, f64>,
    sets: IndexMap<String, f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Arm {
    method: String,
    strategy: String,
    choice: IndexMap<String, Value>,
    seeds: Vec<u64>,
    failed: usize,
    rewards: IndexMap<String, RewardResult>,
    sets: IndexMap<String, Mean>,
    curves: IndexMap<String, Vec<(f64, f64)>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RewardResult {
    #[serde(flatten)]
    mean: Mean,
    against_base: Option<Compared>,
    against_baseline: Option<Compared>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct Mean {
    mean: Option<f64>,
    standard_error: Option<f64>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct Compared {
    win_rate: Option<Rate>,
    difference: Option<Rate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Failure {
    run: String,
    reason: String,
}

impl Mean {
    fn cell(self) -> Cell {
        Cell::number(self.mean.map(|mean| with_error(mean, self.standard_error)))
    }
}

impl Ablation {
    /// Whether the folder holds an ablation.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Reads the folder.
    ///
    /// # Errors
    /// The results cannot be read or are damaged.
    pub fn read(folder: &Path, name: String) -> Result<Self> {
        let path = folder.join(FILE);
        let value = run::json(&path)?.unwrap_or_default();
        let results = Results::deserialize(&value).map_err(|error| {
            let what = format!("is not what this program writes: {error}");
            let remedy = "Make it anew: ortdpo ablate writes it when its runs are done.";
            Error::bad(path.display().to_string(), what, remedy)
        })?;
        Ok(Self {
            name,
            results,
            config: run::text(&folder.join("config.yaml"))?,
        })
    }

    /// What is missing or failed, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let failed = self.results.failures.iter();
        let mut notes: Vec<String> = failed
            .map(|failure| format!("{}: {} diverged: {}", self.name, failure.run, failure.reason))
            .collect();
        if self.results.missing > 0 {
            notes.push(format!(
                "{}: {} runs are not done yet.",
                self.name, self.results.missing
            ));
        }
        notes
    }

    /// Tables and gains, then the curves of training if there are any.
    pub fn sections(&self) -> Vec<Section> {
        let mut sections = vec![self.numbers()];
        sections.extend(self.curves());
        sections
    }

    fn numbers(&self) -> Section {
        let results = &self.results;
        let mut section = Section::new(format!("Ablation {}", self.name));
        section.say(&format!(
            "{} combinations of method and strategy, judged by {} prompts with {} images each, which start from the same noise in every \
             model. Means are over seeds of training, with their standard errors.",
            results.arms.len(),
            results.prompts,
            results.images_per_prompt
        ));
        section.body.push_str(&self.means());
        section.plots(self.gain_plots());
        section.body.push_str(&self.comparisons());
        if let Some(tuning) = results
            .tuning
            .as_ref()
            .filter(|tuning| !tuning.candidates.is_empty())
        {
            section
                .body
                .push_str(&fold("How hyperparameters were chosen", &tried(tuning)));
        }
        if let Some(config) = &self.config {
            section
                .body
                .push_str(&fold("The ablation's configuration", &verbatim(config)));
        }
        section
    }

    fn level(&self) -> String {
        self.results.level.map_or(String::new(), |level| {
            format!(" with {:.0} % intervals over seeds and prompts", 100.0 * level)
        })
    }

    /// A row for the initial model and per arm.
    fn means(&self) -> String {
        let results = &self.results;
        let sets: Vec<&String> = results.base.iter().flat_map(|base| base.sets.keys()).collect();
        let failed = results.arms.iter().any(|arm| arm.failed > 0);
        let tuned = results.arms.iter().any(|arm| !arm.choice.is_empty());
        let mut head = vec!["model".to_owned(), "seeds".to_owned()];
        head.extend(failed.then(|| "failed".to_owned()));
        head.extend(tuned.then(|| "chosen values".to_owned()));
        head.extend(results.rewards.iter().chain(sets.iter().copied()).cloned());
        let mut rows = Vec::new();
        if let Some(base) = &results.base {
            let mut row = vec![Cell::text("base"), Cell::number(None)];
            row.extend(failed.then(|| Cell::number(None)));
            row.extend(tuned.then(|| Cell::text("")));
            let value = |values: &IndexMap<String, f64>, name: &String| {
                Cell::number(values.get(name).copied().map(number))
            };
            row.extend(results.rewards.iter().map(|name| value(&base.rewards, name)));
            row.extend(sets.iter().map(|name| value(&base.sets, name)));
            rows.push(row);
        }
        for arm in &results.arms {
            let mut row = vec![Cell::text(arm.name()), Cell::Number(arm.seeds.len().to_string())];
            row.extend(failed.then(|| Cell::Number(arm.failed.to_string())));
            row.extend(tuned.then(|| Cell::text(arm.chosen())));
            row.extend(results.rewards.iter().map(|name| {
                arm.rewards
                    .get(name)
                    .map_or(Cell::number(None), |result| result.mean.cell())
            }));
            row.extend(
                sets.iter()
                    .map(|name| arm.sets.get(*name).map_or(Cell::number(None), |mean| mean.cell())),
            );
            rows.push(row);
        }
        table("Mean scores with their standard errors over seeds", &head, rows)
    }

    /// A row per arm and reward.
    fn comparisons(&self) -> String {
        let baseline = &self.results.baseline;
        let head = [
            "model".to_owned(),
            "by".to_owned(),
            "win rate against base".to_owned(),
            format!("win rate against {baseline}"),
            format!("gain over {baseline}"),
        ];
        let mut rows = Vec::new();
        for arm in &self.results.arms {
            for (reward, result) in &arm.rewards {
                let rate = |compared: Option<Compared>| {
                    Cell::number(
                        compared
                            .and_then(|c| c.win_rate)
                            .map(|rate| with_interval(rate, percent)),
                    )
                };
                let gain = result.against_baseline.and_then(|compared| compared.difference);
                rows.push(vec![
                    Cell::text(arm.name()),
                    Cell::text(reward),
                    rate(result.against_base),
                    rate(result.against_baseline),
                    Cell::number(gain.map(difference_of)),
                ]);
            }
        }
        table(&format!("Comparisons{}", self.level()), &head, rows)
    }

    /// Position of a strategy among all, which gives it its colour in every plot.
    fn number_of(&self, strategy: &str) -> usize {
        let mut strategies: Vec<&str> = Vec::new();
        for arm in &self.results.arms {
            if !strategies.contains(&arm.strategy.as_str()) {
                strategies.push(&arm.strategy);
            }
        }
        strategies
            .iter()
            .position(|name| *name == strategy)
            .unwrap_or_default()
    }

    /// The gains of all arms over the baseline strategy, a plot for each reward.
    fn gain_plots(&self) -> Vec<Figure> {
        let plot = |reward: &String| {
            let row = |arm: &Arm| {
                let compared = arm.rewards.get(reward)?.against_baseline?;
                Some(interval_row(
                    arm.name(),
                    self.number_of(&arm.strategy),
                    compared.difference?,
                    1.0,
                ))
            };
            let rows: Vec<_> = self.results.arms.iter().filter_map(row).collect();
            if rows.is_empty() {
                return None;
            }
            let plot = Intervals {
                title: format!("Gain over {} by {reward}", self.results.baseline),
                x: self.results.level.map_or("mean difference".to_owned(), |level| {
                    format!("mean difference, {:.0} % intervals", 100.0 * level)
                }),
                rows,
                reference: Some(0.0),
            };
            plot.draw()
        };
        self.results.rewards.iter().filter_map(plot).collect()
    }

    /// What was measured during training, method by method.
    fn curves(&self) -> Option<Section> {
        let mut methods: Vec<&str> = self.results.arms.iter().map(|arm| arm.method.as_str()).collect();
        methods.dedup();
        let figures: Vec<Vec<Figure>> = methods.into_iter().map(|method| self.curves_of(method)).collect();
        if figures.iter().all(Vec::is_empty) {
            return None;
        }
        let mut section = Section::new(format!("Training curves of {}", self.name));
        section.say(
            "Means over seeds. Where the reward that labelled the pairs rises while the judge or diversity falls, training is \
             optimising that reward alone: in charts of one against the other, curves that turn down.",
        );
        figures.into_iter().for_each(|of_method| section.plots(of_method));
        Some(section)
    }

    /// Every measure over the steps, and those of pictures against the reward that labelled the pairs.
    fn curves_of(&self, method: &str) -> Vec<Figure> {
        let of_method = self.results.arms.iter().filter(|arm| arm.method == method);
        let arms: Vec<(usize, &Arm)> = of_method
            .map(|arm| (self.number_of(&arm.strategy), arm))
            .collect();
        let names: Vec<&String> = arms
            .iter()
            .take(1)
            .flat_map(|(_, arm)| arm.curves.keys())
            .collect();
        let over_steps = names.iter().map(|name| over_steps(method, name, &arms));
        let mut figures: Vec<Figure> = over_steps.filter_map(|chart| chart.draw()).collect();
        if let Some(first) = self.results.rewards.first().map(|name| format!("reward.{name}")) {
            let others = names
                .iter()
                .filter(|name| **name != &first && is_of_pictures(name));
            figures.extend(others.filter_map(|name| against(method, &first, name, &arms).draw()));
        }
        figures
    }
}

impl Arm {
    fn name(&self) -> String {
        format!("{} + {}", self.method, self.strategy)
    }

    fn chosen(&self) -> String {
        in_words(&self.choice)
    }
}

/// `optimizer.lr 0.0001, objective.beta 2000`.
fn in_words(choice: &IndexMap<String, Value>) -> String {
    let parts: Vec<String> = choice
        .iter()
        .map(|(path, value)| format!("{path} {value}"))
        .collect();
    parts.join(", ")
}

/// A row per candidate.
fn tried(tuning: &Tuning) -> String {
    let caption = format!(
        "Every candidate with its mean {} on {} prompts that are in no other table; the highest is chosen",
        tuning.by, tuning.prompts
    );
    let head = ["model", "values", "mean", "chosen"].map(String::from);
    let row = |candidate: &Candidate| {
        let chosen = match (candidate.chosen, candidate.at_the_edge.is_empty()) {
            (false, _) => String::new(),
            (true, true) => "yes".to_owned(),
            (true, false) => format!("yes, at the edge of {}", candidate.at_the_edge.join(", ")),
        };
        vec![
            Cell::text(format!("{} + {}", candidate.method, candidate.strategy)),
            Cell::text(in_words(&candidate.choice)),
            Cell::number(candidate.value.map(number)),
            Cell::text(chosen),
        ]
    };
    table(&caption, &head, tuning.candidates.iter().map(row).collect())
}

fn is_of_pictures(name: &str) -> bool {
    name.starts_with("reward.") || name.starts_with("diversity.")
}

fn over_steps(method: &str, name: &str, arms: &[(usize, &Arm)]) -> Chart {
    let points = |arm: &Arm| arm.curves.get(name).cloned().unwrap_or_default();
    Chart {
        title: format!("{method}: {name}"),
        x: axis("step"),
        series: series(arms, points),
        ..Chart::default()
    }
}

/// One quantity against another, from the first evaluation to the last.
fn against(method: &str, x: &str, y: &str, arms: &[(usize, &Arm)]) -> Chart {
    let points = |arm: &Arm| {
        let (Some(xs), Some(ys)) = (arm.curves.get(x), arm.curves.get(y)) else {
            return Vec::new();
        };
        let at = |step: f64| ys.iter().find(|point| point.0 == step).map(|point| point.1);
        xs.iter().filter_map(|(step, x)| Some((*x, at(*step)?))).collect()
    };
    Chart {
        title: format!("{method}: {y} against {x}"),
        x: axis(x),
        series: series(arms, points),
        ..Chart::default()
    }
}

fn axis(label: &str) -> Axis {
    Axis {
        label: label.to_owned(),
        ..Axis::default()
    }
}

fn series(arms: &[(usize, &Arm)], points: impl Fn(&Arm) -> Vec<(f64, f64)>) -> Vec<Series> {
    let of_arm = |(number, arm): &(usize, &Arm)| Series {
        label: arm.strategy.clone(),
        points: points(arm),
        colour: *number,
        dash: number / 2 % 4,
        noisy: false,
    };
    arms.iter().map(of_arm).collect()
}
