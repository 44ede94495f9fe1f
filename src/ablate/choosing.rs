//! Which of the tuned values each arm goes on with.

use serde::{Deserialize, Serialize};

use super::arms::Choice;
use super::plan::AblationPlan;
use super::rows::{Row, RunId};

/// A candidate of an arm and what it was worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Method.
    pub method: String,
    /// Strategy.
    pub strategy: String,
    /// Values of the tuned keys.
    pub choice: Choice,
    /// Seeds that it was trained with to the end.
    pub seeds: usize,
    /// Mean of the reward that chooses, over seeds and images; none if a run failed or is missing.
    pub value: Option<f64>,
    /// Whether the arm goes on with it.
    pub chosen: bool,
}

/// Every candidate that was tried, arm by arm. The best of an arm has the highest value, of equal ones it is the first.
pub(super) fn candidates(plan: &AblationPlan, rows: &[Row]) -> Vec<Candidate> {
    let Some(tuning) = &plan.tuning else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for arm in plan.arms.iter().filter(|arm| arm.candidates.len() > 1) {
        let value = |choice: &Choice, seed: u64| {
            let id = RunId {
                method: arm.method.clone(),
                strategy: arm.strategy.clone(),
                choice: choice.clone(),
                seed,
            };
            let row = rows.iter().find(|row| row.run.as_ref() == Some(&id))?;
            mean(row.scores()?.rewards.get(&tuning.by)?)
        };
        let mut tried: Vec<Candidate> = Vec::new();
        for choice in &arm.candidates {
            let values: Vec<f64> = tuning
                .seeds
                .iter()
                .filter_map(|seed| value(choice, *seed))
                .collect();
            let is_whole = values.len() == tuning.seeds.len();
            tried.push(Candidate {
                method: arm.method.clone(),
                strategy: arm.strategy.clone(),
                choice: choice.clone(),
                seeds: values.len(),
                value: is_whole.then(|| values.iter().sum::<f64>() / values.len() as f64),
                chosen: false,
            });
        }
        let best = tried
            .iter()
            .filter_map(|candidate| candidate.value)
            .fold(f64::NEG_INFINITY, f64::max);
        if let Some(first) = tried.iter_mut().find(|candidate| candidate.value == Some(best)) {
            first.chosen = true;
        }
        all.extend(tried);
    }
    all
}

/// What each arm is trained with in the end; none for an arm of which no candidate could be trained to the end.
pub(super) fn choices(plan: &AblationPlan, candidates: &[Candidate]) -> Vec<Option<Choice>> {
    let of_arm = |arm: &super::arms::Arm| match &arm.candidates[..] {
        [only] => Some(only.clone()),
        _ => candidates
            .iter()
            .find(|c| c.chosen && c.method == arm.method && c.strategy == arm.strategy)
            .map(|candidate| candidate.choice.clone()),
    };
    plan.arms.iter().map(of_arm).collect()
}

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}
