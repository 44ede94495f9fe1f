//! One ONNX file of a reward model, checked against what the manifest says about it.

use std::path::Path;

use ndarray::{Array2, ArrayD, ArrayView4, ArrayViewD, Axis, Ix2, Slice, concatenate};

use super::manifest::ImageTower;
use crate::runtime::{IoInfo, Session, SessionOptions, TensorView};
use crate::tensor::{DType, Tensor};
use crate::{Error, Result};

/// Samples of one run where the export leaves that open.
const BATCH: usize = 16;

/// A session with the names it is used by.
pub struct Network {
    session: Session,
    place: String,
}

/// Values of an input for all samples, batch first, before they take its element type.
#[derive(Clone)]
pub enum Values<'a> {
    /// Pictures and the like.
    Floats(ArrayViewD<'a, f32>),
    /// Token ids and masks.
    Integers(ArrayViewD<'a, i64>),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len_of(Axis(0)),
            Self::Integers(values) => values.len_of(Axis(0)),
        }
    }

    /// The rows `start..start + rows` as the input takes them, the last one repeated where there are fewer.
    fn rows(&self, place: &str, start: usize, rows: usize, dtype: DType) -> Result<Input<'_>> {
        let last = self.len().min(start + rows);
        match (self, dtype) {
            // Nothing to convert and nothing to repeat: read in place.
            (Self::Floats(values), DType::F32) if last == start + rows => {
                let part = values.slice_axis(Axis(0), Slice::from(start..last));
                Ok(Input::InPlace(part))
            }
            _ => {
                let indices: Vec<usize> = (start..start + rows).map(|i| i.min(last - 1)).collect();
                let tensor = match self {
                    Self::Floats(values) => {
                        Tensor::from_floats(place, values.select(Axis(0), &indices), dtype)
                    }
                    Self::Integers(values) => {
                        Tensor::from_integers(place, values.select(Axis(0), &indices), dtype)
                    }
                };
                tensor.map(Input::Own)
            }
        }
    }
}

/// An input of one run.
enum Input<'a> {
    InPlace(ArrayViewD<'a, f32>),
    Own(Tensor),
}

impl Input<'_> {
    fn view(&self) -> TensorView<'_> {
        match self {
            Self::InPlace(values) => values.view().into(),
            Self::Own(tensor) => tensor.into(),
        }
    }
}

impl Network {
    /// Loads a model file.
    ///
    /// # Errors
    /// As [`Session::from_file`].
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Self> {
        Ok(Self {
            session: Session::from_file(path, options)?,
            place: path.display().to_string(),
        })
    }

    /// Checks that the network's inputs are exactly those that the manifest feeds, and that `outputs` exist.
    ///
    /// # Errors
    /// Names the first that does not fit and lists what the network has.
    pub fn check(&self, inputs: &[&str], outputs: &[&str]) -> Result<()> {
        for name in inputs {
            self.input(name)?;
        }
        for name in outputs {
            if !self.session.outputs().iter().any(|output| output.name == *name) {
                return Err(self.lacks("output", name, self.session.outputs()));
            }
        }
        let fed = |input: &&IoInfo| !inputs.contains(&input.name.as_str());
        match self.session.inputs().iter().find(fed) {
            None => Ok(()),
            Some(input) => Err(self.unfit(
                format!("takes an input `{input}` that the manifest does not name"),
                "Export it without that input, or name it in the manifest.",
            )),
        }
    }

    /// Checks that an input takes pictures of this shape (C,H,W).
    ///
    /// # Errors
    /// Names both shapes.
    pub fn check_pictures(&self, name: &str, shape: [usize; 3]) -> Result<()> {
        let input = self.input(name)?;
        let fits = input.dims.len() == 4
            && input.dims[1..]
                .iter()
                .zip(shape)
                .all(|(dim, size)| dim.is_none_or(|dim| dim == size));
        match fits && matches!(input.dtype, DType::F32 | DType::F16) {
            true => Ok(()),
            false => Err(self.unfit(
                format!(
                    "takes {input}, but the manifest's preprocessing gives f32[N,{},{},{}]",
                    shape[0], shape[1], shape[2]
                ),
                "Mend the sizes in scorer.image.preprocessing, or the name of the input.",
            )),
        }
    }

    /// Checks that an input takes `length` tokens per prompt.
    ///
    /// # Errors
    /// Names both lengths.
    pub fn check_tokens(&self, name: &str, length: usize) -> Result<()> {
        let input = self.input(name)?;
        let fits = input.dims.len() == 2 && input.dims[1].is_none_or(|dim| dim == length);
        match fits && matches!(input.dtype, DType::I64 | DType::I32) {
            true => Ok(()),
            false => Err(self.unfit(
                format!("takes {input}, but the manifest gives {length} token ids per prompt"),
                "Mend `length` in the manifest, or the name of the input.",
            )),
        }
    }

    /// Values per sample of an output; unknown where the export leaves them open.
    pub fn width(&self, output: &str) -> Option<usize> {
        let output = self.session.outputs().iter().find(|info| info.name == output)?;
        match output.dims[..] {
            [_] => Some(1),
            [_, width] => width,
            _ => None,
        }
    }

    /// Runs on all samples of `inputs`, batch by batch, and returns the named outputs, each (N,D) or (N,1).
    /// Inputs in `idle` belong to the other half of a model that holds two towers: they are given zeros.
    ///
    /// # Errors
    /// ONNX Runtime fails, or an output is not one row per sample.
    pub fn run(
        &mut self,
        inputs: &[(&str, Values<'_>)],
        idle: &[&str],
        outputs: &[&str],
    ) -> Result<Vec<Array2<f32>>> {
        let found = self.run_layers(inputs, idle, outputs)?;
        let rows = outputs.iter().zip(found);
        rows.map(|(name, array)| self.rows(name, array)).collect()
    }

    /// What the tower that this network is, or holds, says of pictures (N,C,H,W): a row each.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn features(&mut self, tower: &ImageTower, pixels: ArrayView4<'_, f32>) -> Result<Array2<f32>> {
        let input = (tower.input.as_str(), Values::Floats(pixels.into_dyn()));
        let mut outputs = self.run(&[input], &tower.unused(), &[&tower.output])?;
        Ok(outputs.remove(0))
    }

    /// As [`Network::run`], but the outputs may have any shape whose first dimension is that of the samples.
    ///
    /// # Errors
    /// ONNX Runtime fails, or an output does not have the samples in its first dimension.
    pub fn run_layers(
        &mut self,
        inputs: &[(&str, Values<'_>)],
        idle: &[&str],
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>> {
        let (first, samples) = (inputs[0].0, inputs[0].1.len());
        let fixed = self.input(first)?.dims.first().copied().flatten();
        let batch = fixed.unwrap_or(BATCH).max(1);
        let mut parts: Vec<Vec<ArrayD<f32>>> = outputs.iter().map(|_| Vec::new()).collect();
        for start in (0..samples).step_by(batch) {
            let wanted = batch.min(samples - start);
            // An export with a fixed batch is filled up with the last sample.
            let rows = fixed.map_or(wanted, |_| batch);
            let found = self.run_batch(start, rows, inputs, idle, outputs)?;
            for (parts, found) in parts.iter_mut().zip(found) {
                parts.push(found.slice_axis(Axis(0), Slice::from(..wanted)).to_owned());
            }
        }
        let joined = parts.iter().map(|parts| {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(Axis(0), &views).map_err(|e| {
                self.unfit(
                    format!("gave outputs of changing shapes: {e}"),
                    "Export it again.",
                )
            })
        });
        joined.collect()
    }

    fn run_batch(
        &mut self,
        start: usize,
        rows: usize,
        inputs: &[(&str, Values<'_>)],
        idle: &[&str],
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>> {
        let batch_name = self.input(inputs[0].0)?.symbols.first().cloned().flatten();
        let mut tensors = Vec::new();
        for (name, values) in inputs {
            let dtype = self.input(name)?.dtype;
            tensors.push((*name, values.rows(&self.place, start, rows, dtype)?));
        }
        for name in idle {
            tensors.push((name, Input::Own(self.zeros(name, batch_name.as_deref(), rows)?)));
        }
        let views: Vec<(&str, TensorView)> = tensors
            .iter()
            .map(|(name, tensor)| (*name, tensor.view()))
            .collect();
        let mut found = self.session.run(&views)?;
        let samples = |name: &&str| self.samples(name, found.take(name)?, rows);
        outputs.iter().map(samples).collect()
    }

    /// Zeros for an input that does not matter: one row, or as many as the batch where the export ties them together.
    fn zeros(&self, name: &str, batch_name: Option<&str>, batch: usize) -> Result<Tensor> {
        let input = self.input(name)?;
        let size = |(dim, symbol): (&Option<usize>, &Option<String>)| match (dim, symbol.as_deref()) {
            (Some(size), _) => *size,
            (None, Some(symbol)) if Some(symbol) == batch_name => batch,
            (None, _) => 1,
        };
        let shape: Vec<usize> = input.dims.iter().zip(&input.symbols).map(size).collect();
        match input.dtype {
            DType::I32 | DType::I64 => Tensor::from_integers(&self.place, ArrayD::zeros(shape), input.dtype),
            dtype => Tensor::from_floats(&self.place, ArrayD::zeros(shape), dtype),
        }
    }

    fn samples(&self, name: &str, tensor: Tensor, samples: usize) -> Result<ArrayD<f32>> {
        let array = tensor.into_f32(&format!("{}: output `{name}`", self.place))?;
        match array.shape().first() {
            Some(&first) if first == samples => Ok(array),
            _ => Err(self.not_one_row_each(name, array.shape(), samples)),
        }
    }

    fn rows(&self, name: &str, array: ArrayD<f32>) -> Result<Array2<f32>> {
        let shape = array.shape().to_vec();
        let array = if shape.len() == 1 {
            array.insert_axis(Axis(1))
        } else {
            array
        };
        array
            .into_dimensionality::<Ix2>()
            .map_err(|_| self.not_one_row_each(name, &shape, shape[0]))
    }

    fn not_one_row_each(&self, name: &str, shape: &[usize], samples: usize) -> Error {
        self.unfit(
            format!("gives `{name}` of shape {shape:?} for {samples} samples, not one row each"),
            "Name an output of shape [N,D] in the manifest.",
        )
    }

    fn input(&self, name: &str) -> Result<&IoInfo> {
        let found = self.session.inputs().iter().find(|input| input.name == name);
        found.ok_or_else(|| self.lacks("input", name, self.session.inputs()))
    }

    fn lacks(&self, role: &str, name: &str, present: &[IoInfo]) -> Error {
        let present: Vec<String> = present.iter().map(IoInfo::to_string).collect();
        self.unfit(
            format!(
                "has no {role} `{name}`, which the manifest names; it has {}",
                present.join(", ")
            ),
            "Mend the name in the manifest.",
        )
    }

    fn unfit(&self, what: String, remedy: &str) -> Error {
        Error::bad(&self.place, what, remedy)
    }
}
