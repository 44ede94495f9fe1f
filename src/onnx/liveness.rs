//! How much memory a run of a graph takes at its peak, if every value is let go after its last use.
//!
//! This is what ONNX Runtime's arena holds when it keeps no buffer for reuse and runs the nodes in this order. Inputs,
//! initializers and outputs are not counted: callers hold those.

use super::graph::{Graph, Node};

/// Operators that ONNX Runtime lets write over an input of equal size that nothing needs any more.
const IN_PLACE: [&str; 18] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Exp",
    "Sqrt",
    "Sigmoid",
    "Tanh",
    "Relu",
    "Erf",
    "Softmax",
    "Reciprocal",
    "Log",
    "Abs",
    "Where",
    "Clip",
    "Pow",
];

/// What a run asks of memory, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferEvent {
    /// A buffer is needed from now on.
    Take {
        /// Its number in this run.
        buffer: usize,
        /// Its size.
        bytes: usize,
    },
    /// It is needed no more.
    Free {
        /// Its number in this run.
        buffer: usize,
    },
}

impl Graph {
    /// What a run asks of memory for the values made by nodes and for what operators need while they run.
    pub fn buffer_events(&self) -> Vec<BufferEvent> {
        self.events_of(Memory::new(self))
    }

    /// As [`Graph::buffer_events`], without what the CPU's kernels take for themselves: for devices, whose kernels take
    /// something else.
    pub fn value_events(&self) -> Vec<BufferEvent> {
        self.events_of(Memory {
            has_workspaces: false,
            ..Memory::new(self)
        })
    }

    fn events_of(&self, mut memory: Memory) -> Vec<BufferEvent> {
        for (i, node) in self.nodes.iter().enumerate() {
            memory.run(self, i, node);
        }
        memory.events
    }

    /// Bytes that the values made by nodes take at most at one time.
    pub fn peak_bytes(&self) -> usize {
        self.live_bytes().into_iter().max().unwrap_or(0)
    }

    /// Bytes that the values made by nodes take while each node runs.
    pub fn live_bytes(&self) -> Vec<usize> {
        let mut memory = Memory::new(self);
        let step = |(i, node)| memory.run(self, i, node);
        self.nodes.iter().enumerate().map(step).collect()
    }
}

/// A buffer and the values that lie in it.
struct Buffer {
    bytes: usize,
    /// Last node that reads one of them.
    last_use: usize,
}

/// Buffers while a graph runs.
struct Memory {
    /// Last node that reads each value; `usize::MAX` for values that a caller holds.
    last_use: Vec<usize>,
    /// Buffer of each value that a node made.
    buffer: Vec<Option<usize>>,
    buffers: Vec<Buffer>,
    /// Buffers by the node after which they are free.
    ends: Vec<Vec<usize>>,
    live: usize,
    events: Vec<BufferEvent>,
    has_workspaces: bool,
    workspaces: Vec<usize>,
}

impl Memory {
    fn new(graph: &Graph) -> Self {
        let mut last_use = vec![0; graph.value_count()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.inputs.iter().flatten() {
                last_use[graph.index(*v)] = i;
            }
        }
        for v in &graph.outputs {
            last_use[graph.index(*v)] = usize::MAX;
        }
        Self {
            last_use,
            buffer: vec![None; graph.value_count()],
            buffers: Vec::new(),
            ends: vec![Vec::new(); graph.nodes.len()],
            live: 0,
            events: Vec::new(),
            has_workspaces: true,
            workspaces: Vec::new(),
        }
    }

    /// Runs node `i`; returns the bytes that live meanwhile.
    fn run(&mut self, graph: &Graph, i: usize, node: &Node) -> usize {
        for (k, v) in node.outputs.iter().enumerate() {
            let Some(v) = v else { continue };
            let slot = graph.index(*v);
            let (bytes, last_use) = (graph.ty(*v).len() * graph.dtype(*v).size(), self.last_use[slot]);
            if last_use == usize::MAX {
                continue;
            }
            let reused = if k == 0 {
                self.reused(graph, i, node, bytes)
            } else {
                None
            };
            let last_use = last_use.max(i);
            let buffer = match reused {
                Some(buffer) => buffer,
                None => {
                    self.buffers.push(Buffer { bytes, last_use });
                    self.live += bytes;
                    let buffer = self.buffers.len() - 1;
                    self.events.push(BufferEvent::Take { buffer, bytes });
                    buffer
                }
            };
            let end = self.buffers[buffer].last_use.max(last_use);
            self.buffers[buffer].last_use = end;
            self.ends[end].push(buffer);
            self.buffer[slot] = Some(buffer);
        }
        let workspaces = match self.has_workspaces {
            true => workspace(graph, node),
            false => Vec::new(),
        };
        for bytes in workspaces {
            // Never the number of a buffer of a value.
            let buffer = usize::MAX - self.events.len();
            self.events.push(BufferEvent::Take { buffer, bytes });
            self.workspaces.push(buffer);
        }
        let done = self
            .workspaces
            .drain(..)
            .map(|buffer| BufferEvent::Free { buffer });
        self.events.extend(done);
        let live = self.live;
        for buffer in std::mem::take(&mut self.ends[i]) {
            let b = &mut self.buffers[buffer];
            // A buffer is listed once for each of its values.
            if b.last_use == i {
                self.live -= std::mem::take(&mut b.bytes);
                self.events.push(BufferEvent::Free { buffer });
            }
        }
        live
    }

    /// The buffer that the first output of `node` shares with an input.
    fn reused(&self, graph: &Graph, i: usize, node: &Node, bytes: usize) -> Option<usize> {
        let of = |v| self.buffer[graph.index(v)];
        if !node.domain.is_empty() {
            return None;
        }
        if node.is_view() {
            return of(node.input(0)?);
        }
        if !IN_PLACE.contains(&node.op.as_str()) {
            return None;
        }
        let free = |b: &usize| self.buffers[*b].last_use == i && self.buffers[*b].bytes == bytes;
        node.inputs.iter().flatten().filter_map(|v| of(*v)).find(free)
    }
}

/// Buffers that ONNX Runtime's CPU kernel of an operator takes for itself while it runs, in bytes.
fn workspace(graph: &Graph, node: &Node) -> Vec<usize> {
    let bytes = |k: usize| {
        node.input(k)
            .map_or(0, |v| graph.ty(v).len() * graph.dtype(v).size())
    };
    match node.op.as_str() {
        // Queries, keys and values with heads in front.
        "MultiHeadAttention" => vec![bytes(0), bytes(1), bytes(2)],
        // A column of one sample's outputs for every position of the input.
        "ConvTranspose" => {
            let (Some(x), Some(w)) = (node.input(0), node.input(1)) else {
                return Vec::new();
            };
            let positions: usize = graph.shape(x)[2..].iter().product();
            let kernel: usize = graph.shape(w)[1..].iter().product();
            vec![positions * kernel * graph.dtype(x).size()]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::TensorType;
    use crate::tensor::DType;

    /// A matrix of 100 x 100, 40,000 bytes.
    fn start() -> (Graph, crate::onnx::ValueId) {
        let mut g = Graph::new("live", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [100, 100]));
        (g, x)
    }

    #[test]
    fn values_are_let_go_after_their_last_use() {
        let (mut g, x) = start();
        let a = g.matmul(x, x).unwrap();
        let b = g.matmul(a, x).unwrap();
        let c = g.matmul(b, x).unwrap();
        g.outputs.push(c);
        assert_eq!(
            g.live_bytes(),
            [40_000, 80_000, 40_000],
            "an output is the caller's"
        );
    }

    #[test]
    fn what_is_needed_later_stays() {
        let (mut g, x) = start();
        let a = g.matmul(x, x).unwrap();
        let b = g.matmul(a, x).unwrap();
        let c = g.matmul(b, x).unwrap();
        let d = g.matmul(c, a).unwrap();
        let e = g.matmul(d, x).unwrap();
        g.outputs.push(e);
        assert_eq!(g.peak_bytes(), 120_000);
    }

    #[test]
    fn views_and_operators_in_place_take_no_memory_of_their_own() {
        let (mut g, x) = start();
        let a = g.matmul(x, x).unwrap();
        let b = g.reshape(a, &[10_000]).unwrap();
        let c = g.unary("Exp", b).unwrap();
        let d = g.scale(c, 2.0).unwrap();
        let e = g.reshape(d, &[100, 100]).unwrap();
        let f = g.matmul(e, x).unwrap();
        g.outputs.push(f);
        assert_eq!(g.peak_bytes(), 40_000);
    }

    #[test]
    fn nothing_is_written_over_that_is_still_read() {
        let (mut g, x) = start();
        let a = g.matmul(x, x).unwrap();
        let b = g.unary("Exp", a).unwrap();
        let c = g.add(a, b).unwrap();
        let d = g.matmul(c, x).unwrap();
        g.outputs.push(d);
        assert_eq!(g.peak_bytes(), 80_000);
    }
}
