//! Memory of a training process, by part.

use serde::Serialize;

use super::arena::Arena;
use crate::config::bytes::ByteSize;
use crate::onnx::weight_bytes;
use crate::train::graphs::EngineGraphs;

/// The program with ONNX Runtime loaded, threads and buffers of data included, as measured on Linux.
const PROGRAM: u64 = 120 << 20;
/// What a session keeps per node of its graph: kernels, names, types, plans.
const PER_NODE: u64 = 11 << 10;
/// Copies of the weights that sessions keep in their kernels' own layouts, where they keep any, in sizes of the weights.
const COPIES: f64 = 3.0;
/// Sets of what is trained: policy, its gradient, two moments, reference, initial policy.
const SETS: u64 = 6;

/// Steps after which the arena hardly grows any more.
const STEPS: usize = 4;

/// Bytes of a process at the peak of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The program itself.
    pub program: u64,
    /// Weights of the denoiser as pages of its file, which the system may drop and which processes share.
    pub weights: u64,
    /// Second copies of the weights.
    pub weight_copies: u64,
    /// Policy, reference, gradients and moments.
    pub trained: u64,
    /// What sessions keep of their graphs.
    pub sessions: u64,
    /// What the arena comes to hold for the values between the nodes, gaps included.
    pub activations: u64,
}

impl Memory {
    /// Of a run over `graphs`.
    pub(super) fn of(graphs: &EngineGraphs) -> Self {
        let all = || graphs.all();
        let weights = weight_bytes(&graphs.denoiser) as u64;
        let trained: usize = graphs.trainables.parameter_count();
        Self {
            program: PROGRAM,
            weights,
            weight_copies: if graphs.copies {
                (COPIES * weights as f64) as u64
            } else {
                0
            },
            trained: SETS * 4 * trained as u64,
            sessions: all().map(|g| g.nodes.len() as u64 * PER_NODE).sum(),
            activations: held_by_arena(graphs),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The smallest budget, in hundredths of a GiB, that holds it.
    pub fn budget(&self) -> ByteSize {
        const STEP: u64 = (1 << 30) / 100;
        ByteSize(self.total().div_ceil(STEP) * STEP)
    }

    /// Parts with their names, for people.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("program", self.program),
            ("weights (pages of their file)", self.weights),
            ("second copies of weights", self.weight_copies),
            ("policy, reference, optimizer", self.trained),
            ("sessions", self.sessions),
            ("activations at the peak", self.activations),
        ]
    }
}

/// What the arena that all sessions share comes to hold over some steps.
fn held_by_arena(graphs: &EngineGraphs) -> u64 {
    let runs: Vec<_> = graphs.in_turn().map(|graph| graph.buffer_events()).collect();
    let mut arena = Arena::default();
    for _ in 0..STEPS {
        runs.iter().for_each(|events| arena.run(events));
    }
    arena.touched()
}
