//! What comes of the rows: means and standard errors over seeds, comparisons with the initial model and with the baseline
//! strategy, intervals over seeds and prompts. `ablation.json`.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::arms::{Arm, Choice};
use super::choosing::Candidate;
use super::plan::AblationPlan;
use super::rows::{Row, Scores};
use crate::eval::results::Rate;
use crate::stats::{Bootstrap, PromptDraw, SeedTable, Summary, outcome};

/// Results of an ablation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Coverage of all intervals.
    pub level: f64,
    /// How intervals draw prompts.
    pub prompt_draw: PromptDraw,
    /// Strategy that gains are against.
    pub baseline: String,
    /// Strategy that the main table puts beside the baseline.
    pub ours: String,
    /// Names of the rewards; the first one labelled the pairs.
    pub rewards: Vec<String>,
    /// Prompts of the final table.
    pub prompts: usize,
    /// Images of each prompt.
    pub images_per_prompt: usize,
    /// The initial model, once it was judged.
    pub base: Option<BaseResult>,
    /// Every method under every strategy.
    pub arms: Vec<ArmResult>,
    /// What was tried before.
    pub tuning: Option<TuningResult>,
    /// Runs that diverged.
    pub failures: Vec<Failure>,
    /// Final runs that are not done yet.
    pub missing: usize,
}

/// The initial model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseResult {
    /// Mean score by reward.
    pub rewards: IndexMap<String, f64>,
    /// Metrics of its images as a set.
    pub sets: IndexMap<String, f64>,
}

/// A method under a strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmResult {
    /// The method.
    pub method: String,
    /// The strategy.
    pub strategy: String,
    /// Whether the reference moves.
    pub moves_reference: bool,
    /// Whether timesteps are drawn, weighed or scaled in another way than the plain one.
    pub treats_timesteps: bool,
    /// Values that were chosen for it.
    pub choice: Choice,
    /// Seeds of the finished runs.
    pub seeds: Vec<u64>,
    /// Runs that diverged; they are in no number.
    pub failed: usize,
    /// By reward.
    pub rewards: IndexMap<String, RewardResult>,
    /// Mean over rewards of the win rates against the initial model.
    pub average_win_rate: Option<Rate>,
    /// Metrics of the images as a set, over seeds.
    pub sets: IndexMap<String, Summary>,
    /// Seconds of training, over seeds.
    pub seconds: Option<Summary>,
    /// What was measured during training, averaged over the seeds: points (step, value).
    pub curves: IndexMap<String, Vec<(u64, f64)>>,
}

/// An arm by one reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardResult {
    /// Over seeds: number, mean and standard error of the runs' mean scores.
    #[serde(flatten)]
    pub summary: Summary,
    /// Image by image against the initial model.
    pub against_base: Compared,
    /// Image by image against the runs of the same method and seed under the baseline strategy; none for that itself.
    pub against_baseline: Option<Compared>,
}

/// Two sides compared over images of the same prompt and noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// (wins + ½ ties) / n.
    pub win_rate: Rate,
    /// Mean difference of the scores.
    pub difference: Rate,
}

/// What was tried to choose hyperparameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuningResult {
    /// The reward whose mean chose.
    pub by: String,
    /// Prompts, none of which is in the final table.
    pub prompts: usize,
    /// Seeds of training.
    pub seeds: Vec<u64>,
    /// Every candidate.
    pub candidates: Vec<Candidate>,
}

/// A run that diverged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Which one.
    pub run: String,
    /// What the guard said.
    pub reason: String,
}

impl Results {
    /// Those of the rows of a plan: `rows` of the final table and `tried` ones with their candidates. Rows of other runs are
    /// ignored.
    pub(super) fn of(plan: &AblationPlan, rows: &[Row], tried: &[Row], candidates: Vec<Candidate>) -> Self {
        let evaluation = &plan.evaluation;
        let base = rows.iter().find(|row| row.run.is_none()).and_then(Row::scores);
        let arms: Vec<ArmResult> = match base {
            None => Vec::new(),
            Some(base) => {
                let measure = Measure::new(plan, base, rows);
                plan.arms.iter().map(|arm| measure.arm(arm)).collect()
            }
        };
        let failed = tried.iter().chain(rows).filter_map(|row| {
            Some(Failure {
                run: row.run.as_ref()?.name(row.phase),
                reason: row.failure()?.to_owned(),
            })
        });
        let wanted: usize = plan.arms.iter().map(|arm| arm.seeds.len()).sum();
        let done: usize = arms.iter().map(|arm| arm.seeds.len() + arm.failed).sum();
        Self {
            level: evaluation.bootstrap.level,
            prompt_draw: plan.prompt_draw,
            baseline: plan.baseline.clone(),
            ours: plan.ours.clone(),
            rewards: plan.rewards.clone(),
            prompts: evaluation.prompts.len(),
            images_per_prompt: evaluation.seeds.len() * evaluation.images_per_prompt,
            base: base.map(BaseResult::of),
            arms,
            tuning: plan.tuning.as_ref().map(|tuning| TuningResult {
                by: tuning.by.clone(),
                prompts: tuning.evaluation.prompts.len(),
                seeds: tuning.seeds.clone(),
                candidates,
            }),
            failures: failed.collect(),
            missing: wanted.saturating_sub(done),
        }
    }

    /// The result of a method under a strategy.
    pub fn arm(&self, method: &str, strategy: &str) -> Option<&ArmResult> {
        self.arms
            .iter()
            .find(|arm| arm.method == method && arm.strategy == strategy)
    }

    /// The methods, in their order.
    pub fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = self.arms.iter().map(|arm| arm.method.as_str()).collect();
        methods.dedup();
        methods
    }
}

impl BaseResult {
    fn of(scores: &Scores) -> Self {
        let mean = |values: &Vec<Option<f64>>| {
            let known: Vec<f64> = values.iter().flatten().copied().collect();
            Summary::of(&known).map(|summary| summary.mean)
        };
        let means = scores.rewards.iter();
        Self {
            rewards: means
                .filter_map(|(name, values)| Some((name.clone(), mean(values)?)))
                .collect(),
            sets: scores.sets.clone(),
        }
    }
}

/// A run's scores, and those that they are compared with.
type Pair<'a> = (&'a Scores, &'a Scores);

/// Computes the numbers of the arms.
struct Measure<'a> {
    bootstrap: Bootstrap,
    draw: PromptDraw,
    plan: &'a AblationPlan,
    base: &'a Scores,
    rows: &'a [Row],
    /// For each position in the list of prompts the number of its text: a prompt that is there twice is one.
    prompts: Vec<usize>,
    different_prompts: usize,
}

impl<'a> Measure<'a> {
    fn new(plan: &'a AblationPlan, base: &'a Scores, rows: &'a [Row]) -> Self {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut prompts = Vec::with_capacity(base.prompts.len());
        for prompt in &base.prompts {
            let next = numbers.len();
            prompts.push(*numbers.entry(prompt).or_insert(next));
        }
        Self {
            bootstrap: plan.evaluation.bootstrap.bootstrap(),
            draw: plan.prompt_draw,
            plan,
            base,
            rows,
            different_prompts: numbers.len(),
            prompts,
        }
    }

    fn arm(&self, arm: &Arm) -> ArmResult {
        let rows = self.rows_of(&arm.method, &arm.strategy);
        let scored: Vec<(u64, &Scores)> = rows
            .iter()
            .filter_map(|row| Some((row.run.as_ref()?.seed, row.scores()?)))
            .collect();
        let trained: Vec<_> = rows.iter().filter_map(|row| row.training()).collect();
        let seconds: Vec<f64> = trained.iter().map(|training| training.seconds).collect();
        let choice = rows.iter().find_map(|row| Some(row.run.as_ref()?.choice.clone()));
        let against_base: Vec<Pair<'_>> = scored.iter().map(|(_, own)| (*own, self.base)).collect();
        let name = format!("{}/{}", arm.method, arm.strategy);
        ArmResult {
            method: arm.method.clone(),
            strategy: arm.strategy.clone(),
            moves_reference: arm.moves_reference,
            treats_timesteps: arm.treats_timesteps,
            choice: choice.unwrap_or_default(),
            seeds: scored.iter().map(|(seed, _)| *seed).collect(),
            failed: rows.iter().filter(|row| row.failure().is_some()).count(),
            rewards: self.rewards(arm, &name, &scored, &against_base),
            average_win_rate: self.average_win_rate(&name, &against_base),
            sets: sets(&scored),
            seconds: Summary::of(&seconds),
            curves: mean_curves(
                &trained
                    .iter()
                    .map(|training| &training.curves)
                    .collect::<Vec<_>>(),
            ),
        }
    }

    fn rows_of(&self, method: &str, strategy: &str) -> Vec<&'a Row> {
        let is_of = |row: &&Row| {
            row.run
                .as_ref()
                .is_some_and(|run| run.method == method && run.strategy == strategy)
        };
        self.rows.iter().filter(is_of).collect()
    }

    fn rewards(
        &self,
        arm: &Arm,
        name: &str,
        scored: &[(u64, &'a Scores)],
        against_base: &[Pair<'_>],
    ) -> IndexMap<String, RewardResult> {
        let baseline: HashMap<u64, &Scores> = match arm.strategy == self.plan.baseline {
            true => HashMap::new(),
            false => self
                .rows_of(&arm.method, &self.plan.baseline)
                .into_iter()
                .filter_map(|row| Some((row.run.as_ref()?.seed, row.scores()?)))
                .collect(),
        };
        let against_baseline: Vec<Pair<'_>> = scored
            .iter()
            .filter_map(|(seed, own)| Some((*own, *baseline.get(seed)?)))
            .collect();
        let mut results = IndexMap::new();
        for reward in &self.plan.rewards {
            let own = self.table(against_base, |own, place| {
                *own.0.rewards.get(reward)?.get(place)?
            });
            let Some(summary) = Summary::of(&own.seed_means()) else {
                continue;
            };
            let Some(with_base) = self.compare(&format!("{name}/base"), reward, against_base) else {
                continue;
            };
            results.insert(
                reward.clone(),
                RewardResult {
                    summary,
                    against_base: with_base,
                    against_baseline: self.compare(&format!("{name}/baseline"), reward, &against_baseline),
                },
            );
        }
        results
    }

    fn compare(&self, name: &str, reward: &str, pairs: &[Pair<'_>]) -> Option<Compared> {
        let over = |of: fn(f64, f64) -> f64| {
            self.table(pairs, |pair, place| {
                let (own, other) = both(pair, reward, place)?;
                Some(of(own, other))
            })
        };
        Some(Compared {
            win_rate: self.rate(&format!("{name}/{reward}/win"), &over(outcome))?,
            difference: self.rate(
                &format!("{name}/{reward}/difference"),
                &over(|own, other| own - other),
            )?,
        })
    }

    /// Over images that every reward scored on both sides.
    fn average_win_rate(&self, name: &str, pairs: &[Pair<'_>]) -> Option<Rate> {
        let rewards = &self.plan.rewards;
        let table = self.table(pairs, |pair, place| {
            let outcomes = rewards.iter().map(|reward| {
                let (own, other) = both(pair, reward, place)?;
                Some(outcome(own, other))
            });
            let outcomes: Vec<f64> = outcomes.collect::<Option<_>>()?;
            Some(outcomes.iter().sum::<f64>() / outcomes.len() as f64)
        });
        self.rate(&format!("{name}/win"), &table)
    }

    /// A value of each image where there is one, by pair (a seed) and prompt.
    fn table(&self, pairs: &[Pair<'_>], value: impl Fn(Pair<'_>, usize) -> Option<f64>) -> SeedTable {
        let mut table = SeedTable::new(pairs.len(), self.different_prompts);
        for (seed, pair) in pairs.iter().enumerate() {
            let per_prompt = self.base.images_per_prompt;
            for (position, prompt) in self.prompts.iter().enumerate() {
                for place in position * per_prompt..(position + 1) * per_prompt {
                    if let Some(value) = value(*pair, place) {
                        table.add(seed, *prompt, value);
                    }
                }
            }
        }
        table
    }

    fn rate(&self, name: &str, table: &SeedTable) -> Option<Rate> {
        Some(Rate {
            value: table.mean()?,
            interval: self.bootstrap.over_seeds(name, table, self.draw)?,
        })
    }
}

/// The scores of one image on both sides.
fn both((own, other): Pair<'_>, reward: &str, place: usize) -> Option<(f64, f64)> {
    let score = |scores: &Scores| *scores.rewards.get(reward)?.get(place)?;
    Some((score(own)?, score(other)?))
}

fn sets(scored: &[(u64, &Scores)]) -> IndexMap<String, Summary> {
    let names = scored.first().map(|(_, scores)| scores.sets.keys());
    let summary = |name: &String| {
        let values: Vec<f64> = scored
            .iter()
            .filter_map(|(_, s)| s.sets.get(name).copied())
            .collect();
        Some((name.clone(), Summary::of(&values)?))
    };
    names.into_iter().flatten().filter_map(summary).collect()
}

/// Curves over the seeds: a point wherever every seed has one.
fn mean_curves(all: &[&IndexMap<String, Vec<(u64, f64)>>]) -> IndexMap<String, Vec<(u64, f64)>> {
    let Some(first) = all.first() else {
        return IndexMap::new();
    };
    let at = |curves: &IndexMap<String, Vec<(u64, f64)>>, name: &str, step: u64| {
        curves
            .get(name)?
            .iter()
            .find(|point| point.0 == step)
            .map(|point| point.1)
    };
    let mean = |name: &String, points: &[(u64, f64)]| -> Vec<(u64, f64)> {
        let point = |&(step, _): &(u64, f64)| {
            let values: Option<Vec<f64>> = all.iter().map(|curves| at(curves, name, step)).collect();
            let values = values?;
            Some((step, values.iter().sum::<f64>() / values.len() as f64))
        };
        points.iter().filter_map(point).collect()
    };
    first
        .iter()
        .map(|(name, points)| (name.clone(), mean(name, points)))
        .collect()
}
