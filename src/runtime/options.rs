//! How a session is to be built.

use std::path::PathBuf;

use super::{ExecutionProvider, PackedWeights};

/// How much ONNX Runtime may rewrite a graph before running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OptLevel {
    /// Run the graph as it is.
    None,
    /// Constant folding, removal of what has no effect.
    Basic,
    /// Also fusions into ONNX Runtime's own operators.
    Extended,
    /// Also changes of memory layout for the processor at hand.
    #[default]
    All,
}

/// Where a session's intermediate results live on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arena {
    /// Every session keeps what it has once allocated.
    #[default]
    PerSession,
    /// One pool for all sessions with this setting: those that run in turn reuse each other's memory.
    Shared,
    /// Straight from the system and back to it: least memory between runs, slower.
    Off,
}

/// Everything that can be set about a session.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Where to compute. Anything but the CPU must really be usable, or building the session fails.
    pub ep: ExecutionProvider,
    /// Refuse graphs of which the provider leaves other operators to the CPU than those whose nodes have this name: each costs a
    /// copy of its tensors both ways.
    pub only_on_cpu: Option<&'static str>,
    /// Threads inside an operator; 0 takes all that this process may use.
    pub threads: usize,
    /// Whether idle threads may wait actively for the next operator of a run.
    pub spin: bool,
    /// Graph rewriting.
    pub optimization: OptLevel,
    /// Names of rewriting passes to leave out, such as `CommonSubexpressionElimination`.
    pub disabled_optimizers: Vec<String>,
    /// Keep weights a second time in the layout that the matrix kernels like best: faster, more memory.
    pub prepack: bool,
    /// Share those second copies with other sessions over the same weights.
    pub packed: Option<PackedWeights>,
    /// Plan the memory of a run as one block, from the second run of equal shapes on. The block stays with the session: a
    /// training step of SD1.5 took 3.5 GB beside its weights with it and 1.8 GB without, in the same time.
    pub memory_pattern: bool,
    /// Whether values of a run may share a buffer, which then lives from the first to the last of them. Without, a training
    /// step takes a fifth less.
    pub share_buffers: bool,
    /// Where intermediate results live.
    pub arena: Arena,
    /// Only kernels whose result does not depend on the order in which threads finish.
    pub deterministic: bool,
    /// Values for symbolic dimensions, by name.
    pub dims: Vec<(String, usize)>,
    /// Prefix of a file to which the time of every operator is written; see [`Session::end_profiling`].
    ///
    /// [`Session::end_profiling`]: super::Session::end_profiling
    pub profile: Option<PathBuf>,
    /// Where to write the graph as it is run, after rewriting.
    pub optimized_model: Option<PathBuf>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ep: ExecutionProvider::Cpu,
            only_on_cpu: None,
            threads: 0,
            spin: true,
            optimization: OptLevel::All,
            disabled_optimizers: Vec::new(),
            prepack: true,
            packed: None,
            memory_pattern: false,
            share_buffers: true,
            arena: Arena::PerSession,
            deterministic: true,
            dims: Vec::new(),
            profile: None,
            optimized_model: None,
        }
    }
}

impl SessionOptions {
    /// The number of threads that `threads` stands for on this machine.
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}
