//! A set of trainable tensors in one flat buffer: policy, reference, initial policy and optimizer moments
//! all have this form and share one [`Layout`], so that a step over all of them is one pass over memory.
//!
//! On disk a set is a safetensors file of 32-bit floats.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ndarray::{ArrayViewD, IxDyn};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::{Error, Result, fsutil};

// Buffers are written as they lie in memory, and safetensors is little-endian.
#[cfg(target_endian = "big")]
compile_error!("ortdpo supports little-endian machines only");

/// Names, shapes and places of the tensors in a flat buffer, ordered by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    ranges: Vec<Range<usize>>,
}

impl Layout {
    /// A layout of these tensors, in the byte order of their names whatever order they come in.
    /// Two tensors of one name are an error.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<Arc<Self>> {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort();
        if let Some(twice) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::bad(
                &twice[0].0,
                "names two trainable tensors",
                "Rename one of them in the model.",
            ));
        }
        let (names, shapes): (Vec<_>, Vec<Vec<usize>>) = tensors.into_iter().unzip();
        let mut end = 0;
        let ranges = shapes
            .iter()
            .map(|shape| {
                let start = end;
                end += shape.iter().product::<usize>();
                start..end
            })
            .collect();
        Ok(Arc::new(Self {
            names,
            shapes,
            ranges,
        }))
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.names.len()
    }

    /// Number of values over all tensors.
    pub fn len(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Shape of the tensor at `index`.
    pub fn shape(&self, index: usize) -> &[usize] {
        &self.shapes[index]
    }

    /// Place of the tensor at `index` in the flat buffer.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Index of the tensor with this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.names
            .binary_search_by(|candidate| candidate.as_str().cmp(name))
            .ok()
    }

    /// What first differs from `other`, for messages; `None` when the layouts are equal.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let missing = self.names.iter().find(|name| other.index_of(name).is_none());
        if let Some(name) = missing {
            return Some(format!("tensor {name:?} is missing"));
        }
        if let Some(name) = other.names.iter().find(|name| self.index_of(name).is_none()) {
            return Some(format!("tensor {name:?} is not expected"));
        }
        let index = (0..self.tensors()).find(|&index| self.shapes[index] != other.shapes[index])?;
        Some(format!(
            "tensor {:?} has shape {:?} instead of {:?}",
            self.names[index], other.shapes[index], self.shapes[index]
        ))
    }

    /// The buffer cut into one piece per tensor.
    pub(crate) fn split_mut<'a>(&self, mut values: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        let mut pieces = Vec::with_capacity(self.tensors());
        for range in &self.ranges {
            let (piece, rest) = values.split_at_mut(range.len());
            pieces.push(piece);
            values = rest;
        }
        pieces
    }

    fn safetensors_header(&self) -> Result<Vec<u8>> {
        let info = |index: usize| TensorInfo {
            dtype: Dtype::F32,
            shape: self.shapes[index].clone(),
            data_offsets: (4 * self.ranges[index].start, 4 * self.ranges[index].end),
        };
        let tensors = self
            .names
            .iter()
            .cloned()
            .zip((0..self.tensors()).map(info))
            .collect();
        let refused = |what: String| Error::bad("safetensors", what, "Rename the tensors of the model.");
        let metadata = Metadata::new(None, tensors).map_err(|e| refused(e.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| refused(e.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(header)
    }
}

/// Values of every tensor of a [`Layout`], one after another.
///
/// Clones share their values until one of them changes: a reference that does not move takes no memory of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSet {
    layout: Arc<Layout>,
    values: Arc<Vec<f32>>,
}

impl ParamSet {
    /// All zeros.
    pub fn zeros(layout: &Arc<Layout>) -> Self {
        Self {
            layout: Arc::clone(layout),
            values: Arc::new(vec![0.0; layout.len()]),
        }
    }

    /// The layout shared with other sets.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All values, tensor after tensor.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, tensor after tensor.
    pub fn values_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.values).as_mut_slice()
    }

    /// Values of the tensor at `index`, row-major.
    pub fn tensor(&self, index: usize) -> &[f32] {
        &self.values[self.layout.range(index)]
    }

    /// Values of the tensor at `index`, row-major.
    pub fn tensor_mut(&mut self, index: usize) -> &mut [f32] {
        let range = self.layout.range(index);
        &mut self.values_mut()[range]
    }

    /// The tensor with this name, in its shape.
    pub fn view(&self, name: &str) -> Option<ArrayViewD<'_, f32>> {
        let index = self.layout.index_of(name)?;
        let shape = IxDyn(self.layout.shape(index));
        Some(ArrayViewD::from_shape(shape, self.tensor(index)).expect("ranges are as long as shapes say"))
    }

    /// Names and values of all tensors in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.layout
            .names
            .iter()
            .enumerate()
            .map(|(index, name)| (name.as_str(), self.tensor(index)))
    }

    /// Name of the first tensor that holds a value which is not finite.
    pub fn non_finite(&self) -> Option<&str> {
        let broken = |(_, values): &(&str, &[f32])| !values.iter().all(|value| value.is_finite());
        self.iter().find(broken).map(|(name, _)| name)
    }

    /// Takes over the values of a set with the same layout, and shares them from now on.
    pub fn copy_from(&mut self, other: &Self) {
        self.assert_same_layout(other);
        self.values = Arc::clone(&other.values);
    }

    /// Gives up its own memory where the values of `other` are the same.
    pub fn share_equal(&mut self, other: &Self) {
        if self == other {
            self.copy_from(other);
        }
    }

    /// Whether both are one piece of memory.
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.values, &other.values)
    }

    /// Writes a safetensors file, whole or not at all. The same set always gives the same bytes.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = self.layout.safetensors_header()?;
        fsutil::write_atomically_with(path, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            out.write_all(bytemuck::cast_slice(self.values()))
        })
    }

    /// Reads what [`ParamSet::save`] wrote. Tensors that are not those of `layout` are an error.
    pub fn load(path: &Path, layout: &Arc<Layout>) -> Result<Self> {
        Self::read(path, Some(layout))
    }

    /// Reads what [`ParamSet::save`] wrote, whatever its tensors are.
    ///
    /// # Errors
    /// The file cannot be read, or is not one of 32-bit floats.
    pub fn load_any(path: &Path) -> Result<Self> {
        Self::read(path, None)
    }

    fn read(path: &Path, wanted: Option<&Arc<Layout>>) -> Result<Self> {
        let broken = |what: String| {
            Error::bad(
                path.display().to_string(),
                what,
                "Use another checkpoint; this one was not written whole.",
            )
        };
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let (metadata, data_len) = read_header(&mut file, path)?;
        let offsets: HashMap<_, _> = metadata.tensors();
        let stored = Layout::new(
            offsets
                .iter()
                .map(|(name, info)| (name.clone(), info.shape.clone())),
        )?;
        if let Some(difference) = wanted.and_then(|layout| layout.difference(&stored)) {
            return Err(Error::bad(
                path.display().to_string(),
                format!("does not fit the model: {difference}"),
                "Use the checkpoint of this model and adapter configuration.",
            ));
        }
        let layout = wanted.unwrap_or(&stored);
        if let Some((name, info)) = offsets.iter().find(|(_, info)| info.dtype != Dtype::F32) {
            return Err(broken(format!(
                "holds {name:?} as {:?} instead of F32",
                info.dtype
            )));
        }
        if data_len != 4 * layout.len() as u64 {
            return Err(broken(format!(
                "holds {data_len} bytes of values instead of {}",
                4 * layout.len()
            )));
        }
        let mut set = Self::zeros(layout);
        // Files are read in the order of their tensors, which need not be that of the names.
        for name in metadata.offset_keys() {
            let index = layout.index_of(&name).expect("the layouts were found equal");
            let bytes = bytemuck::cast_slice_mut(set.tensor_mut(index));
            file.read_exact(bytes).map_err(Error::io(path, "read"))?;
        }
        Ok(set)
    }

    pub(crate) fn assert_same_layout(&self, other: &Self) {
        let same = Arc::ptr_eq(&self.layout, &other.layout) || self.layout == other.layout;
        assert!(same, "sets of one model share one layout");
    }
}

/// The header of a safetensors file and how many bytes of values follow it.
fn read_header(file: &mut File, path: &Path) -> Result<(Metadata, u64)> {
    let broken = || {
        Error::bad(
            path.display().to_string(),
            "is not a safetensors file",
            "Give a file written by this program, PEFT or diffusers.",
        )
    };
    let size = file.metadata().map_err(Error::io(path, "read"))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| broken())?;
    let length = u64::from_le_bytes(length);
    let data_len = size
        .checked_sub(8)
        .and_then(|rest| rest.checked_sub(length))
        .ok_or_else(broken)?;
    let mut header = vec![0; usize::try_from(length).map_err(|_| broken())?];
    file.read_exact(&mut header).map_err(Error::io(path, "read"))?;
    let metadata = serde_json::from_slice(&header).map_err(|_| broken())?;
    Ok((metadata, data_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Arc<Layout> {
        Layout::new([
            ("b".to_owned(), vec![2, 3]),
            ("a".to_owned(), vec![4]),
            ("scalar".to_owned(), vec![]),
        ])
        .unwrap()
    }

    #[test]
    fn clones_share_memory_until_one_changes() {
        let first = counting();
        let mut second = first.clone();
        assert!(second.shares_memory_with(&first));
        second.tensor_mut(0)[1] = 7.0;
        assert!(!second.shares_memory_with(&first));
        assert_eq!(first, counting());
        assert_eq!(second.values()[1], 7.0);
        assert_eq!(second.values()[2..], first.values()[2..]);
        second.share_equal(&first);
        assert!(!second.shares_memory_with(&first));
        second.values_mut()[1] = first.values()[1];
        second.share_equal(&first);
        assert!(second.shares_memory_with(&first));
    }

    fn counting() -> ParamSet {
        let mut set = ParamSet::zeros(&layout());
        for (index, value) in set.values_mut().iter_mut().enumerate() {
            *value = index as f32 * 0.1 - 0.35;
        }
        set
    }

    #[test]
    fn tensors_lie_in_the_order_of_their_names() {
        let set = counting();
        assert_eq!(set.layout().names(), ["a", "b", "scalar"]);
        assert_eq!(set.layout().range(1), 4..10);
        assert_eq!(set.view("b").unwrap()[[1, 2]], set.values()[9]);
        assert_eq!(set.tensor(2), &set.values()[10..]);
        assert!(set.view("c").is_none());
    }

    #[test]
    fn one_name_for_two_tensors_is_refused() {
        let twice = [("a".to_owned(), vec![1]), ("a".to_owned(), vec![2])];
        assert!(
            Layout::new(twice)
                .unwrap_err()
                .to_string()
                .starts_with("a: names two")
        );
    }

    #[test]
    fn a_file_gives_back_every_bit_and_is_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        let mut set = counting();
        set.values_mut()[..3].copy_from_slice(&[-0.0, f32::MIN_POSITIVE / 8.0, f32::MAX]);
        set.save(&path).unwrap();
        let loaded = ParamSet::load(&path, set.layout()).unwrap();
        let bits = |set: &ParamSet| set.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&loaded), bits(&set));

        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let b = file.tensor("b").unwrap();
        assert_eq!((b.shape(), b.dtype()), (&[2, 3][..], Dtype::F32));
        assert_eq!(b.data(), bytemuck::cast_slice::<f32, u8>(set.tensor(1)));
    }

    #[test]
    fn files_of_other_writers_are_read_in_their_own_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        let values = counting();
        // The header puts "scalar" first.
        let header = r#"{"scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[4],"data_offsets":[4,20]},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[20,44]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(bytemuck::cast_slice(values.tensor(2)));
        bytes.extend_from_slice(bytemuck::cast_slice(&values.values()[..10]));
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(ParamSet::load(&path, values.layout()).unwrap(), values);
    }

    #[test]
    fn files_that_do_not_fit_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        let set = counting();
        set.save(&path).unwrap();

        let other = Layout::new([
            ("a".to_owned(), vec![4]),
            ("b".to_owned(), vec![3, 2]),
            ("scalar".to_owned(), vec![]),
        ]);
        let error = ParamSet::load(&path, &other.unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("\"b\" has shape [2, 3] instead of [3, 2]"),
            "{error}"
        );
        let other = Layout::new([("a".to_owned(), vec![4]), ("c".to_owned(), vec![2])]).unwrap();
        let error = ParamSet::load(&path, &other).unwrap_err().to_string();
        assert!(error.contains("\"c\" is missing"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        let error = ParamSet::load(&path, set.layout()).unwrap_err().to_string();
        assert!(error.contains("40 bytes of values instead of 44"), "{error}");
        std::fs::write(&path, b"PK\x03\x04").unwrap();
        let error = ParamSet::load(&path, set.layout()).unwrap_err().to_string();
        assert!(error.contains("is not a safetensors file"), "{error}");
    }
}
