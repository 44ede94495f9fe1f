//! Memory of a training process, by part.

use serde::Serialize;

use super::arena::Arena;
use super::sizes::OfSize;
use crate::config::bytes::ByteSize;
use crate::onnx::BufferEvent;

/// The program with ONNX Runtime loaded, threads and buffers of data included, as measured on Linux: 57 MB with a handful of
/// pairs, 100 MB with a thousand.
pub(super) const PROGRAM: u64 = 88 << 20;
/// Sessions of several sizes run in turn; after so many steps of each the arena hardly grows any more.
const STEPS: usize = 4;

/// Bytes of a process at the peak of a training step, in the host's memory.
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
    /// On the CPU, of a run over graphs of these sizes.
    pub(super) fn on_cpu(sizes: &[OfSize], weights: u64, trained: u64) -> Self {
        Self {
            program: PROGRAM,
            weights,
            weight_copies: sizes.iter().map(|s| s.count * s.weight_copies).sum(),
            trained,
            sessions: sessions(sizes),
            activations: held_by_shared_arena(sizes),
        }
    }

    /// What is left to the host where a device computes: `weights` are read from their file once, on their way there.
    pub(super) fn beside_device(sizes: &[OfSize], weights: u64, trained: u64) -> Self {
        Self {
            program: PROGRAM,
            weights,
            weight_copies: 0,
            trained,
            sessions: sessions(sizes),
            activations: 0,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether it keeps within `budget` also if it is a little more: measured peaks were up to 5 %, and of small models 20 MB, above
    /// their forecasts.
    pub fn is_within(&self, budget: ByteSize) -> bool {
        self.with_margin() <= budget.0
    }

    /// The smallest budget, in steps that read well, that it [keeps within](Self::is_within).
    pub fn budget(&self) -> ByteSize {
        budget_of(self.with_margin())
    }

    fn with_margin(&self) -> u64 {
        self.total() + self.total() / 20 + MARGIN
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

/// What all sessions keep of their graphs.
fn sessions(sizes: &[OfSize]) -> u64 {
    sizes.iter().map(|s| s.count * s.sessions).sum()
}

/// What a budget has to hold beside a forecast and a twentieth of it.
const MARGIN: u64 = 16 << 20;

/// The smallest budget of whole 10 MB that holds `bytes`: such as 4400MB, which people can write as it is.
pub(super) fn budget_of(bytes: u64) -> ByteSize {
    const STEP: u64 = 10_000_000;
    ByteSize(bytes.div_ceil(STEP) * STEP)
}

/// What the arena that all sessions share comes to hold over some steps of every size in turn.
fn held_by_shared_arena(sizes: &[OfSize]) -> u64 {
    let mut arena = Arena::default();
    for _ in 0..STEPS {
        for events in sizes.iter().flat_map(|size| &size.runs) {
            arena.run(events);
        }
    }
    arena.touched()
}

/// Bytes in the device's memory. Nothing of it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// What the driver and libraries take for a process: an assumption.
    pub context: u64,
    /// Weights that are not trained: once on CUDA, else in every session.
    pub weights: u64,
    /// What is trained, and all that belongs to it there.
    pub trained: u64,
    /// The arenas of all sessions, of which each has its own; without what kernels take for themselves.
    pub activations: u64,
}

impl DeviceMemory {
    /// Of CUDA, cuDNN and cuBLAS: half a gigabyte is usual.
    const CONTEXT: u64 = 512 << 20;

    /// Of a run over graphs of these sizes, with `weights` in every session unless they are `shared`.
    pub(super) fn of(sizes: &[OfSize], (weights, shared): (u64, bool), trained: u64) -> Self {
        let sessions: u64 = sizes.iter().map(|s| s.count * s.runs.len() as u64).sum();
        let arenas = |size: &OfSize| -> u64 { size.runs.iter().map(|run| held_alone(run)).sum() };
        Self {
            context: Self::CONTEXT,
            weights: if shared { weights } else { sessions * weights },
            trained,
            activations: sizes.iter().map(|s| s.count * arenas(s)).sum(),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Parts with their names, for people.
    pub fn parts(&self) -> [(&'static str, u64); 4] {
        [
            ("context of the device (assumed)", self.context),
            ("weights", self.weights),
            ("policy, reference, optimizer", self.trained),
            ("activations, an arena a session", self.activations),
        ]
    }
}

/// What the arena of one session comes to hold.
fn held_alone(run: &[BufferEvent]) -> u64 {
    let mut arena = Arena::exact();
    for _ in 0..STEPS {
        arena.run(run);
    }
    arena.reserved()
}
