//! The low-rank factors of one layer, ready for its graph, and their product added to its weight.

use std::path::Path;

use crate::adapter::{ModuleFactors, ReadTensor};
use crate::onnx::Constant;
use crate::traingraph::{Layer, LayerKind};
use crate::{Error, Result};

/// Factors A (r, in, kernel…) and B (out, r, 1…), of which B holds the scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    rank: usize,
    outputs: usize,
    /// Shape of a row of A: input features, and the kernel of a convolution.
    row: Vec<usize>,
    /// (r, row).
    a: Vec<f32>,
    /// (out, r).
    b: Vec<f32>,
}

impl Factors {
    /// The factors of `module`, whose product counts `scale` times what its file says, for `layer`.
    ///
    /// # Errors
    /// Their shapes are not those of the layer.
    pub fn new(module: &ModuleFactors, layer: &Layer, scale: f64, path: &Path) -> Result<Self> {
        let Some((row, outputs)) = sizes(layer) else {
            let what = format!("adapts `{}`, a convolution in groups", layer.module);
            let remedy = "LoRA is not defined for those; give another adapter.";
            return Err(Error::bad(path.display().to_string(), what, remedy));
        };
        let rank = module.rank();
        if !fits(module, &row, outputs) {
            let what = format!(
                "has factors of shapes {:?} and {:?} for `{}`, which maps {row:?} to {outputs}",
                module.down.shape, module.up.shape, layer.module
            );
            let remedy = "Give an adapter that was trained on this kind of model.";
            return Err(Error::bad(path.display().to_string(), what, remedy));
        }
        let scale = module.scale() * scale;
        Ok(Self {
            rank,
            outputs,
            row,
            a: module.down.values.clone(),
            b: module
                .up
                .values
                .iter()
                .map(|v| (f64::from(*v) * scale) as f32)
                .collect(),
        })
    }

    /// Takes in the factors of another adapter of the same layer.
    pub fn join(&mut self, other: &Self) {
        let rows = self
            .b
            .chunks_exact(self.rank)
            .zip(other.b.chunks_exact(other.rank));
        self.b = rows.flat_map(|(own, more)| [own, more].concat()).collect();
        self.a.extend_from_slice(&other.a);
        self.rank += other.rank;
    }

    /// Shape and values of A.
    pub fn down(&self) -> (Vec<usize>, Vec<f32>) {
        ([&[self.rank], self.row.as_slice()].concat(), self.a.clone())
    }

    /// Shape and values of B.
    pub fn up(&self) -> (Vec<usize>, Vec<f32>) {
        let ones = vec![1; self.row.len() - 1];
        let shape = [&[self.outputs, self.rank], ones.as_slice()].concat();
        (shape, self.b.clone())
    }

    /// `weight` of `layer` plus B·A, in the weight's own type.
    ///
    /// # Errors
    /// The weight cannot be read or is no float.
    pub fn added_to(&self, weight: &Constant, layer: &Layer) -> Result<Constant> {
        let mut values = weight.read_floats(&layer.module)?;
        let columns = self.row.iter().product::<usize>();
        let transposed = matches!(layer.kind, LayerKind::Linear { transposed: true, .. });
        let mut delta = vec![0.0_f64; columns];
        for (output, b) in self.b.chunks_exact(self.rank).enumerate() {
            delta.fill(0.0);
            for (b, a) in b.iter().zip(self.a.chunks_exact(columns)) {
                for (delta, a) in delta.iter_mut().zip(a) {
                    *delta += f64::from(*b) * f64::from(*a);
                }
            }
            for (column, delta) in delta.iter().enumerate() {
                let index = match transposed {
                    true => column * self.outputs + output,
                    false => output * columns + column,
                };
                values[index] += delta;
            }
        }
        Ok(Constant::floats(weight.dtype, &weight.shape, &values))
    }
}

/// Shape of a row of A and the rows of B that a layer takes; `None` for convolutions in groups.
pub fn sizes(layer: &Layer) -> Option<(Vec<usize>, usize)> {
    match &layer.kind {
        LayerKind::Linear { inputs, outputs, .. } => Some((vec![*inputs], *outputs)),
        LayerKind::Conv { groups: 2.., .. } => None,
        LayerKind::Conv {
            inputs,
            outputs,
            kernel,
            ..
        } => Some(([&[*inputs], kernel.as_slice()].concat(), *outputs)),
    }
}

/// Whether the factors of `module` are for a layer of these sizes.
pub fn fits(module: &ModuleFactors, row: &[usize], outputs: usize) -> bool {
    let rank = module.rank();
    let alike = |tensor: &ReadTensor, shape: &[usize]| without_ones(&tensor.shape) == without_ones(shape);
    alike(&module.down, &[&[rank], row].concat()) && alike(&module.up, &[outputs, rank])
}

/// A shape without dimensions of 1: files give linear factors as 1×1 convolutions and the other way round.
fn without_ones(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|d| *d != 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{ModuleName, Precision};
    use crate::model_folder::Component;
    use crate::onnx::{Graph, TensorType};
    use crate::tensor::DType;

    fn tensor(shape: &[usize], values: &[f32]) -> ReadTensor {
        ReadTensor {
            shape: shape.to_vec(),
            values: values.to_vec(),
            precision: Precision::Fp32,
        }
    }

    fn linear(transposed: bool) -> (Layer, Constant) {
        let shape = if transposed { [2, 3] } else { [3, 2] };
        let constant = Constant::floats(DType::F32, &shape, &[0.0; 6]);
        let mut graph = Graph::new("one", 17);
        graph.add_input("x", TensorType::new(DType::F32, [1, 2]));
        let weight = graph.add_constant("w", constant.clone());
        let layer = Layer {
            node: 0,
            module: "fc".into(),
            weight,
            kind: LayerKind::Linear {
                inputs: 2,
                outputs: 3,
                transposed,
            },
        };
        (layer, constant)
    }

    /// B·A of two adapters, (out 3, in 2): 2·[1,2,3]ᵀ[10,20] − [1,0,0]ᵀ[1,1].
    #[test]
    fn adapters_of_a_layer_add_up_in_either_layout() {
        let module = |down: ReadTensor, up: ReadTensor, alpha| ModuleFactors {
            component: Component::Unet,
            module: ModuleName::Path("fc".into()),
            down,
            up,
            alpha,
        };
        let first = module(
            tensor(&[1, 2, 1, 1], &[10.0, 20.0]),
            tensor(&[3, 1], &[1.0, 2.0, 3.0]),
            4.0,
        );
        let second = module(
            tensor(&[1, 2], &[1.0, 1.0]),
            tensor(&[3, 1], &[1.0, 0.0, 0.0]),
            1.0,
        );
        for transposed in [false, true] {
            let (layer, weight) = linear(transposed);
            let mut joined = Factors::new(&first, &layer, 0.5, Path::new("a")).unwrap();
            joined.join(&Factors::new(&second, &layer, -1.0, Path::new("b")).unwrap());
            assert_eq!(joined.down(), (vec![2, 2], vec![10.0, 20.0, 1.0, 1.0]));
            assert_eq!(joined.up(), (vec![3, 2], vec![2.0, -1.0, 4.0, 0.0, 6.0, 0.0]));
            let merged = joined.added_to(&weight, &layer).unwrap().to_floats().unwrap();
            let expected = match transposed {
                false => [19.0, 39.0, 40.0, 80.0, 60.0, 120.0],
                true => [19.0, 40.0, 60.0, 39.0, 80.0, 120.0],
            };
            assert_eq!(merged, expected);
        }
    }

    #[test]
    fn factors_of_another_model_are_refused() {
        let (layer, _) = linear(false);
        let module = ModuleFactors {
            component: Component::Unet,
            module: ModuleName::Path("fc".into()),
            down: tensor(&[1, 5], &[0.0; 5]),
            up: tensor(&[3, 1], &[0.0; 3]),
            alpha: 1.0,
        };
        let error = Factors::new(&module, &layer, 1.0, Path::new("a")).unwrap_err();
        assert!(
            error.to_string().contains("[1, 5] and [3, 1] for `fc`"),
            "{error}"
        );
    }
}
