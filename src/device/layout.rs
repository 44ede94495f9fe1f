//! Where parameters lie in device memory.

use std::ops::Range;
use std::sync::Arc;

use crate::params::Layout;

/// Tensors begin at multiples of this many values, 256 bytes, as GPU libraries like it.
const ALIGNMENT: usize = 64;

/// Lengths of blocks are multiples of this.
pub const ROW: usize = 1024;

/// Most values in a block: 64 MiB, of which a graph needs a few for what it computes in between.
const LONGEST_BLOCK: usize = 1 << 24;

/// Positions of parameters in device memory, and the blocks that it is cut into.
#[derive(Debug, PartialEq)]
pub struct DeviceLayout {
    layout: Arc<Layout>,
    starts: Vec<usize>,
    block: usize,
    blocks: usize,
}

/// A part of a tensor and where it lies in a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Index of the tensor.
    pub tensor: usize,
    /// Its values.
    pub of_tensor: Range<usize>,
    /// The block's values.
    pub of_block: Range<usize>,
}

impl DeviceLayout {
    /// For the parameters of `layout`.
    pub fn new(layout: &Arc<Layout>) -> Arc<Self> {
        let mut len = 0;
        let mut starts = Vec::with_capacity(layout.tensors());
        for index in 0..layout.tensors() {
            starts.push(len);
            len += layout.range(index).len().next_multiple_of(ALIGNMENT);
        }
        let blocks = len.div_ceil(LONGEST_BLOCK).max(1);
        Arc::new(Self {
            layout: Arc::clone(layout),
            starts,
            block: len.div_ceil(blocks).max(1).next_multiple_of(ROW),
            blocks,
        })
    }

    /// Names and shapes.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// First value of each tensor.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Values in a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// What of which tensors is in a block.
    pub fn parts(&self, block: usize) -> impl Iterator<Item = Part> {
        let start = block * self.block;
        let end = start + self.block;
        // Tensors without values take no room.
        let first = self.starts.partition_point(|s| *s < start).saturating_sub(1);
        (first..self.starts.len())
            .take_while(move |tensor| self.starts[*tensor] < end)
            .filter_map(move |tensor| {
                let begins = self.starts[tensor];
                let ends = begins + self.layout.range(tensor).len();
                let (from, to) = (begins.max(start), ends.min(end));
                (from < to).then(|| Part {
                    tensor,
                    of_tensor: from - begins..to - begins,
                    of_block: from - start..to - start,
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_one_block_once() {
        let lens = [1, LONGEST_BLOCK + 5, 63, 64, 2 * LONGEST_BLOCK, 7, 1000];
        let named = lens.iter().enumerate().map(|(i, n)| (format!("t{i}"), vec![*n]));
        let device = DeviceLayout::new(&Layout::new(named).unwrap());
        assert_eq!(device.blocks(), 4);
        let mut next = vec![0; lens.len()];
        for block in 0..device.blocks() {
            let mut filled = 0;
            for part in device.parts(block) {
                assert_eq!(part.of_tensor.start, next[part.tensor]);
                assert_eq!(part.of_tensor.len(), part.of_block.len());
                assert!(part.of_block.start >= filled && part.of_block.end <= device.block());
                filled = part.of_block.end;
                next[part.tensor] = part.of_tensor.end;
            }
        }
        assert_eq!(next, lens);
        assert!(device.starts().iter().all(|s| s.is_multiple_of(ALIGNMENT)));
    }
}
