//! Which pictures meet and who wins.

use indexmap::IndexMap;

use super::{Candidate, Choose, HoldOut, Label, PairPlan, PreferencePair};
use crate::rng::{PairId, Purpose, Streams, Visit};
use crate::stats::Summary;

/// Pairs, and what became of the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// In the order of the prompts.
    pub pairs: Vec<PreferencePair>,
    /// Prompts with at least two pictures.
    pub prompts: usize,
    /// Prompts with a single picture.
    pub lonely: usize,
    /// Ties, whether or not they are among the pairs.
    pub ties: usize,
    /// Pairs left out because their scores are too close.
    pub close: usize,
}

/// Two candidates that meet.
struct Meeting {
    images: [usize; 2],
    held_out: bool,
}

/// Makes pairs. The overall score of a picture is that of the only voter, or the mean of several after each was brought to
/// mean 0 and standard deviation 1 over all candidates.
pub fn select(candidates: &[Candidate], plan: &PairPlan) -> Selection {
    let voter = |voter: usize| candidates.iter().map(|c| c.scores[voter]).collect();
    let scores = overall((0..plan.voters).map(voter).collect());
    let mut groups: IndexMap<&str, Vec<usize>> = IndexMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        groups.entry(&candidate.prompt).or_default().push(index);
    }
    let streams = Streams::new(plan.seed);
    let (meetings, lonely) = meetings(&groups, &scores, plan);
    let spread = spread(&meetings, &scores);
    let mut selection = Selection {
        pairs: Vec::new(),
        prompts: groups.len() - lonely,
        lonely,
        ties: 0,
        close: 0,
    };
    for (index, meeting) in meetings.iter().enumerate() {
        let mut stream = streams.pair(Purpose::Rater, PairId(index as u64), Visit(0));
        let mut images = meeting.images;
        if stream.chance(0.5) {
            images.swap(0, 1);
        }
        let own = images.map(|image| scores[image]);
        if (own[0] - own[1]).abs() < plan.min_margin {
            selection.close += 1;
            continue;
        }
        let label = match plan.label {
            Label::Majority => {
                let [first, second] = images.map(|image| &candidates[image].scores[..plan.voters]);
                majority(first.iter().zip(second).map(|(a, b)| a - b))
            }
            Label::BradleyTerry { temperature } if !meeting.held_out && temperature * spread > 0.0 => {
                let chance = 1.0 / (1.0 + (-(own[0] - own[1]) / (temperature * spread)).exp());
                f64::from(u8::from(stream.chance(chance)))
            }
            Label::BradleyTerry { .. } | Label::Score => order(own[0] - own[1]),
        };
        if label == 0.5 {
            selection.ties += 1;
            if !plan.keep_ties {
                continue;
            }
        }
        selection.pairs.push(PreferencePair {
            images,
            label,
            scores: own,
            held_out: meeting.held_out,
        });
    }
    selection
}

/// Those who meet, and how many prompts have one picture only.
fn meetings(groups: &IndexMap<&str, Vec<usize>>, scores: &[f64], plan: &PairPlan) -> (Vec<Meeting>, usize) {
    let hold_out = HoldOut {
        share: plan.held_out,
        seed: plan.seed,
    };
    let mut meetings = Vec::new();
    let mut lonely = 0;
    for (prompt, group) in groups {
        if group.len() < 2 {
            lonely += 1;
            continue;
        }
        let held_out = hold_out.holds_out(prompt);
        let meeting = |images| Meeting { images, held_out };
        meetings.extend(meet(group, scores, plan.choose).into_iter().map(meeting));
    }
    (meetings, lonely)
}

/// One score per picture of those of several voters, which are given by voter.
pub(crate) fn overall(mut voters: Vec<Vec<f64>>) -> Vec<f64> {
    if voters.len() == 1 {
        return voters.remove(0);
    }
    let mut sums = vec![0.0; voters.first().map_or(0, Vec::len)];
    let count = voters.len() as f64;
    for values in &voters {
        let (mean, deviation) = moments(values);
        // A score that is the same for all pictures says nothing.
        let scale = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += (value - mean) * scale / count;
        }
    }
    sums
}

/// Mean and standard deviation (divisor n); zeros without values.
fn moments(values: &[f64]) -> (f64, f64) {
    let mean = Summary::of(values).map_or(0.0, |summary| summary.mean);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / values.len().max(1) as f64).sqrt())
}

/// Standard deviation of the differences of all meetings, which have no direction: their mean is 0.
fn spread(meetings: &[Meeting], scores: &[f64]) -> f64 {
    let square = |meeting: &Meeting| (scores[meeting.images[0]] - scores[meeting.images[1]]).powi(2);
    let squares: f64 = meetings.iter().map(square).sum();
    (squares / meetings.len().max(1) as f64).sqrt()
}

/// Of a prompt's pictures, given by their indices into `scores`, those that meet.
pub(crate) fn meet(group: &[usize], scores: &[f64], choose: Choose) -> Vec<[usize; 2]> {
    match choose {
        Choose::All => {
            let pairs = (0..group.len()).flat_map(|i| (i + 1..group.len()).map(move |j| (i, j)));
            pairs.map(|(i, j)| [group[i], group[j]]).collect()
        }
        Choose::Adjacent => {
            let mut order = group.to_vec();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.windows(2).map(|two| [two[0], two[1]]).collect()
        }
        Choose::BestWorst => {
            let by_score = |a: &&usize, b: &&usize| scores[**a].total_cmp(&scores[**b]);
            // Of equal ones `min_by` takes the first and `max_by` the last, so that they differ even if all are equal.
            let (worst, best) = (group.iter().min_by(by_score), group.iter().max_by(by_score));
            worst
                .zip(best)
                .map(|(worst, best)| [*best, *worst])
                .into_iter()
                .collect()
        }
    }
}

/// Whom most voters prefer, given how far each puts the first picture above the second: 1, 0, or ½ if they are even.
pub(crate) fn majority(differences: impl Iterator<Item = f64>) -> f64 {
    let balance: f64 = differences.map(|difference| 2.0 * order(difference) - 1.0).sum();
    order(balance)
}

/// 1 above zero, 0 below, ½ at zero.
pub(crate) fn order(difference: f64) -> f64 {
    match difference.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Less) => 0.0,
        _ => 0.5,
    }
}
