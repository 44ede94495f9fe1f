//! From a model with open dimensions to a static [`Graph`].
//!
//! One walk over the nodes: dimensions of the inputs are fixed, sub-graphs of integers (and of floats that no parameter
//! feeds) are evaluated, `If` with a known condition and model-local functions are inlined, sequences are resolved, and
//! every remaining node gets its types. Slices that share out a tensor are joined. Weights are never read.

use std::collections::HashMap;

use super::attr::{Attr, Attrs};
use super::data::Constant;
use super::dims::{Dims, check_known, fix};
use super::eval;
use super::graph::{Graph, Node, ValueId};
use super::literal::Literal;
use super::proto::{FunctionProto, GraphProto, NodeProto};
use super::read::Model;
use super::sequence;
use super::slices;
use super::view::View;
use super::zeros::Zeros;
use crate::{Error, Result};

/// How to make a model static.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Dimensions.
    pub dims: Dims,
    /// The legacy exporter merges parameters of equal value through `Identity`. `true` makes each of them a parameter of
    /// its own again (full fine-tuning); `false` keeps the one initializer (its gradient is then the sum).
    pub split_shared: bool,
}

/// A name in scope.
#[derive(Debug, Clone)]
pub(super) enum Binding {
    Value(ValueId),
    Sequence(Vec<ValueId>),
}

/// Makes `model` static.
pub fn specialize(model: &Model, options: &Options) -> Result<Graph> {
    let proto = model.graph();
    let mut graph = Graph::new(&proto.name, model.opset);
    graph.ir_version = graph.ir_version.max(model.proto.ir_version);
    let mut walk = Walk {
        graph,
        scopes: vec![HashMap::new()],
        outer_attrs: Attrs::new(),
        functions: model
            .proto
            .functions
            .iter()
            .map(|f| ((f.domain.as_str(), f.name.as_str()), f))
            .collect(),
        model,
        split_shared: options.split_shared,
        zeros: Zeros::default(),
        depth: 0,
    };
    walk.add_initializers(proto)?;
    let infos = model.inputs()?;
    check_known(&infos, &options.dims, model)?;
    for info in infos {
        let ty = fix(&info, &options.dims, model)?;
        let id = walk.graph.add_input(&info.name, ty);
        walk.bind(&info.name, Binding::Value(id));
    }
    walk.nodes(&proto.node)?;
    for info in &proto.output {
        let id = walk.value(&info.name, "the list of graph outputs")?;
        let id = walk.graph.as_output(id, &info.name)?;
        walk.graph.outputs.push(id);
    }
    let mut graph = walk.graph;
    slices::join(&mut graph);
    graph.prune();
    graph.index_nodes();
    Ok(graph)
}

/// Deepest nesting of functions and branches; real models have two or three levels.
const MAX_DEPTH: usize = 32;

pub(super) struct Walk<'m> {
    pub(super) graph: Graph,
    scopes: Vec<HashMap<String, Binding>>,
    /// Attributes of the call while a function body is walked.
    outer_attrs: Attrs,
    functions: HashMap<(&'m str, &'m str), &'m FunctionProto>,
    model: &'m Model,
    split_shared: bool,
    zeros: Zeros,
    depth: usize,
}

impl<'m> Walk<'m> {
    pub(super) fn bind(&mut self, name: &str, binding: Binding) {
        self.scopes
            .last_mut()
            .expect("there is always a scope")
            .insert(name.to_owned(), binding);
    }

    /// The value or sequence called `name`; inner scopes (branches) see the outer ones.
    pub(super) fn lookup(&self, name: &str, place: &str) -> Result<Binding> {
        self.scopes
            .iter()
            .rev()
            .find_map(|s| s.get(name))
            .cloned()
            .ok_or_else(|| {
                Error::bad(
                    format!("{}: {place}", self.model.path.display()),
                    format!("names a value `{name}` that nothing before it makes"),
                    "The file is damaged; export it again.",
                )
            })
    }

    pub(super) fn value(&self, name: &str, place: &str) -> Result<ValueId> {
        match self.lookup(name, place)? {
            Binding::Value(v) => Ok(v),
            Binding::Sequence(_) => Err(Error::bad(
                format!("{}: {place}", self.model.path.display()),
                format!("uses the sequence `{name}` as a tensor"),
                "Export the model without sequences.",
            )),
        }
    }

    fn add_initializers(&mut self, proto: &GraphProto) -> Result<()> {
        let folder = self.model.folder();
        for t in &proto.initializer {
            let constant = Constant::from_proto(t, Some(folder)).map_err(|e| in_file(e, self.model))?;
            let is_parameter = constant.dtype.is_float();
            let id = self.graph.add_constant(&t.name, constant);
            if is_parameter {
                self.graph.parameters.insert(id);
            }
            self.bind(&t.name, Binding::Value(id));
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &'m [NodeProto]) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::bad(
                self.model.path.display().to_string(),
                "nests functions or branches too deeply (or recursively)",
                "Export the model with its functions inlined.",
            ));
        }
        for node in nodes {
            self.node(node).map_err(|e| in_file(e, self.model))?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn node(&mut self, proto: &'m NodeProto) -> Result<()> {
        if let Some(function) = self
            .functions
            .get(&(proto.domain.as_str(), proto.op_type.as_str()))
            .copied()
        {
            return self.call(proto, function);
        }
        let place = format!("{} node `{}`", proto.op_type, proto.name);
        if proto.output.is_empty() {
            return Err(Error::bad(
                place,
                "has no output",
                "The file is damaged; export it again.",
            ));
        }
        let attrs = Attrs::from_proto(&proto.attribute, &self.outer_attrs, &place)?;
        match proto.op_type.as_str() {
            "Constant" => self.constant(proto, &attrs, &place),
            "If" => self.branch(proto, &place),
            op if sequence::handles(op) => sequence::node(self, proto, &attrs, &place),
            _ => self.plain(proto, attrs, &place),
        }
    }

    fn plain(&mut self, proto: &NodeProto, attrs: Attrs, place: &str) -> Result<()> {
        let inputs: Vec<Option<ValueId>> = proto
            .input
            .iter()
            .map(|n| {
                if n.is_empty() {
                    Ok(None)
                } else {
                    self.value(n, place).map(Some)
                }
            })
            .collect::<Result<_>>()?;
        let node = Node {
            op: proto.op_type.clone(),
            domain: if proto.domain == "ai.onnx" {
                String::new()
            } else {
                proto.domain.clone()
            },
            name: proto.name.clone(),
            inputs,
            outputs: Vec::new(),
            attrs,
            metadata: proto
                .metadata_props
                .iter()
                .map(|p| (p.key.clone(), p.value.clone()))
                .collect(),
        };
        if let Some(alias) = self.passes_through(&node, proto)? {
            self.bind(&proto.output[0], Binding::Value(alias));
            return Ok(());
        }
        if self.zeros.makes_zeros(&self.graph, &node) {
            let outputs = self.emit(proto, node)?;
            self.zeros.extend(outputs.into_iter().flatten());
            return Ok(());
        }
        if let Some(literals) = eval::evaluate(&View::new(&self.graph, &node), proto.output.len())? {
            let fed_by_parameter = node.inputs.iter().flatten().any(|v| self.is_parametric(*v));
            if !(fed_by_parameter && literals.iter().any(|l| l.dtype().is_float())) {
                for (name, literal) in proto.output.iter().zip(literals) {
                    self.bind_literal(name, literal);
                }
                return Ok(());
            }
            // A number made from parameters: keep the node, so that gradients reach them, but remember the number.
            let outputs = self.emit(proto, node)?;
            for (id, literal) in outputs.into_iter().flatten().zip(literals) {
                self.graph.folded.insert(id, literal.into_constant());
            }
            return Ok(());
        }
        self.emit(proto, node)?;
        Ok(())
    }

    fn emit(&mut self, proto: &NodeProto, node: Node) -> Result<Vec<Option<ValueId>>> {
        if !node.domain.is_empty() {
            let domain = self
                .model
                .proto
                .opset_import
                .iter()
                .find(|o| o.domain == node.domain);
            self.graph
                .other_opsets
                .insert(node.domain.clone(), domain.map_or(1, |o| o.version));
        }
        let names: Vec<Option<&str>> = proto
            .output
            .iter()
            .map(|n| (!n.is_empty()).then_some(n.as_str()))
            .collect();
        let outputs = self.graph.add_node(node, &names)?;
        for (name, id) in proto.output.iter().zip(&outputs) {
            if let Some(id) = id {
                self.bind(name, Binding::Value(*id));
            }
        }
        Ok(outputs)
    }

    /// Whether `value` is a parameter or a number made from one.
    fn is_parametric(&self, value: ValueId) -> bool {
        self.graph.parameters.contains(&value) || self.graph.folded.contains_key(&value)
    }

    pub(super) fn bind_literal(&mut self, name: &str, literal: Literal) {
        if name.is_empty() {
            return;
        }
        let id = self.graph.add_constant(name, literal.into_constant());
        self.bind(name, Binding::Value(id));
    }

    /// Nodes that hand on their input: the value they hand on.
    fn passes_through(&mut self, node: &Node, proto: &NodeProto) -> Result<Option<ValueId>> {
        let view = View::new(&self.graph, node);
        let only_output = proto.output.iter().skip(1).all(String::is_empty);
        match node.op.as_str() {
            "Identity" => {
                let x = view.input(0)?;
                if self.split_shared && self.graph.parameters.contains(&x) {
                    let copy = self.graph.constants[&x].clone();
                    let id = self.graph.add_constant(&proto.output[0], copy);
                    self.graph.parameters.insert(id);
                    return Ok(Some(id));
                }
                Ok(Some(x))
            }
            "Cast" | "CastLike" | "Reshape" | "Expand" | "Transpose" => {
                let ty = super::infer::infer(&self.graph, node, 1)?.swap_remove(0);
                let x = view.input(0)?;
                let unmoved = node.op != "Transpose"
                    || super::infer::transpose_perm(&view)?
                        .iter()
                        .enumerate()
                        .all(|(i, p)| i == *p);
                Ok((*self.graph.ty(x) == ty && unmoved).then_some(x))
            }
            "Dropout" if only_output => {
                let training = match view.input_count() > 2 {
                    true => view.ints(2)?.is_some_and(|t| t == [1]),
                    false => false,
                };
                if training {
                    return Err(view.error("is a Dropout in training mode"));
                }
                Ok(Some(view.input(0)?))
            }
            _ => Ok(self.zeros.untouched(&self.graph, node)),
        }
    }

    fn constant(&mut self, proto: &NodeProto, attrs: &Attrs, place: &str) -> Result<()> {
        use crate::tensor::DType::{F32, I64};
        let constant = match attrs.0.first() {
            Some((_, Attr::Tensor(c))) => c.clone(),
            Some((_, Attr::Float(f))) => Constant::floats(F32, &[], &[f64::from(*f)]),
            Some((_, Attr::Int(i))) => Constant::integers(I64, &[], &[*i]),
            Some((_, Attr::Floats(f))) => Constant::floats(
                F32,
                &[f.len()],
                &f.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(),
            ),
            Some((_, Attr::Ints(i))) => Constant::integers(I64, &[i.len()], i),
            _ => {
                return Err(Error::bad(
                    place,
                    "holds a value that is not a dense tensor",
                    "Export the model again.",
                ));
            }
        };
        let is_parameter = constant.dtype.is_float() && constant.len() > 1;
        let id = self.graph.add_constant(&proto.output[0], constant);
        if is_parameter {
            self.graph.parameters.insert(id);
        }
        self.bind(&proto.output[0], Binding::Value(id));
        Ok(())
    }

    /// Inlines the branch of an `If` whose condition is known.
    fn branch(&mut self, proto: &'m NodeProto, place: &str) -> Result<()> {
        let condition = self.value(input_name(proto, 0, place)?, place)?;
        let Some(truth) = self.graph.constant_integers(condition) else {
            return Err(Error::bad(
                place,
                "chooses a branch by data that is only known at run time",
                "Export the model with fixed control flow.",
            ));
        };
        let name = if truth.first() == Some(&1) {
            "then_branch"
        } else {
            "else_branch"
        };
        let body = proto
            .attribute
            .iter()
            .find(|a| a.name == name)
            .and_then(|a| a.g.as_ref())
            .ok_or_else(|| Error::bad(place, format!("lacks its {name}"), "Export the model again."))?;
        self.scopes.push(HashMap::new());
        self.add_initializers(body)?;
        self.nodes(&body.node)?;
        let results: Vec<Binding> = body
            .output
            .iter()
            .map(|o| self.lookup(&o.name, place))
            .collect::<Result<_>>()?;
        self.scopes.pop();
        for (name, binding) in proto.output.iter().zip(results) {
            self.bind(name, binding);
        }
        Ok(())
    }

    /// Inlines a call of a model-local function. Its body sees its own inputs only.
    fn call(&mut self, proto: &'m NodeProto, function: &'m FunctionProto) -> Result<()> {
        let place = format!("{} node `{}`", proto.op_type, proto.name);
        let mut attrs = Attrs::from_proto(&proto.attribute, &self.outer_attrs, &place)?;
        let defaults = Attrs::from_proto(&function.attribute_proto, &Attrs::new(), &place)?;
        for (name, value) in defaults.0 {
            if attrs.get(&name).is_none() {
                attrs.0.push((name, value));
            }
        }
        let mut scope = HashMap::new();
        for (formal, actual) in function.input.iter().zip(&proto.input) {
            if !actual.is_empty() {
                scope.insert(formal.clone(), self.lookup(actual, &place)?);
            }
        }
        let outer_scopes = std::mem::replace(&mut self.scopes, vec![scope]);
        let outer_attrs = std::mem::replace(&mut self.outer_attrs, attrs);
        self.nodes(&function.node)?;
        let results: Vec<Binding> = function
            .output
            .iter()
            .map(|o| self.lookup(o, &place))
            .collect::<Result<_>>()?;
        self.scopes = outer_scopes;
        self.outer_attrs = outer_attrs;
        for (name, binding) in proto.output.iter().zip(results) {
            self.bind(name, binding);
        }
        Ok(())
    }
}

/// Name of an input that has to be there.
pub(super) fn input_name<'p>(proto: &'p NodeProto, i: usize, place: &str) -> Result<&'p str> {
    let name = proto.input.get(i).filter(|n| !n.is_empty());
    name.map(String::as_str)
        .ok_or_else(|| Error::bad(place, format!("lacks its input {i}"), "Export the model again."))
}

/// Adds the file's name to an error about one of its nodes.
fn in_file(error: Error, model: &Model) -> Error {
    let file = model.path.display().to_string();
    match error {
        Error::BadInput { place, what, remedy } if !place.starts_with(&file) && !place.contains(": ") => {
            Error::BadInput {
                place: format!("{file}: {place}"),
                what,
                remedy,
            }
        }
        other => other,
    }
}
