//! A value in parts of about equal length along an axis, for what would be too large at once.

use std::ops::Range;

use super::attr::Attrs;
use super::graph::{Graph, ValueId};
use crate::Result;

/// Bytes above which attention's matrix of queries by keys is made in chunks of about this size.
pub const LARGE_MATRIX: usize = 64 << 20;

impl Graph {
    /// `x` along `axis` in `parts` parts.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn in_parts(&mut self, x: ValueId, axis: usize, parts: usize) -> Result<Vec<ValueId>> {
        if parts == 1 {
            return Ok(vec![x]);
        }
        let lengths: Vec<i64> = spans(self.shape(x)[axis], parts)
            .map(|span| span.len() as i64)
            .collect();
        let sizes = self.ints(&lengths);
        let attrs = Attrs::new().int("axis", axis as i64);
        self.op_n("Split", &[Some(x), Some(sizes)], attrs, parts)
    }
}

/// `rows` shared out among `parts` as evenly as can be.
fn spans(rows: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |k| rows * k / parts..rows * (k + 1) / parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_out_all_rows() {
        for (rows, parts) in [(10, 3), (4096, 17), (5, 5), (7, 1)] {
            let found: Vec<Range<usize>> = spans(rows, parts).collect();
            assert_eq!((found[0].start, found[parts - 1].end), (0, rows));
            assert!(
                found
                    .windows(2)
                    .all(|w| w[0].end == w[1].start && !w[0].is_empty())
            );
        }
    }
}
