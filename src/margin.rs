//! Margins and implicit accuracy: how often, and by how much, the policy prefers the preferred image more
//! than the reference does.

/// Mean margin and implicit accuracy of a stream of margins.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MarginMeter {
    count: u64,
    sum: f64,
    /// Positive margins, and half of the zero ones.
    wins: f64,
}

impl MarginMeter {
    /// Adds one margin. A margin of exactly 0 counts half a win: accuracy is 0.5 when policy and reference agree.
    pub fn add(&mut self, margin: f64) {
        self.count += 1;
        self.sum += margin;
        if margin > 0.0 {
            self.wins += 1.0;
        } else if margin == 0.0 {
            self.wins += 0.5;
        }
    }

    /// Number of margins.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean margin; `None` without margins.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Implicit accuracy in [0, 1]; `None` without margins.
    pub fn accuracy(&self) -> Option<f64> {
        (self.count > 0).then(|| self.wins / self.count as f64)
    }
}

impl Extend<f64> for MarginMeter {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, margins: T) {
        margins.into_iter().for_each(|margin| self.add(margin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half() {
        let mut meter = MarginMeter::default();
        assert_eq!((meter.mean(), meter.accuracy()), (None, None));
        meter.extend([0.0, -0.0, 0.0]);
        assert_eq!(meter.accuracy(), Some(0.5));
        meter.extend([2.0, -1.0, 3.0]);
        assert_eq!(meter.accuracy(), Some((1.5 + 2.0) / 6.0));
        assert_eq!(meter.mean(), Some(4.0 / 6.0));
    }
}
