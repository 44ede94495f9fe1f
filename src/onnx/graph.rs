//! A static computation graph: every value has an element type and a shape of plain numbers.
//!
//! Graphs come out of [`super::specialize`] and are grown by the builder methods in [`super::build`]; nodes are always in
//! topological order because a node can only name values that exist.

use std::collections::{BTreeMap, HashMap};

use indexmap::IndexMap;

use super::attr::Attrs;
use super::data::Constant;
use crate::tensor::DType;
use crate::{Error, Result};

/// Domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// A value (edge) of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(super) u32);

/// Element type and shape of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// From its parts.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            dtype,
            shape: shape.into(),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Whether it is small enough that products of its dimensions, and sums of a few of them, cannot overflow. Beyond
    /// are only damaged files and typing errors.
    pub fn is_countable(&self) -> bool {
        let count = self
            .shape
            .iter()
            .try_fold(1_usize, |n, d| n.checked_mul((*d).max(1)));
        count.is_some_and(|n| n <= LARGEST_COUNT)
    }
}

/// More elements than any machine holds.
const LARGEST_COUNT: usize = 1 << 48;

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// What the graph knows about a value.
#[derive(Debug, Clone)]
pub struct Value {
    /// Name; empty where the writer may choose one.
    pub name: String,
    /// Type.
    pub ty: TensorType,
}

/// One operator application.
#[derive(Debug, Clone)]
pub struct Node {
    /// Operator, e.g. `Conv`.
    pub op: String,
    /// Operator domain; empty for the standard one.
    pub domain: String,
    /// Name from the exporter; tells the module the node came from.
    pub name: String,
    /// Inputs; optional ones may be absent.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; unused optional ones may be absent.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes.
    pub attrs: Attrs,
    /// `metadata_props` from the exporter (the dynamo exporter writes module scopes there).
    pub metadata: Vec<(String, String)>,
}

impl Node {
    /// The input at `index`, if present.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// The output at `index`, if present.
    pub fn output(&self, index: usize) -> Option<ValueId> {
        self.outputs.get(index).copied().flatten()
    }

    /// Whether the output is the first input's memory, seen in another shape.
    pub fn is_view(&self) -> bool {
        let views = ["Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"];
        self.domain.is_empty() && views.contains(&self.op.as_str())
    }

    /// How errors name the node: its own name, or operator and first output.
    pub fn place(&self, graph: &Graph) -> String {
        if self.name.is_empty() {
            let out = self.output(0).map(|v| graph.name(v)).unwrap_or_default();
            format!("{} node with output `{out}` (opset {})", self.op, graph.opset)
        } else {
            format!("{} node `{}` (opset {})", self.op, self.name, graph.opset)
        }
    }
}

/// What makes two nodes equal: operator, domain, inputs, and attributes with the number of outputs, as text.
pub(super) type NodeKey = (String, String, Vec<Option<ValueId>>, String);

/// A static graph; see the module's text.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Name, for people.
    pub name: String,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Versions of other operator domains in use.
    pub other_opsets: BTreeMap<String, i64>,
    /// Version of the file format.
    pub ir_version: i64,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
    /// Inputs that a caller feeds.
    pub inputs: Vec<ValueId>,
    /// Outputs that a caller gets.
    pub outputs: Vec<ValueId>,
    /// Initializers.
    pub constants: IndexMap<ValueId, Constant>,
    /// Constants that carry a parameter: initializers and `Constant` nodes of the model as exported. Numbers that
    /// folding or derivation made are not among them.
    pub parameters: indexmap::IndexSet<ValueId>,
    /// Values through which no gradient flows; see [`Graph::stop_gradient`].
    pub stopped: indexmap::IndexSet<ValueId>,
    /// Numbers known while shapes are worked out, of values that still are computed because parameters feed them.
    pub(super) folded: HashMap<ValueId, Constant>,
    pub(super) values: Vec<Value>,
    pub(super) known: HashMap<NodeKey, Vec<Option<ValueId>>>,
    pub(super) literals: HashMap<(DType, Vec<usize>, Vec<u64>), ValueId>,
}

impl Graph {
    /// An empty graph for operators of `opset`.
    pub fn new(name: &str, opset: i64) -> Self {
        Self {
            name: name.to_owned(),
            opset,
            other_opsets: BTreeMap::new(),
            ir_version: ir_version_for(opset),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            constants: IndexMap::new(),
            parameters: indexmap::IndexSet::new(),
            stopped: indexmap::IndexSet::new(),
            folded: HashMap::new(),
            values: Vec::new(),
            known: HashMap::new(),
            literals: HashMap::new(),
        }
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value.0 as usize].ty
    }

    /// Shape of a value.
    pub fn shape(&self, value: ValueId) -> &[usize] {
        &self.ty(value).shape
    }

    /// Element type of a value.
    pub fn dtype(&self, value: ValueId) -> DType {
        self.ty(value).dtype
    }

    /// Number of dimensions of a value.
    pub fn rank(&self, value: ValueId) -> usize {
        self.ty(value).rank()
    }

    /// Name of a value; a stable made-up one where it has none.
    pub fn name(&self, value: ValueId) -> String {
        let name = &self.values[value.0 as usize].name;
        if name.is_empty() {
            format!("_{}", value.0)
        } else {
            name.clone()
        }
    }

    /// Gives a value a name.
    pub fn set_name(&mut self, value: ValueId, name: impl Into<String>) {
        self.values[value.0 as usize].name = name.into();
    }

    /// Number of values, for tables indexed by [`Graph::index`].
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// Position of a value in such tables.
    pub fn index(&self, value: ValueId) -> usize {
        value.0 as usize
    }

    /// The value called `name`, if there is one. Linear; build a map for many look-ups.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values
            .iter()
            .position(|v| v.name == name)
            .map(|i| ValueId(i as u32))
    }

    /// The input called `name`, or an error that lists the inputs there are.
    pub fn input(&self, name: &str) -> Result<ValueId> {
        self.named(&self.inputs, name, "input")
    }

    /// The output called `name`, or an error that lists the outputs there are.
    pub fn output(&self, name: &str) -> Result<ValueId> {
        self.named(&self.outputs, name, "output")
    }

    fn named(&self, among: &[ValueId], name: &str, what: &str) -> Result<ValueId> {
        among
            .iter()
            .copied()
            .find(|v| self.values[v.0 as usize].name == name)
            .ok_or_else(|| {
                let names: Vec<_> = among.iter().map(|v| format!("`{}`", self.name(*v))).collect();
                Error::bad(
                    format!("graph `{}`", self.name),
                    format!("has no {what} `{name}`"),
                    format!("Its {what}s are {}.", names.join(", ")),
                )
            })
    }

    /// Which node makes each value, by value index.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut made_by = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for v in node.outputs.iter().flatten() {
                made_by[v.0 as usize] = Some(i);
            }
        }
        made_by
    }

    /// Elements of a constant of integers or booleans, if they are in memory.
    pub fn constant_integers(&self, value: ValueId) -> Option<Vec<i64>> {
        self.number(value)?.to_integers()
    }

    /// Elements of a constant of floats, if they are in memory.
    pub fn constant_floats(&self, value: ValueId) -> Option<Vec<f64>> {
        self.number(value)?.to_floats()
    }

    pub(super) fn number(&self, value: ValueId) -> Option<&Constant> {
        self.constants.get(&value).or_else(|| self.folded.get(&value))
    }

    pub(super) fn push_value(&mut self, name: &str, ty: TensorType) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("graphs have fewer than 2^32 values"));
        self.values.push(Value {
            name: name.to_owned(),
            ty,
        });
        id
    }
}

/// Oldest file format version that knows an operator set.
pub(super) fn ir_version_for(opset: i64) -> i64 {
    match opset {
        ..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        _ => 12,
    }
}
