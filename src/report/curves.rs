//! Curves of training: what happened at each step, and what held-out pairs said.

use serde_json::Value;

use super::html::{Cell, Section, fold, table};
use super::metrics::Column;
use super::run::Run;
use crate::plot::{Axis, Chart, Figure, Rule, Scaling, Series, number, window};

/// How to get a quantity from a run.
#[derive(Clone, Copy)]
enum Source {
    /// A key of the log.
    Logged(&'static str),
    /// A key that is measured at evaluations, and before the first step.
    HeldOut(&'static str),
    /// One key minus another.
    Difference(&'static str, &'static str),
}

impl Source {
    fn of(self, run: &Run) -> Column {
        match self {
            Self::Logged(key) => run.metrics.column(key).to_vec(),
            Self::HeldOut(key) => run.evaluated(key),
            Self::Difference(key, other) => run.metrics.difference(key, other),
        }
    }

    fn keys(self) -> Vec<&'static str> {
        match self {
            Self::Logged(key) | Self::HeldOut(key) => vec![key],
            Self::Difference(key, other) => vec![key, other],
        }
    }
}

/// One chart: quantities that belong together.
struct Panel {
    title: &'static str,
    /// Unit of the values.
    unit: &'static str,
    quantities: &'static [(&'static str, Source)],
    scaling: Scaling,
    /// Whether values scatter from step to step.
    noisy: bool,
    /// The value that means "no better than chance" or "no change".
    neutral: Option<(&'static str, f64)>,
}

/// A heading, a sentence below it, and its charts.
struct Group {
    heading: &'static str,
    text: &'static str,
    panels: &'static [Panel],
}

use Source::{Difference, HeldOut, Logged};

const LINE: Panel = Panel {
    title: "",
    unit: "",
    quantities: &[],
    scaling: Scaling::Linear,
    noisy: true,
    neutral: None,
};

const MEASURED: Panel = Panel { noisy: false, ..LINE };

const GROUPS: [Group; 5] = [
    Group {
        heading: "Held-out pairs",
        text: "Pairs that training never sees, with the same draws of noise and timestep at every evaluation. Implicit \
               accuracy is the share of pairs in which, in the mean over a pair's draws, the policy's denoising error falls \
               more (or rises less) on the preferred image than on the rejected one. By bins of timesteps, every draw counts \
               by itself.",
        panels: &[
            Panel {
                title: "Held-out implicit accuracy",
                unit: "share",
                quantities: &[
                    ("against the initial policy", HeldOut("acc_init")),
                    ("against the reference", HeldOut("acc_ref")),
                ],
                neutral: Some(("chance", 0.5)),
                ..MEASURED
            },
            Panel {
                title: "Held-out margin",
                unit: "error",
                quantities: &[
                    ("against the initial policy", HeldOut("margin_init")),
                    ("against the reference", HeldOut("margin_ref")),
                ],
                neutral: Some(("no preference", 0.0)),
                ..MEASURED
            },
        ],
    },
    Group {
        heading: "Training",
        text: "",
        panels: &[
            Panel {
                title: "Loss",
                unit: "loss",
                quantities: &[("loss", Logged("loss"))],
                ..LINE
            },
            Panel {
                title: "Implicit accuracy on training pairs",
                unit: "share",
                quantities: &[("accuracy", Logged("acc"))],
                neutral: Some(("chance", 0.5)),
                ..LINE
            },
            Panel {
                title: "Margin on training pairs",
                unit: "error",
                quantities: &[("margin", Logged("margin"))],
                neutral: Some(("no preference", 0.0)),
                ..LINE
            },
            Panel {
                title: "Error against the reference's",
                unit: "policy − reference",
                quantities: &[
                    ("preferred images", Difference("e_w", "ref_e_w")),
                    ("rejected images", Difference("e_l", "ref_e_l")),
                ],
                neutral: Some(("no change", 0.0)),
                ..LINE
            },
            Panel {
                title: "Denoising error, preferred images",
                unit: "error",
                quantities: &[("policy", Logged("e_w")), ("reference", Logged("ref_e_w"))],
                ..LINE
            },
            Panel {
                title: "Denoising error, rejected images",
                unit: "error",
                quantities: &[("policy", Logged("e_l")), ("reference", Logged("ref_e_l"))],
                ..LINE
            },
        ],
    },
    Group {
        heading: "Images made while training",
        text: "Rewards of the images that an online objective learns from, a point a round. Every round has prompts and noise \
               of its own, so that neighbouring points differ by chance, too.",
        panels: &[
            Panel {
                title: "Mean reward of a round",
                unit: "reward",
                quantities: &[("mean reward", Logged("rollout_reward"))],
                ..MEASURED
            },
            Panel {
                title: "Standard deviation of a round's rewards",
                unit: "reward",
                quantities: &[("standard deviation", Logged("rollout_reward_sd"))],
                ..MEASURED
            },
            Panel {
                title: "Error of the value network",
                unit: "squared reward",
                quantities: &[("squared error", Logged("value_loss"))],
                ..MEASURED
            },
        ],
    },
    Group {
        heading: "Optimisation",
        text: "The gradient's norm is taken before clipping. The gradient factor is the mean of σ(−u), the share of the \
               gradient that pairs still leave: 0.5 at the start, towards 0 when every pair is decided.",
        panels: &[
            Panel {
                title: "Gradient norm",
                unit: "norm",
                quantities: &[("gradient norm", Logged("grad_norm"))],
                scaling: Scaling::Log,
                ..LINE
            },
            Panel {
                title: "Learning rate",
                unit: "rate",
                quantities: &[("learning rate", Logged("lr"))],
                noisy: false,
                ..LINE
            },
            Panel {
                title: "Gradient factor",
                unit: "mean σ(−u)",
                quantities: &[("gradient factor", Logged("grad_factor"))],
                ..LINE
            },
            Panel {
                title: "Mean loss weight",
                unit: "weight",
                quantities: &[("loss weight", Logged("weight_mean"))],
                ..LINE
            },
            Panel {
                title: "Seconds per step",
                unit: "s",
                quantities: &[("seconds", Logged("seconds"))],
                ..LINE
            },
        ],
    },
    Group {
        heading: "Reference drift",
        text: "How far the moving reference has gone from the initial policy, on a fixed probe: the mean squared \
               difference of their predictions, and by how much the reference's denoising error has grown. The anchor's \
               ratio is the norm of its gradient over that of the objective's.",
        panels: &[
            Panel {
                title: "Distance of the reference from the initial policy",
                unit: "squared difference",
                quantities: &[("reference", Logged("kl_ref_init"))],
                ..MEASURED
            },
            Panel {
                title: "Growth of the reference's denoising error",
                unit: "error",
                quantities: &[("reference", Logged("d_ref_init"))],
                neutral: Some(("no change", 0.0)),
                ..MEASURED
            },
            Panel {
                title: "Gradient of the anchor over the objective's",
                unit: "ratio",
                quantities: &[("ratio", Logged("anchor_grad_ratio"))],
                scaling: Scaling::Log,
                ..LINE
            },
        ],
    },
];

/// Keys that have no curve of their own because they do not change.
const CONSTANT: [&str; 4] = ["beta", "beta_effective", "anchor_loss", "rollout_round"];

/// The sections that the runs have anything to show in.
pub fn sections(runs: &[Run]) -> Vec<Section> {
    let mut sections: Vec<Section> = GROUPS.iter().filter_map(|group| section(group, runs)).collect();
    sections.extend(further(runs));
    sections
}

fn section(group: &Group, runs: &[Run]) -> Option<Section> {
    let figures: Vec<Figure> = group
        .panels
        .iter()
        .filter_map(|panel| chart(panel, runs).draw())
        .collect();
    if figures.is_empty() {
        return None;
    }
    let mut section = Section::new(group.heading);
    let longest = runs
        .iter()
        .map(|run| run.metrics.column("loss").len())
        .max()
        .unwrap_or(0);
    let smoothed = window(longest);
    let noisy = group.panels.iter().any(|panel| panel.noisy) && smoothed > 1;
    let smoothing = match noisy {
        true => {
            format!("Faint lines are single steps, bold ones the mean over {smoothed} steps around each.")
        }
        false => String::new(),
    };
    section.say(format!("{} {smoothing}", group.text).trim());
    section.plots(figures);
    if group.panels.iter().all(|panel| !panel.noisy) {
        section.body.push_str(&values(group, runs));
    }
    Some(section)
}

/// One run: a colour per quantity. Several: a colour per run, a dash per quantity.
fn chart(panel: &Panel, runs: &[Run]) -> Chart {
    let mut series = Vec::new();
    for (r, run) in runs.iter().enumerate() {
        for (q, (label, source)) in panel.quantities.iter().enumerate() {
            let label = match (runs.len(), panel.quantities.len()) {
                (1, _) => (*label).to_owned(),
                (_, 1) => run.name.clone(),
                _ => format!("{}: {label}", run.name),
            };
            series.push(Series {
                label,
                points: source.of(run),
                colour: if runs.len() == 1 { q } else { r },
                dash: q,
                noisy: panel.noisy,
            });
        }
    }
    let neutral = panel.neutral.iter().map(|(label, value)| Rule {
        label: (*label).to_owned(),
        value: *value,
    });
    let ceiling = (panel.title == "Held-out implicit accuracy")
        .then(|| ceiling(runs))
        .flatten();
    Chart {
        title: panel.title.into(),
        x: Axis {
            label: "step".into(),
            ..Axis::default()
        },
        y: Axis {
            label: panel.unit.into(),
            scaling: panel.scaling,
        },
        series,
        rules: neutral.chain(ceiling).collect(),
    }
}

/// The accuracy of the scorer that made the labels, where all runs agree on it.
fn ceiling(runs: &[Run]) -> Option<Rule> {
    let of = |run: &Run| run.fact(&["ceiling_acc"]).and_then(Value::as_f64);
    let value = of(runs.first()?)?;
    runs.iter().all(|run| of(run) == Some(value)).then(|| Rule {
        label: "the labels' own scorer".into(),
        value,
    })
}

/// What the charts of a group show, as a table.
fn values(group: &Group, runs: &[Run]) -> String {
    let columns: Vec<(String, Column)> = runs
        .iter()
        .flat_map(|run| {
            let quantities = group
                .panels
                .iter()
                .flat_map(|p| p.quantities.iter().map(move |q| (p, q)));
            quantities.map(|(panel, (label, source))| {
                let name = format!("{}, {label}", panel.title);
                let name = if runs.len() == 1 {
                    name
                } else {
                    format!("{}: {name}", run.name)
                };
                (name, source.of(run))
            })
        })
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let mut steps: Vec<f64> = columns
        .iter()
        .flat_map(|(_, points)| points.iter().map(|p| p.0))
        .collect();
    steps.sort_by(f64::total_cmp);
    steps.dedup();
    let row = |step: &f64| {
        let value = |points: &Column| points.iter().find(|p| p.0 == *step).map(|p| number(p.1));
        let cells = columns.iter().map(|(_, points)| Cell::number(value(points)));
        [Cell::text(step)].into_iter().chain(cells).collect()
    };
    let head: Vec<String> = ["step".to_owned()]
        .into_iter()
        .chain(columns.iter().map(|(name, _)| name.clone()))
        .collect();
    let rows = steps.iter().map(row).collect();
    fold("The values as a table", &table(group.heading, &head, rows))
}

/// Quantities of the log that no chart above shows, such as rewards of fixed prompts.
fn further(runs: &[Run]) -> Option<Section> {
    let shown: Vec<&str> = GROUPS
        .iter()
        .flat_map(|group| group.panels)
        .flat_map(|panel| panel.quantities)
        .flat_map(|(_, source)| source.keys())
        .chain(CONSTANT)
        .collect();
    let mut keys: Vec<&String> = runs
        .iter()
        .flat_map(|run| run.metrics.columns.keys())
        .filter(|key| !shown.contains(&key.as_str()))
        .collect();
    keys.sort();
    keys.dedup();
    let figures: Vec<Figure> = keys
        .iter()
        .filter_map(|key| further_chart(key, runs).draw())
        .collect();
    if figures.is_empty() {
        return None;
    }
    let mut section = Section::new("Further measurements");
    section.plots(figures);
    Some(section)
}

fn further_chart(key: &str, runs: &[Run]) -> Chart {
    let series = runs.iter().enumerate().map(|(r, run)| Series {
        label: run.name.clone(),
        points: run.evaluated(key),
        colour: r,
        dash: 0,
        noisy: run.metrics.column(key).len() == run.metrics.column("loss").len(),
    });
    Chart {
        title: key.to_owned(),
        x: Axis {
            label: "step".into(),
            ..Axis::default()
        },
        series: series.collect(),
        ..Chart::default()
    }
}
