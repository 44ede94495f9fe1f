//! The line a user watches: loss, implicit accuracy, margin, learning rate, speed and time left.

use super::{Event, Listener, Measured, StepReport};
use crate::Result;
use crate::progress::{Console, Job, clock};

/// Weight of the newest step in the smoothed duration of a step.
const NEWEST: f64 = 0.1;

/// Shows the run on a [`Console`].
pub struct ProgressLine {
    console: Console,
    job: Option<Job>,
    steps: u64,
    pairs_per_step: usize,
    seconds: Option<f64>,
    /// Mean reward of the latest round of rollouts.
    reward: Option<f64>,
}

impl ProgressLine {
    /// Nothing is shown before the run starts.
    pub fn new(console: Console) -> Self {
        Self {
            console,
            job: None,
            steps: 0,
            pairs_per_step: 0,
            seconds: None,
            reward: None,
        }
    }

    /// What stands behind the bar after this step.
    fn detail(&mut self, report: &StepReport) -> String {
        let seconds = match self.seconds {
            Some(smooth) => smooth + NEWEST * (report.seconds - smooth),
            None => report.seconds,
        };
        self.seconds = Some(seconds);
        let mut parts = vec![format!("loss {:.4}", report.loss)];
        parts.extend(report.acc.map(|acc| format!("acc {acc:.2}")));
        parts.extend(report.margin.map(|margin| format!("margin {margin:.1e}")));
        self.reward = report.measured.round.map(|round| round.reward).or(self.reward);
        parts.extend(self.reward.map(|reward| format!("reward {reward:.4}")));
        parts.push(format!("lr {:.1e}", report.lr));
        parts.push(format!(
            "{:.1} pairs/s",
            self.pairs_per_step as f64 / seconds.max(1e-9)
        ));
        let left = self.steps.saturating_sub(report.step) as f64 * seconds;
        parts.push(format!("ETA {}", clock(left)));
        parts.join("  ")
    }

    fn say(&mut self, text: &str) {
        match &mut self.job {
            Some(job) => job.say(text),
            None => self.console.say(text),
        }
    }
}

impl Listener for ProgressLine {
    fn hear(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Started {
                steps,
                pairs_per_step,
                initial,
                done,
            } => {
                self.steps = *steps;
                self.pairs_per_step = *pairs_per_step;
                if let Some(text) = initial.and_then(evaluated) {
                    self.say(&format!("step 0: {text}"));
                }
                let mut job = self.console.job("train", *steps);
                if *done > 0 {
                    job.say(&format!("resumed after step {done}"));
                }
                self.job = Some(job);
            }
            Event::Step(report) => {
                let detail = self.detail(report);
                if let Some(text) = evaluated(&report.measured) {
                    self.say(&format!("step {}: {text}", report.step));
                }
                if let Some(job) = &mut self.job {
                    job.advance(report.step, &detail);
                }
            }
            Event::Note(text) => self.say(text),
            Event::RolledBack { to, reason } => self.say(&format!("back to step {to}: {reason}")),
            Event::Finished => self.job = None,
        }
        Ok(())
    }
}

/// What an evaluation found, for people; `None` if nothing was evaluated.
fn evaluated(measured: &Measured) -> Option<String> {
    let mut parts = Vec::new();
    if let (Some(acc), Some(margin)) = (measured.acc_init, measured.margin_init) {
        parts.push(format!(
            "held out, against the initial model: acc {acc:.3}, margin {margin:.2e}"
        ));
    }
    let pictures = measured.pictures.iter();
    parts.extend(pictures.map(|(name, mean)| format!("{name} {mean:.4}")));
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_it_goes_and_how_long_it_will_take() {
        let mut line = ProgressLine::new(Console::Quiet);
        let started = Event::Started {
            done: 0,
            steps: 101,
            pairs_per_step: 16,
            initial: None,
        };
        line.hear(&started).unwrap();
        let mut report = StepReport {
            step: 1,
            loss: 0.6543,
            lr: 1e-4,
            acc: Some(0.53125),
            margin: Some(-1.26e-5),
            seconds: 2.0,
            ..StepReport::default()
        };
        let expected = "loss 0.6543  acc 0.53  margin -1.3e-5  lr 1.0e-4  8.0 pairs/s  ETA 3:20";
        assert_eq!(line.detail(&report), expected);
        // One slow step counts a tenth: 2 + 0.1 * (4 - 2).
        (report.seconds, report.step, report.acc, report.margin) = (4.0, 51, None, None);
        assert_eq!(
            line.detail(&report),
            "loss 0.6543  lr 1.0e-4  7.3 pairs/s  ETA 1:50"
        );
        line.hear(&Event::Step(&report)).unwrap();
        line.hear(&Event::Finished).unwrap();
    }
}
