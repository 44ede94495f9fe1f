//! Growing a graph: every method adds one standard operator, infers its type at once, and returns the value.
//!
//! Equal nodes are made once (a reverse pass asks for the same transposed or reduced value many times), and operations
//! that change nothing return their input.

use super::attr::{Attr, Attrs};
use super::data::Constant;
use super::graph::{Graph, Node, TensorType, ValueId};
use super::infer;
use crate::Result;
use crate::tensor::DType;

impl Graph {
    /// Adds an input.
    pub fn add_input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let id = self.push_value(name, ty);
        self.inputs.push(id);
        id
    }

    /// Adds a named constant.
    pub fn add_constant(&mut self, name: &str, constant: Constant) -> ValueId {
        let id = self.push_value(name, TensorType::new(constant.dtype, constant.shape.clone()));
        self.constants.insert(id, constant);
        id
    }

    /// Adds a copy of a constant of `body`, of the type that it has there, however it is stored.
    pub fn add_constant_of(&mut self, body: &Graph, value: ValueId) -> Option<ValueId> {
        let constant = body.constants.get(&value)?.clone();
        let id = self.push_value(&body.name(value), body.ty(value).clone());
        self.constants.insert(id, constant);
        if body.parameters.contains(&value) {
            self.parameters.insert(id);
        }
        Some(id)
    }

    /// Turns a constant into an input of the same name, shape and type.
    pub fn constant_to_input(&mut self, value: ValueId) -> Option<Constant> {
        let constant = self.constants.shift_remove(&value)?;
        self.inputs.push(value);
        Some(constant)
    }

    /// Adds a node as it is, its output types inferred. `names` are the outputs' names; `None` leaves an output out.
    pub fn add_node(&mut self, mut node: Node, names: &[Option<&str>]) -> Result<Vec<Option<ValueId>>> {
        let types = infer::infer(self, &node, names.len())?;
        node.outputs = names
            .iter()
            .zip(types)
            .map(|(name, ty)| name.map(|name| self.push_value(name, ty)))
            .collect();
        let outputs = node.outputs.clone();
        self.nodes.push(node);
        Ok(outputs)
    }

    /// Adds a copy of `original`, a node of `body`, whose inputs have been replaced in `node`; or returns the outputs of
    /// an equal node. Output names are kept where nothing in this graph has them yet.
    pub fn add_shared_node(
        &mut self,
        node: Node,
        body: &Graph,
        original: &Node,
    ) -> Result<Vec<Option<ValueId>>> {
        let key = (
            node.op.clone(),
            node.domain.clone(),
            node.inputs.clone(),
            format!("{:?}/{}", node.attrs, node.outputs.len()),
        );
        if let Some(made) = self.known.get(&key) {
            return Ok(made.clone());
        }
        let names: Vec<Option<String>> = original.outputs.iter().map(|v| v.map(|v| body.name(v))).collect();
        let names: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
        let made = self.add_node(node, &names)?;
        self.known.insert(key, made.clone());
        Ok(made)
    }

    /// Adds an operator with `outputs` unnamed outputs, or returns those of an equal one.
    pub fn op_n(
        &mut self,
        op: &str,
        inputs: &[Option<ValueId>],
        attrs: Attrs,
        outputs: usize,
    ) -> Result<Vec<ValueId>> {
        let key = (
            op.to_owned(),
            String::new(),
            inputs.to_vec(),
            format!("{attrs:?}/{outputs}"),
        );
        let made = match self.known.get(&key) {
            Some(made) => made.clone(),
            None => {
                let node = Node {
                    op: op.to_owned(),
                    domain: String::new(),
                    name: String::new(),
                    inputs: inputs.to_vec(),
                    outputs: Vec::new(),
                    attrs,
                    metadata: Vec::new(),
                };
                let made = self.add_node(node, &vec![Some(""); outputs])?;
                self.known.insert(key, made.clone());
                made
            }
        };
        Ok(made
            .into_iter()
            .map(|v| v.expect("all outputs were asked for"))
            .collect())
    }

    /// Adds an operator with one output.
    pub fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Attrs) -> Result<ValueId> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.op_n(op, &inputs, attrs, 1)?[0])
    }

    /// `value` under `name`, as an output needs it: renamed, or copied by an `Identity` where it has to keep its own name
    /// because it is an input, a constant or an output already.
    pub fn as_output(&mut self, value: ValueId, name: &str) -> Result<ValueId> {
        if self.name(value) == name {
            return Ok(value);
        }
        let keeps_name = self.inputs.contains(&value)
            || self.constants.contains_key(&value)
            || self.outputs.contains(&value);
        if !keeps_name {
            self.set_name(value, name);
            return Ok(value);
        }
        self.copy(value, name)
    }

    /// `value` as a constant for differentiation: no gradient flows through the result.
    pub fn stop_gradient(&mut self, value: ValueId) -> Result<ValueId> {
        let copy = self.copy(value, "")?;
        self.stopped.insert(copy);
        Ok(copy)
    }

    /// An `Identity` of its own, never shared with another one.
    fn copy(&mut self, value: ValueId, name: &str) -> Result<ValueId> {
        let node = Node {
            op: "Identity".into(),
            domain: String::new(),
            name: String::new(),
            inputs: vec![Some(value)],
            outputs: Vec::new(),
            attrs: Attrs::new(),
            metadata: Vec::new(),
        };
        Ok(self.add_node(node, &[Some(name)])?[0].expect("one output was asked for"))
    }

    /// A constant list of integers (axes, shapes, indices): i64, one dimension.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        let key = (
            DType::I64,
            vec![values.len()],
            values.iter().map(|v| *v as u64).collect(),
        );
        if let Some(id) = self.literals.get(&key) {
            return *id;
        }
        let id = self.add_constant("", Constant::integers(DType::I64, &[values.len()], values));
        self.literals.insert(key, id);
        id
    }

    /// A constant integer without dimensions.
    pub fn int_scalar(&mut self, value: i64) -> ValueId {
        let key = (DType::I64, vec![], vec![value as u64]);
        if let Some(id) = self.literals.get(&key) {
            return *id;
        }
        let id = self.add_constant("", Constant::integers(DType::I64, &[], &[value]));
        self.literals.insert(key, id);
        id
    }

    /// A constant float tensor of type `dtype`.
    pub fn float_tensor(&mut self, dtype: DType, shape: &[usize], values: &[f64]) -> ValueId {
        let key = (
            dtype,
            shape.to_vec(),
            values.iter().map(|v| v.to_bits()).collect(),
        );
        if let Some(id) = self.literals.get(&key) {
            return *id;
        }
        let id = self.add_constant("", Constant::floats(dtype, shape, values));
        self.literals.insert(key, id);
        id
    }

    /// A constant float without dimensions, of type `dtype`.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> ValueId {
        self.float_tensor(dtype, &[], &[value])
    }

    /// A float without dimensions, of the element type of `like`.
    pub fn scalar_like(&mut self, like: ValueId, value: f64) -> ValueId {
        self.scalar(self.dtype(like), value)
    }

    /// The one number that fills the constant `value`, if it is a float constant of one element.
    fn uniform(&self, value: ValueId) -> Option<f64> {
        let c = self.constants.get(&value)?;
        if c.len() != 1 || self.parameters.contains(&value) {
            return None;
        }
        c.to_floats().map(|v| v[0])
    }

    /// `a + b`, broadcast.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op("Add", &[a, b], Attrs::new())
    }

    /// `a − b`, broadcast.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op("Sub", &[a, b], Attrs::new())
    }

    /// `a · b`, broadcast. A factor 1 disappears when it does not change the shape.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        if self.uniform(b) == Some(1.0) && self.rank(b) <= self.rank(a) {
            return Ok(a);
        }
        if self.uniform(a) == Some(1.0) && self.rank(a) <= self.rank(b) {
            return Ok(b);
        }
        self.op("Mul", &[a, b], Attrs::new())
    }

    /// `a / b`, broadcast.
    pub fn div(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op("Div", &[a, b], Attrs::new())
    }

    /// `a · number`.
    pub fn scale(&mut self, a: ValueId, number: f64) -> Result<ValueId> {
        let k = self.scalar_like(a, number);
        self.mul(a, k)
    }

    /// `a + number`.
    pub fn offset(&mut self, a: ValueId, number: f64) -> Result<ValueId> {
        let k = self.scalar_like(a, number);
        self.add(a, k)
    }

    /// `−a`.
    pub fn neg(&mut self, a: ValueId) -> Result<ValueId> {
        self.op("Neg", &[a], Attrs::new())
    }

    /// A unary operator without attributes (`Exp`, `Sigmoid`, `Sqrt`, …).
    pub fn unary(&mut self, op: &str, a: ValueId) -> Result<ValueId> {
        self.op(op, &[a], Attrs::new())
    }

    /// `a` as elements of `dtype`.
    pub fn cast(&mut self, a: ValueId, dtype: DType) -> Result<ValueId> {
        if self.dtype(a) == dtype {
            return Ok(a);
        }
        self.op(
            "Cast",
            &[a],
            Attrs::new().int("to", super::data::dtype_to_onnx(dtype).into()),
        )
    }

    /// `a` with the shape `shape` (same number of elements).
    pub fn reshape(&mut self, a: ValueId, shape: &[usize]) -> Result<ValueId> {
        if self.shape(a) == shape {
            return Ok(a);
        }
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let dims = self.ints(&dims);
        // A dimension of 0 would mean "copy from the input" without allowzero.
        let attrs = if shape.contains(&0) {
            Attrs::new().int("allowzero", 1)
        } else {
            Attrs::new()
        };
        self.op("Reshape", &[a, dims], attrs)
    }

    /// `a` with its dimensions in the order `perm`.
    pub fn transpose(&mut self, a: ValueId, perm: &[usize]) -> Result<ValueId> {
        if perm.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(a);
        }
        let perm: Vec<i64> = perm.iter().map(|p| *p as i64).collect();
        self.op("Transpose", &[a], Attrs::new().ints("perm", &perm))
    }

    /// `a` with its last two dimensions exchanged.
    pub fn transpose_last(&mut self, a: ValueId) -> Result<ValueId> {
        let rank = self.rank(a);
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(a, &perm)
    }

    /// `a` broadcast to `shape`.
    pub fn expand(&mut self, a: ValueId, shape: &[usize]) -> Result<ValueId> {
        if self.shape(a) == shape {
            return Ok(a);
        }
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let dims = self.ints(&dims);
        self.op("Expand", &[a, dims], Attrs::new())
    }

    /// Zeros of the given type.
    pub fn zeros(&mut self, ty: &TensorType) -> Result<ValueId> {
        let zero = self.scalar(ty.dtype, 0.0);
        self.expand(zero, &ty.shape)
    }

    /// Matrix product over the last two dimensions.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op("MatMul", &[a, b], Attrs::new())
    }

    /// A reduction (`ReduceSum`, `ReduceMean`, `ReduceMax`, …) over `axes`; where the opset wants the axes differs.
    pub fn reduce(&mut self, op: &str, a: ValueId, axes: &[usize], keepdims: bool) -> Result<ValueId> {
        if axes.is_empty() || (keepdims && axes.iter().all(|x| self.shape(a)[*x] == 1)) {
            return Ok(a);
        }
        let axes: Vec<i64> = axes.iter().map(|x| *x as i64).collect();
        let attrs = Attrs::new().int("keepdims", keepdims.into());
        if op == "ReduceSum" || self.opset >= 18 {
            let axes = self.ints(&axes);
            self.op(op, &[a, axes], attrs)
        } else {
            self.op(op, &[a], attrs.ints("axes", &axes))
        }
    }

    /// Sum over `axes`, keeping them as dimensions of 1.
    pub fn sum_keep(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.reduce("ReduceSum", a, axes, true)
    }

    /// Mean over `axes`, keeping them as dimensions of 1.
    pub fn mean_keep(&mut self, a: ValueId, axes: &[usize]) -> Result<ValueId> {
        self.reduce("ReduceMean", a, axes, true)
    }

    /// Sums `a` down to `shape`: the transpose of broadcasting.
    pub fn sum_to(&mut self, a: ValueId, shape: &[usize]) -> Result<ValueId> {
        if self.shape(a) == shape {
            return Ok(a);
        }
        let lead = self.rank(a) - shape.len();
        let axes: Vec<usize> = (0..self.rank(a))
            .filter(|i| *i < lead || (shape[*i - lead] == 1 && self.shape(a)[*i] != 1))
            .collect();
        let summed = self.sum_keep(a, &axes)?;
        self.reshape(summed, shape)
    }

    /// `a[.., start..end, ..]` along `axis`.
    pub fn slice(&mut self, a: ValueId, axis: usize, start: usize, end: usize) -> Result<ValueId> {
        if start == 0 && end == self.shape(a)[axis] {
            return Ok(a);
        }
        let (start, end, axis) = (
            self.ints(&[start as i64]),
            self.ints(&[end as i64]),
            self.ints(&[axis as i64]),
        );
        self.op("Slice", &[a, start, end, axis], Attrs::new())
    }

    /// Values joined along `axis`.
    pub fn concat(&mut self, values: &[ValueId], axis: usize) -> Result<ValueId> {
        match values {
            [one] => Ok(*one),
            _ => self.op("Concat", values, Attrs::new().int("axis", axis as i64)),
        }
    }

    /// `a` padded with zeros: `before[i]` and `after[i]` elements along dimension `i`; negative numbers crop.
    pub fn pad_zeros(&mut self, a: ValueId, before: &[i64], after: &[i64]) -> Result<ValueId> {
        if before.iter().chain(after).all(|p| *p == 0) {
            return Ok(a);
        }
        if before.iter().chain(after).all(|p| *p <= 0) {
            return self.crop(a, before, after);
        }
        let pads: Vec<i64> = before.iter().chain(after).copied().collect();
        let pads = self.ints(&pads);
        let zero = self.scalar_like(a, 0.0);
        self.op("Pad", &[a, pads, zero], Attrs::new().str("mode", "constant"))
    }

    /// `a` without `-before[i]` and `-after[i]` elements at the ends of dimension `i`.
    fn crop(&mut self, a: ValueId, before: &[i64], after: &[i64]) -> Result<ValueId> {
        let cut: Vec<usize> = (0..before.len())
            .filter(|i| before[*i] != 0 || after[*i] != 0)
            .collect();
        let starts: Vec<i64> = cut.iter().map(|i| -before[*i]).collect();
        let ends: Vec<i64> = cut.iter().map(|i| self.shape(a)[*i] as i64 + after[*i]).collect();
        let axes: Vec<i64> = cut.iter().map(|i| *i as i64).collect();
        let (starts, ends, axes) = (self.ints(&starts), self.ints(&ends), self.ints(&axes));
        self.op("Slice", &[a, starts, ends, axes], Attrs::new())
    }

    /// `condition ? a : b`, broadcast.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.op("Where", &[condition, a, b], Attrs::new())
    }

    /// Removes nodes and constants that no output needs; the inputs stay.
    pub fn prune(&mut self) {
        let mut needed = vec![false; self.values.len()];
        for v in &self.outputs {
            needed[v.0 as usize] = true;
        }
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            keep[i] = node.outputs.iter().flatten().any(|v| needed[v.0 as usize]);
            if keep[i] {
                for v in node.inputs.iter().flatten() {
                    needed[v.0 as usize] = true;
                }
            }
        }
        let mut flags = keep.iter();
        self.nodes.retain(|_| *flags.next().expect("one flag per node"));
        self.constants.retain(|v, _| needed[v.0 as usize]);
        self.parameters.retain(|v| needed[v.0 as usize]);
        self.known.clear();
        self.literals.retain(|_, v| needed[v.0 as usize]);
    }

    /// Lets the builder make nodes anew though equal ones are there.
    pub fn forget_equal_nodes(&mut self) {
        self.known.clear();
    }

    /// Lets the builder find the nodes that are already there, so that derived nodes reuse them.
    pub fn index_nodes(&mut self) {
        for node in &self.nodes {
            if node.domain.is_empty() && !node.attrs.0.iter().any(|(_, a)| matches!(a, Attr::Graph(_))) {
                let key = (
                    node.op.clone(),
                    String::new(),
                    node.inputs.clone(),
                    format!("{:?}/{}", node.attrs, node.outputs.len()),
                );
                if node.outputs.iter().all(Option::is_some) {
                    self.known.entry(key).or_insert_with(|| node.outputs.clone());
                }
            }
        }
    }
}
