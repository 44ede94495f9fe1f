//! What comes of the scores: means, win rates against the baseline, intervals over prompts. `results.json`.

use std::collections::{BTreeMap, HashMap};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::scores::{ModelScores, ScoreRow};
use crate::stats::{Interval, Summary, WinRate, outcome};

/// Results of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The model that win rates are against.
    pub baseline: Option<String>,
    /// Coverage of all intervals.
    pub level: f64,
    /// Units of the rewards by their names, in the order of the columns.
    pub rewards: IndexMap<String, String>,
    /// Results over all prompts, in the order of the rows.
    pub models: Vec<ModelResult>,
    /// Results over the prompts of each value of the field that results are grouped by.
    pub groups: IndexMap<String, Vec<ModelResult>>,
}

/// Results of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelResult {
    /// The model's name.
    pub name: String,
    /// Its images.
    pub images: usize,
    /// Images that some reward could not score; they are left out of its numbers.
    pub unscored: usize,
    /// By the names of the rewards.
    pub rewards: IndexMap<String, RewardResult>,
    /// Mean of the win rates of all rewards, over images that all of them scored; none for the baseline.
    pub average_win_rate: Option<Rate>,
    /// Measures of the images as a set (FID, diversity), by name.
    pub set_metrics: IndexMap<String, f64>,
}

/// Results by one reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardResult {
    /// Number, mean and standard error of the scores.
    #[serde(flatten)]
    pub summary: Summary,
    /// Interval of the mean.
    pub interval: Interval,
    /// Against the baseline, image by image; none for the baseline itself.
    pub against_baseline: Option<Comparison>,
}

/// A model against the baseline by one reward, over images of the same prompt, seed and number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Wins, ties and losses.
    #[serde(flatten)]
    pub count: WinRate,
    /// (wins + ½ ties) / n.
    pub win_rate: Rate,
    /// Mean difference of the scores.
    pub difference: Rate,
}

/// A mean with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// The mean.
    pub value: f64,
    /// Its interval.
    pub interval: Interval,
}

impl Results {
    /// Those of scored models.
    pub fn of(manifest: &Manifest, models: &[ModelScores]) -> Self {
        let everything = |_: &ScoreRow| true;
        let mut groups = IndexMap::new();
        if let Some(field) = &manifest.group_by {
            let rows = models.iter().flat_map(|model| &model.rows);
            let mut values: Vec<&str> = Vec::new();
            for value in rows.filter_map(|row| row.field(field)) {
                if !values.contains(&value) {
                    values.push(value);
                }
            }
            for value in values {
                let results = results(manifest, models, value, |row| row.field(field) == Some(value));
                groups.insert(value.to_owned(), results);
            }
        }
        Self {
            baseline: manifest.baseline.clone(),
            level: manifest.bootstrap.level,
            rewards: (manifest.rewards.iter())
                .map(|reward| (reward.name.clone(), reward.unit.clone()))
                .collect(),
            models: results(manifest, models, "", everything),
            groups,
        }
    }
}

fn results(
    manifest: &Manifest,
    models: &[ModelScores],
    group: &str,
    belongs: impl Fn(&ScoreRow) -> bool,
) -> Vec<ModelResult> {
    let pick = |model: &ModelScores| -> Vec<ScoreRow> {
        model.rows.iter().filter(|row| belongs(row)).cloned().collect()
    };
    let baseline = manifest.baseline.as_deref();
    let baseline_rows = models
        .iter()
        .find(|model| Some(model.identity.name.as_str()) == baseline)
        .map(pick);
    models
        .iter()
        .map(|model| {
            let name = &model.identity.name;
            let measure = Measure {
                manifest,
                statistic: format!("{group}/{name}"),
            };
            let against = baseline_rows
                .as_deref()
                .filter(|_| Some(name.as_str()) != baseline);
            let mut result = measure.of_model(name, &pick(model), against);
            if group.is_empty() {
                result.set_metrics.clone_from(&model.sets);
            }
            result
        })
        .collect()
}

/// Computes the numbers of one model.
struct Measure<'a> {
    manifest: &'a Manifest,
    /// Keys the random streams of the intervals.
    statistic: String,
}

impl Measure<'_> {
    fn of_model(&self, name: &str, rows: &[ScoreRow], baseline: Option<&[ScoreRow]>) -> ModelResult {
        let rewards = self.manifest.reward_names();
        let pairs = baseline.map(|baseline| paired(rows, baseline));
        let results = rewards.iter().filter_map(|reward| {
            let result = self.of_reward(reward, rows, pairs.as_deref())?;
            Some(((*reward).to_owned(), result))
        });
        let is_unscored = |row: &&ScoreRow| rewards.iter().any(|reward| row.score(reward).is_none());
        ModelResult {
            name: name.to_owned(),
            images: rows.len(),
            unscored: rows.iter().filter(is_unscored).count(),
            rewards: results.collect(),
            average_win_rate: pairs.and_then(|pairs| self.average(&rewards, &pairs)),
            set_metrics: IndexMap::new(),
        }
    }

    /// None if no image was scored.
    fn of_reward(
        &self,
        reward: &str,
        rows: &[ScoreRow],
        pairs: Option<&[(&ScoreRow, &ScoreRow)]>,
    ) -> Option<RewardResult> {
        let scored = rows.iter().filter_map(|row| Some((row, row.score(reward)?)));
        let scored: Vec<(&ScoreRow, f64)> = scored.collect();
        let values: Vec<f64> = scored.iter().map(|(_, score)| *score).collect();
        Some(RewardResult {
            summary: Summary::of(&values)?,
            interval: self.interval(&format!("mean/{reward}"), &scored)?,
            against_baseline: pairs.and_then(|pairs| self.compare(reward, pairs)),
        })
    }

    fn compare(&self, reward: &str, pairs: &[(&ScoreRow, &ScoreRow)]) -> Option<Comparison> {
        let scores = pairs
            .iter()
            .filter_map(|(row, baseline)| Some((*row, row.score(reward)?, baseline.score(reward)?)));
        let scores: Vec<(&ScoreRow, f64, f64)> = scores.collect();
        let own: Vec<f64> = scores.iter().map(|(_, score, _)| *score).collect();
        let baseline: Vec<f64> = scores.iter().map(|(.., baseline)| *baseline).collect();
        let over = |of: fn(f64, f64) -> f64| -> Vec<(&ScoreRow, f64)> {
            scores
                .iter()
                .map(|(row, own, baseline)| (*row, of(*own, *baseline)))
                .collect()
        };
        Some(Comparison {
            count: WinRate::of(&own, &baseline),
            win_rate: self.rate(&format!("win/{reward}"), &over(outcome))?,
            difference: self.rate(
                &format!("difference/{reward}"),
                &over(|own, baseline| own - baseline),
            )?,
        })
    }

    /// Over images that every reward scored in both models.
    fn average(&self, rewards: &[&str], pairs: &[(&ScoreRow, &ScoreRow)]) -> Option<Rate> {
        let averages = pairs.iter().filter_map(|(row, baseline)| {
            let outcomes = rewards
                .iter()
                .map(|r| Some(outcome(row.score(r)?, baseline.score(r)?)));
            let outcomes: Vec<f64> = outcomes.collect::<Option<_>>()?;
            Some((*row, outcomes.iter().sum::<f64>() / outcomes.len() as f64))
        });
        self.rate("win", &averages.collect::<Vec<_>>())
    }

    fn rate(&self, name: &str, values: &[(&ScoreRow, f64)]) -> Option<Rate> {
        let interval = self.interval(name, values)?;
        let value = values.iter().map(|(_, value)| value).sum::<f64>() / values.len() as f64;
        Some(Rate { value, interval })
    }

    /// Over prompts, by their text: a prompt that is in the list twice is one.
    fn interval(&self, name: &str, values: &[(&ScoreRow, f64)]) -> Option<Interval> {
        let mut by_prompt: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (row, value) in values {
            by_prompt.entry(&row.prompt).or_default().push(*value);
        }
        let clusters: Vec<Vec<f64>> = by_prompt.into_values().collect();
        let bootstrap = &self.manifest.bootstrap;
        let statistic = format!("{}/{name}", self.statistic);
        bootstrap
            .bootstrap()
            .mean(&statistic, &clusters, bootstrap.resampling())
    }
}

/// Images of the same seed, prompt and number.
fn paired<'a>(rows: &'a [ScoreRow], baseline: &'a [ScoreRow]) -> Vec<(&'a ScoreRow, &'a ScoreRow)> {
    let place = |row: &ScoreRow| (row.seed, row.prompt_index, row.image_index);
    let baseline: HashMap<_, &ScoreRow> = baseline.iter().map(|row| (place(row), row)).collect();
    rows.iter()
        .filter_map(|row| Some((row, *baseline.get(&place(row))?)))
        .collect()
}
