//! What the sessions for one size of images ask for.

use std::collections::BTreeMap;

use crate::Result;
use crate::onnx::{BufferEvent, Graph};
use crate::runtime::ExecutionProvider;
use crate::train::engine::EngineOptions;
use crate::train::graphs::EngineGraphs;

/// What a session keeps per node of its graph: kernels, names, types, plans. Measured as what each further size of images takes:
/// 22.6 MB for 4,279 nodes, 29.1 MB for 5,966.
const PER_NODE: u64 = 5325;
/// Copies of the weights that a session keeps in its kernels' own layouts, where it keeps any, in sizes of the weights it does not
/// get as inputs. Measured on tiny-sd with two and with three sessions.
const COPIES: u64 = 2;

/// The sessions of a size, or of a size and the same on its side, which ask for the same.
pub(super) struct OfSize {
    /// How many sizes they stand for.
    pub count: u64,
    /// Bytes that the sessions of one of them keep.
    pub sessions: u64,
    /// Bytes of second copies of the weights in them.
    pub weight_copies: u64,
    /// What each of them asks for in a run, in turn.
    pub runs: Vec<Vec<BufferEvent>>,
}

impl OfSize {
    /// Of `graphs`.
    pub fn of(graphs: &EngineGraphs, count: u64) -> Self {
        let on_cpu = graphs.session.ep == ExecutionProvider::Cpu;
        let events = |graph: &Graph| match on_cpu {
            true => graph.buffer_events(),
            false => graph.value_events(),
        };
        let copies = match graphs.copies && on_cpu {
            true => graphs.in_turn().map(|g| COPIES * used_weights(g)).sum(),
            false => 0,
        };
        Self {
            count,
            sessions: graphs.in_turn().map(|g| g.nodes.len() as u64 * PER_NODE).sum(),
            weight_copies: copies,
            runs: graphs.in_turn().map(events).collect(),
        }
    }
}

/// Bytes of the float constants that nodes read: in full fine-tuning what is trained is not among them.
fn used_weights(graph: &Graph) -> u64 {
    let mut read: Vec<_> = graph
        .nodes
        .iter()
        .flat_map(|n| n.inputs.iter().flatten())
        .collect();
    read.sort_unstable();
    read.dedup();
    let constants = read.into_iter().filter_map(|v| graph.constants.get(v));
    let floats = constants.filter(|c| c.dtype.is_float());
    floats
        .map(|c| (c.shape.iter().product::<usize>() * c.dtype.size()) as u64)
        .sum()
}

/// All sizes of a run whose graphs for its own size are `own`; the others are derived by `derive`.
///
/// # Errors
/// As `derive`.
pub(super) fn all(
    options: &EngineOptions,
    own: &EngineGraphs,
    derive: impl Fn(&EngineOptions) -> Result<EngineGraphs>,
) -> Result<Vec<OfSize>> {
    let on_its_side = |[height, width]: [usize; 2]| [height.min(width), height.max(width)];
    let mut counts: BTreeMap<[usize; 2], u64> = BTreeMap::new();
    for size in options.other_sizes {
        *counts.entry(on_its_side(*size)).or_default() += 1;
    }
    let with_own = counts.remove(&on_its_side(options.geometry.latent_size()));
    let mut sizes = vec![OfSize::of(own, 1 + with_own.unwrap_or(0))];
    for (size, count) in counts {
        sizes.push(OfSize::of(&derive(&options.sized(size))?, count));
    }
    Ok(sizes)
}

/// Weights that stay constants of the step, in bytes.
pub(super) fn weights_of_step(graphs: &EngineGraphs) -> u64 {
    used_weights(&graphs.step)
}
