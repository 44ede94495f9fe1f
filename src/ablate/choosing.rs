//! Which of the tuned values each arm goes on with.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::arms::{Arm, Choice};
use super::judging::Tuning;
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
    /// Of the chosen one, the keys whose lowest or highest value it has: a better one may lie beyond what was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at_the_edge: Vec<String>,
}

/// Every candidate that was tried, arm by arm. The best of an arm has the highest value, of equal ones it is the first; nothing is
/// chosen before all runs of the arm's candidates have a row.
pub(super) fn candidates(plan: &AblationPlan, rows: &[Row]) -> Vec<Candidate> {
    let Some(tuning) = &plan.tuning else {
        return Vec::new();
    };
    let tuned = plan.arms.iter().filter(|arm| arm.candidates.len() > 1);
    tuned.flat_map(|arm| of_arm(arm, tuning, rows)).collect()
}

fn of_arm(arm: &Arm, tuning: &Tuning, rows: &[Row]) -> Vec<Candidate> {
    let row_of = |choice: &Choice, seed: u64| {
        let id = RunId {
            method: arm.method.clone(),
            strategy: arm.strategy.clone(),
            choice: choice.clone(),
            seed,
        };
        rows.iter().find(|row| row.run.as_ref() == Some(&id))
    };
    let worth = |row: &Row| mean(row.scores()?.rewards.get(&tuning.by)?);
    let mut tried: Vec<Candidate> = Vec::new();
    let mut is_complete = true;
    for choice in &arm.candidates {
        let found: Vec<&Row> = tuning
            .seeds
            .iter()
            .filter_map(|seed| row_of(choice, *seed))
            .collect();
        is_complete &= found.len() == tuning.seeds.len();
        let values: Vec<f64> = found.into_iter().filter_map(worth).collect();
        let is_whole = values.len() == tuning.seeds.len();
        tried.push(Candidate {
            method: arm.method.clone(),
            strategy: arm.strategy.clone(),
            choice: choice.clone(),
            seeds: values.len(),
            value: is_whole.then(|| values.iter().sum::<f64>() / values.len() as f64),
            chosen: false,
            at_the_edge: Vec::new(),
        });
    }
    let known = tried.iter().filter_map(|candidate| candidate.value);
    let best = known.fold(f64::NEG_INFINITY, f64::max);
    let first = tried.iter_mut().find(|candidate| candidate.value == Some(best));
    if let Some(first) = first.filter(|_| is_complete) {
        first.chosen = true;
        first.at_the_edge = edges(&first.choice, &arm.candidates);
    }
    tried
}

/// What each arm is trained with in the end; none for an arm of which no candidate could be trained to the end.
pub(super) fn choices(plan: &AblationPlan, candidates: &[Candidate]) -> Vec<Option<Choice>> {
    let of_arm = |arm: &Arm| match &arm.candidates[..] {
        [only] => Some(only.clone()),
        _ => candidates
            .iter()
            .find(|c| c.chosen && c.method == arm.method && c.strategy == arm.strategy)
            .map(|candidate| candidate.choice.clone()),
    };
    plan.arms.iter().map(of_arm).collect()
}

/// Keys with several numbers among `candidates` of which `choice` has the lowest or the highest.
fn edges(choice: &Choice, candidates: &[Choice]) -> Vec<String> {
    let is_at_edge = |(path, value): (&String, &Value)| {
        let own = value.as_f64()?;
        let all: Option<Vec<f64>> = candidates.iter().map(|other| other.get(path)?.as_f64()).collect();
        let all = all?;
        let (below, above) = (all.iter().any(|v| *v < own), all.iter().any(|v| *v > own));
        (below != above).then(|| path.clone())
    };
    choice.iter().filter_map(is_at_edge).collect()
}

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_choice_at_the_end_of_what_was_tried_is_told() {
        let choice = |lr: f64, beta: f64, kind: &str| -> Choice {
            [("lr", json!(lr)), ("beta", json!(beta)), ("kind", json!(kind))]
                .map(|(path, value)| (path.to_owned(), value))
                .into_iter()
                .collect()
        };
        let all: Vec<Choice> = [0.1, 0.2, 0.3].map(|lr| choice(lr, 5.0, "a")).into();
        assert_eq!(edges(&all[0], &all), ["lr"]);
        assert!(edges(&all[1], &all).is_empty());
        assert_eq!(edges(&all[2], &all), ["lr"]);
    }
}
