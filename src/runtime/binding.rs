//! Inputs that stay and outputs that are written in place: for steps that run thousands of times.

use std::collections::HashMap;

use indexmap::IndexMap;
use ndarray::ArrayViewMutD;
use ort::memory::Allocator;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, SessionInputs};
use ort::value::{DynTensor, DynValue};

use super::device::{DeviceBuffer, DeviceTensor};
use super::failure::failure;
use super::session::{IoInfo, Session, no_output};
use super::value::{TensorView, element_type, into_value, view};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Buffers for repeated runs of one session.
///
/// Outputs of fixed shape are allocated once and overwritten by every run; others are allocated by the run.
/// Inputs may be kept here and changed in place, or handed to each run as views of buffers that live elsewhere
/// (weights under an optimizer); neither is copied.
pub struct Binding {
    kept: IndexMap<String, DynValue>,
    options: RunOptions<HasSelectedOutputs>,
    outputs: IndexMap<String, DynValue>,
    // Dropped after `options` and `outputs`, which point into these.
    _buffers: Vec<DeviceBuffer>,
    place: String,
}

/// What an output is written to, and the device memory that is in, if it is.
type Place = (DynValue, Option<DeviceBuffer>);

impl Binding {
    /// Allocates the outputs of fixed shape.
    ///
    /// # Errors
    /// [`Error::Runtime`] when memory is short.
    pub fn new(session: &Session) -> Result<Self> {
        Self::with(session, |output| allocated(session, output))
    }

    /// As [`Binding::new`], but outputs for which `place` gives a tensor are written there.
    ///
    /// # Errors
    /// As [`Binding::new`], and of `place`.
    pub fn onto(
        session: &Session,
        mut place: impl FnMut(&str) -> Result<Option<DeviceTensor>>,
    ) -> Result<Self> {
        Self::with(session, |output| match place(&output.name)? {
            Some(tensor) => Ok(Some((tensor.value, Some(tensor.buffer)))),
            None => allocated(session, output),
        })
    }

    /// All outputs are allocated by the run, and can be given back with [`Binding::forget`]: for sessions that take turns.
    ///
    /// # Errors
    /// As [`Binding::new`].
    pub fn of_turns(session: &Session) -> Result<Self> {
        Self::with(session, |_| Ok(None))
    }

    /// `place` gives what an output is written to; nothing where the run is to allocate it.
    fn with(session: &Session, mut place: impl FnMut(&IoInfo) -> Result<Option<Place>>) -> Result<Self> {
        let failed = |e| failure(&session.name, e);
        let mut selector = OutputSelector::default();
        let mut buffers = Vec::new();
        for output in session.outputs() {
            if let Some((value, buffer)) = place(output)? {
                selector = selector.preallocate(&output.name, value);
                buffers.extend(buffer);
            }
        }
        let options = RunOptions::new().map_err(failed)?.with_outputs(selector);
        Ok(Self {
            kept: IndexMap::new(),
            options,
            outputs: IndexMap::new(),
            _buffers: buffers,
            place: session.name.clone(),
        })
    }

    /// Gives memory that ONNX Runtime would keep for the next run back to the system after every run, which then has to ask
    /// for it again.
    ///
    /// # Errors
    /// [`Error::Runtime`] where ONNX Runtime does not take the setting.
    pub fn release_after_runs(&mut self) -> Result<()> {
        self.options
            .set("memory.enable_memory_arena_shrinkage", "cpu:0")
            .map_err(|e| failure(&self.place, e))
    }

    /// Keeps `tensor` as the input `name` of every run from now on, without copying it.
    ///
    /// # Errors
    /// [`Error::Runtime`] when ONNX Runtime does not take it. Whether name, type and shape fit is checked by
    /// [`Binding::run`].
    pub fn keep(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let value = into_value(tensor).map_err(|e| failure(&self.place, e))?;
        self.kept.insert(name.to_owned(), value);
        Ok(())
    }

    /// A kept input of 32-bit floats, to be changed in place.
    ///
    /// # Errors
    /// [`Error::BadInput`] when no such input is kept, or it holds another type.
    pub fn kept_mut(&mut self, name: &str) -> Result<ArrayViewMutD<'_, f32>> {
        let place = format!("{}: input `{name}`", self.place);
        let value = self.kept.get_mut(name).ok_or_else(|| {
            Error::bad(
                &place,
                "is not kept between runs",
                "Hand it over with `Binding::keep` first.",
            )
        })?;
        value
            .try_extract_array_mut::<f32>()
            .map_err(|e| failure(&place, e))
    }

    /// Runs `session` (the one this was made for) on the kept inputs and on `given`, which come first where
    /// both have a name.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&mut self, session: &mut Session, given: &[(&str, TensorView<'_>)]) -> Result<()> {
        self.run_beside(session, given, &[])
    }

    /// As [`Binding::run`], with inputs that are on the device already.
    ///
    /// # Errors
    /// As [`Binding::run`].
    pub fn run_beside(
        &mut self,
        session: &mut Session,
        given: &[(&str, TensorView<'_>)],
        on_device: &[(&str, &DeviceTensor)],
    ) -> Result<()> {
        // Frees what the last run allocated before this one allocates it again.
        self.outputs.clear();
        self.check_kept(session)?;
        for (name, tensor) in on_device {
            session.check_input(name, tensor.dtype, &tensor.shape)?;
        }
        let kept = &self.kept;
        let on_device: HashMap<&str, &DynValue> =
            on_device.iter().map(|(name, t)| (*name, &t.value)).collect();
        let find = |name: &str| on_device.get(name).copied().or_else(|| kept.get(name));
        let values = session.input_values(given, find)?;
        let place = &session.name;
        let outputs = session
            .inner
            .run_with_options(SessionInputs::from(values), &self.options)
            .map_err(|e| failure(place, e))?;
        self.outputs = outputs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Ok(())
    }

    /// Frees the outputs of the last run that are not allocated once and for all.
    pub fn forget(&mut self) {
        self.outputs.clear();
    }

    fn check_kept(&self, session: &Session) -> Result<()> {
        for (name, value) in &self.kept {
            let place = format!("{}: kept input `{name}`", self.place);
            let view = view(&place, value)?;
            session.check_input(name, view.dtype(), view.shape())?;
        }
        Ok(())
    }

    /// Reads an output of the last run in place.
    ///
    /// # Errors
    /// [`Error::BadInput`] when there is no such output.
    pub fn output(&self, name: &str) -> Result<TensorView<'_>> {
        let names = self.outputs.keys().map(String::as_str);
        let value = self
            .outputs
            .get(name)
            .ok_or_else(|| no_output(&self.place, name, names))?;
        view(&format!("{}: output `{name}`", self.place), value)
    }

    /// An output of the last run that is a single float, such as a loss.
    ///
    /// # Errors
    /// As [`Binding::output`]; also when it has more than one element.
    pub fn scalar(&self, name: &str) -> Result<f32> {
        let array = self.output(name)?.to_tensor().into_f32(name)?;
        match array.len() {
            1 => Ok(array.sum()),
            n => Err(Error::bad(
                format!("{}: output `{name}`", self.place),
                format!("has {n} elements where one is wanted"),
                "Check that the model is the one meant.",
            )),
        }
    }
}

/// A buffer for an output of fixed shape.
fn allocated(session: &Session, output: &IoInfo) -> Result<Option<Place>> {
    let Some(shape) = output.static_shape() else {
        return Ok(None);
    };
    let shape: Vec<i64> = shape.into_iter().map(|d| d as i64).collect();
    let buffer = DynTensor::new(&Allocator::default(), element_type(output.dtype), shape);
    Ok(Some((
        buffer.map_err(|e| failure(&session.name, e))?.into_dyn(),
        None,
    )))
}
