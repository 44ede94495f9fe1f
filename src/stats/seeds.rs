//! Intervals over two things at once: several seeds, each measured on the same prompts.
//!
//! Runs of other seeds differ, and so do results on other prompts. A hierarchical bootstrap draws both: seeds, then prompts.
//! Since all seeds share the prompts, a prompt that is hard for one is hard for all. [`PromptDraw::Shared`] therefore draws the
//! prompts once for all drawn seeds (the product bootstrap of Owen 2007, *The pigeonhole bootstrap*, which errs on the wide
//! side); [`PromptDraw::WithinSeeds`] draws them anew within each (Davison & Hinkley, *Bootstrap Methods*, 3.8), as if each seed had
//! prompts of its own, which is too narrow as far as prompts differ from each other.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Interval};
use crate::rng::Stream;

/// How prompts are drawn within drawn seeds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptDraw {
    /// Once, for all seeds: prompts are the same in every seed.
    #[default]
    Shared,
    /// Anew within each drawn seed.
    WithinSeeds,
}

/// Values by seed and prompt; a prompt may have several in a seed (images), or none.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedTable {
    prompts: usize,
    /// Seed by seed, prompt by prompt.
    cells: Vec<Cell>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cell {
    sum: f64,
    n: f64,
}

impl SeedTable {
    /// A table without values.
    pub fn new(seeds: usize, prompts: usize) -> Self {
        Self {
            prompts,
            cells: vec![Cell::default(); seeds * prompts],
        }
    }

    /// Adds a value of a seed's prompt.
    ///
    /// # Panics
    /// If the table has no such seed or prompt.
    pub fn add(&mut self, seed: usize, prompt: usize, value: f64) {
        assert!(prompt < self.prompts, "the table has {} prompts", self.prompts);
        let cell = &mut self.cells[seed * self.prompts + prompt];
        cell.sum += value;
        cell.n += 1.0;
    }

    /// Mean over all values of each seed that has any.
    pub fn seed_means(&self) -> Vec<f64> {
        self.rows()
            .filter_map(|row| mean(row.iter().map(|cell| (*cell, 1.0))))
            .collect()
    }

    /// Mean of the seeds' means; none without values.
    pub fn mean(&self) -> Option<f64> {
        let means = self.seed_means();
        (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64)
    }

    fn rows(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(self.prompts.max(1))
    }
}

impl Bootstrap {
    /// The interval of [`SeedTable::mean`] over other seeds and other prompts; none without values. With one seed it speaks for
    /// other prompts only.
    ///
    /// `name` keys the random stream, as in [`Bootstrap::mean`].
    pub fn over_seeds(&self, name: &str, table: &SeedTable, draw: PromptDraw) -> Option<Interval> {
        let rows: Vec<&[Cell]> = table
            .rows()
            .filter(|row| row.iter().any(|cell| cell.n > 0.0))
            .collect();
        if rows.is_empty() {
            return None;
        }
        self.interval(name, |stream| match draw {
            PromptDraw::Shared => drawn_shared(&rows, stream),
            PromptDraw::WithinSeeds => drawn_within(&rows, stream),
        })
    }
}

/// Mean of drawn seeds' means over the prompts that were drawn for all of them. NaN where no drawn prompt has a value.
fn drawn_shared(rows: &[&[Cell]], stream: &mut Stream) -> f64 {
    let prompts = rows[0].len();
    let mut times = vec![0.0; prompts];
    (0..prompts).for_each(|_| times[stream.below(prompts as u64) as usize] += 1.0);
    mean_of_drawn(rows, stream, |row, _| {
        mean(row.iter().copied().zip(times.iter().copied()))
    })
}

fn drawn_within(rows: &[&[Cell]], stream: &mut Stream) -> f64 {
    mean_of_drawn(rows, stream, |row, stream| {
        mean((0..row.len()).map(|_| (row[stream.below(row.len() as u64) as usize], 1.0)))
    })
}

/// Draws as many seeds as there are and averages what `of_row` says of each.
fn mean_of_drawn(
    rows: &[&[Cell]],
    stream: &mut Stream,
    mut of_row: impl FnMut(&[Cell], &mut Stream) -> Option<f64>,
) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for _ in 0..rows.len() {
        let row = rows[stream.below(rows.len() as u64) as usize];
        if let Some(value) = of_row(row, stream) {
            sum += value;
            n += 1.0;
        }
    }
    sum / n
}

/// Mean over cells, each counted so many times; none without values.
fn mean(cells: impl Iterator<Item = (Cell, f64)>) -> Option<f64> {
    let (sum, n) = cells.fold((0.0, 0.0), |(sum, n), (cell, times)| {
        (sum + times * cell.sum, n + times * cell.n)
    });
    (n > 0.0).then(|| sum / n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::percentile;

    const VALUES: [[f64; 3]; 2] = [[0.0, 1.0, 5.0], [2.0, 3.5, 11.0]];

    fn table() -> SeedTable {
        let mut table = SeedTable::new(2, 3);
        for (seed, row) in VALUES.iter().enumerate() {
            for (prompt, value) in row.iter().enumerate() {
                // Two images whose mean is the value.
                table.add(seed, prompt, value - 0.25);
                table.add(seed, prompt, value + 0.25);
            }
        }
        table
    }

    /// All ways to draw `n` of `n`, in order.
    fn all_draws(n: usize) -> Vec<Vec<usize>> {
        let number = n.pow(n as u32);
        (0..number)
            .map(|code| (0..n).map(|place| code / n.pow(place as u32) % n).collect())
            .collect()
    }

    fn mean_of(seed: usize, prompts: &[usize]) -> f64 {
        prompts.iter().map(|p| VALUES[seed][*p]).sum::<f64>() / prompts.len() as f64
    }

    /// Every resample there can be, each as likely as the others.
    fn every_mean(draw: PromptDraw) -> Vec<f64> {
        let (seeds, prompts) = (all_draws(2), all_draws(3));
        let mut means = Vec::new();
        for drawn in &seeds {
            for first in &prompts {
                match draw {
                    PromptDraw::Shared => {
                        means.push((mean_of(drawn[0], first) + mean_of(drawn[1], first)) / 2.0)
                    }
                    PromptDraw::WithinSeeds => {
                        for second in &prompts {
                            means.push((mean_of(drawn[0], first) + mean_of(drawn[1], second)) / 2.0);
                        }
                    }
                }
            }
        }
        means.sort_by(f64::total_cmp);
        means
    }

    /// The interval is that of the whole distribution, which is small enough here to be written down.
    #[test]
    fn intervals_are_the_percentiles_of_every_possible_resample() {
        for draw in [PromptDraw::Shared, PromptDraw::WithinSeeds] {
            let every = every_mean(draw);
            for level in [0.5, 0.8, 0.9] {
                let bootstrap = Bootstrap {
                    resamples: 100_000,
                    level,
                    seed: 3,
                };
                let found = bootstrap.over_seeds("x", &table(), draw).unwrap();
                // Drawn percentiles lie between the exact ones a little below and above.
                let tail = 50.0 * (1.0 - level);
                for (value, percent) in [(found.low, tail), (found.high, 100.0 - tail)] {
                    let (below, above) = (
                        percentile(&every, percent - 0.5),
                        percentile(&every, percent + 0.5),
                    );
                    assert!(
                        (below - 1e-9..=above + 1e-9).contains(&value),
                        "{draw:?} {level}: {value} is not in {below}..{above}"
                    );
                }
            }
        }
    }

    /// Seeds without effect and prompts of very different height: what is uncertain is which prompts there are, however many
    /// seeds were run. Draws within seeds miss that; shared ones have the variance of the prompts' means.
    #[test]
    fn only_shared_draws_know_that_seeds_share_their_prompts() {
        let mut table = SeedTable::new(8, 50);
        let value = |prompt: usize| ((prompt * prompt * 7) % 31) as f64;
        for seed in 0..8 {
            (0..50).for_each(|prompt| table.add(seed, prompt, value(prompt)));
        }
        let mean = (0..50).map(value).sum::<f64>() / 50.0;
        let variance = (0..50).map(|p| (value(p) - mean).powi(2)).sum::<f64>() / 50.0;
        let width = |draw| {
            let bootstrap = Bootstrap {
                resamples: 20_000,
                ..Bootstrap::default()
            };
            let interval = bootstrap.over_seeds("y", &table, draw).unwrap();
            (interval.high - interval.low) / (2.0 * 1.959_964)
        };
        let (shared, within) = (width(PromptDraw::Shared), width(PromptDraw::WithinSeeds));
        assert!((shared / (variance / 50.0).sqrt() - 1.0).abs() < 0.03, "{shared}");
        assert!(
            (within / (variance / 400.0).sqrt() - 1.0).abs() < 0.03,
            "{within}"
        );
    }

    #[test]
    fn means_are_over_seeds_whatever_their_numbers_of_values() {
        let mut table = SeedTable::new(3, 2);
        assert_eq!(table.mean(), None);
        assert_eq!(
            Bootstrap::default().over_seeds("z", &table, PromptDraw::Shared),
            None
        );
        for (seed, prompt, value) in [(0, 0, 1.0), (0, 1, 3.0), (2, 1, 8.0)] {
            table.add(seed, prompt, value);
        }
        assert_eq!(table.seed_means(), [2.0, 8.0]);
        assert_eq!(table.mean(), Some(5.0));
        // Resamples without any value are left out of the interval.
        let interval = Bootstrap::default().over_seeds("z", &table, PromptDraw::Shared);
        let interval = interval.unwrap();
        assert!(interval.low >= 1.0 && interval.high <= 8.0, "{interval:?}");
    }
}
