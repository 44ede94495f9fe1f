//! Order that the data alone do not ask for: a value that is there only after others have been computed.
//!
//! ONNX has no edges for control. A [`Token`] counts the elements of the values it waits for (`Size`, which reads none of
//! them), and [`Graph::after`] reshapes a value to its own shape, written as `shape − count + token`. ONNX Runtime's passes
//! cannot see through the sum, since `Size` is no constant to them, and its `Reshape` moves no data.

use super::attr::Attrs;
use super::data::Constant;
use super::graph::{Graph, ValueId};
use crate::Result;
use crate::tensor::DType;

/// Name of nodes that compute nothing but shapes, from shapes. They belong on the CPU, where `Reshape` reads its shape on every
/// device.
pub const SHAPE_ONLY: &str = "shape";

/// Something that is known only when certain values have been computed.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    /// How many elements they have together, counted while the graph runs.
    counted: ValueId,
    /// The same number.
    count: i64,
}

impl Graph {
    /// A token of `values`, which are not none.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn token(&mut self, values: &[ValueId]) -> Result<Token> {
        let mut token: Option<Token> = None;
        for value in values {
            let count = self.ty(*value).len() as i64;
            let counted = self.op("Size", &[*value], Attrs::new())?;
            token = Some(match token {
                None => Token { counted, count },
                Some(before) => Token {
                    counted: self.add_shapes(before.counted, counted)?,
                    count: before.count + count,
                },
            });
        }
        Ok(token.expect("a token waits for something"))
    }

    /// `value`, but only after everything that `token` waits for. Two tokens make two values.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn after(&mut self, value: ValueId, token: Token) -> Result<ValueId> {
        let shape: Vec<i64> = self.shape(value).iter().map(|d| *d as i64).collect();
        let less: Vec<i64> = shape.iter().map(|d| d - token.count).collect();
        let less = self.ints(&less);
        let dims = self.add_shapes(less, token.counted)?;
        let known = Constant::integers(DType::I64, &[shape.len()], &shape);
        self.folded.insert(dims, known);
        // A dimension of 0 would mean "copy from the input" without allowzero.
        let attrs = match shape.contains(&0) {
            true => Attrs::new().int("allowzero", 1),
            false => Attrs::new(),
        };
        self.op("Reshape", &[value, dims], attrs)
    }

    fn add_shapes(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        let sum = self.add(a, b)?;
        let made = self.nodes.iter_mut().rfind(|n| n.output(0) == Some(sum));
        made.expect("a sum is of a node").name = SHAPE_ONLY.to_owned();
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{TensorType, validate};

    #[test]
    fn a_value_keeps_its_type_and_gets_an_order() {
        let mut g = Graph::new("order", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 3]));
        let first = g.unary("Exp", x).unwrap();
        let second = g.unary("Sqrt", x).unwrap();
        let token = g.token(&[first, second]).unwrap();
        let later = g.after(x, token).unwrap();
        assert_eq!(g.ty(later), g.ty(x));
        let y = g.unary("Exp", later).unwrap();
        assert_ne!(y, first, "a pass that merges equal nodes must not undo the order");
        let y = g.as_output(y, "y").unwrap();
        g.outputs.push(y);
        g.prune();
        validate(&g).unwrap();
        let made = |v| g.producers()[g.index(v)].unwrap();
        assert!(made(later) > made(first) && made(later) > made(second));
    }

    #[test]
    fn numbers_without_dimensions_have_an_order_too() {
        let mut g = Graph::new("order", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, []));
        let token = g.token(&[x]).unwrap();
        let later = g.after(x, token).unwrap();
        assert_eq!(g.rank(later), 0);
    }
}
