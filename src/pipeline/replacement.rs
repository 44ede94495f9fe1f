//! Whole weights of a denoiser, as full fine-tuning leaves them, in place of those of its graph.

use std::collections::HashMap;
use std::path::Path;

use crate::adapter::ReadTensor;
use crate::adapter::content::listed;
use crate::onnx::{Constant, Graph};
use crate::traingraph::{Trainable, TrainableKind, Trainables};
use crate::{Error, Result};

/// Puts `tensors`, named and laid out as PyTorch does, into `graph`. What the file does not have stays.
///
/// # Errors
/// A tensor is not in the graph, or has another shape there.
pub fn replace_weights(graph: &mut Graph, tensors: &[(String, ReadTensor)], path: &Path) -> Result<()> {
    let known = Trainables::full(graph, &["*".to_owned()])?;
    let by_name: HashMap<&str, &Trainable> = known.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let place = || path.display().to_string();
    let unknown: Vec<&str> = tensors
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| !by_name.contains_key(name))
        .collect();
    if let Some(first) = unknown.first() {
        let nearest = known.tensors.iter().map(|t| t.name.as_str()).max_by(|a, b| {
            let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, first);
            likeness(a).total_cmp(&likeness(b))
        });
        return Err(Error::bad(
            place(),
            format!(
                "holds weights that the denoiser does not have: {}",
                listed(&unknown)
            ),
            match nearest {
                Some(name) => format!("The nearest weight there is: `{name}`."),
                None => "The denoiser has no weight with a known name: export it again.".into(),
            },
        ));
    }
    for (name, tensor) in tensors {
        let TrainableKind::Weight {
            constant,
            transposed,
            torch_shape,
        } = &by_name[name.as_str()].kind
        else {
            continue;
        };
        if tensor.shape != *torch_shape {
            let what = format!(
                "holds `{name}` of shape {:?} instead of {torch_shape:?}",
                tensor.shape
            );
            let remedy = "Give weights that were trained on this kind of model.";
            return Err(Error::bad(place(), what, remedy));
        }
        let old = &graph.constants[constant];
        let values: Vec<f64> = match transposed {
            false => tensor.values.iter().map(|v| f64::from(*v)).collect(),
            true => {
                let (rows, columns) = (torch_shape[0], torch_shape[1]);
                let at = |i: usize| f64::from(tensor.values[(i % rows) * columns + i / rows]);
                (0..rows * columns).map(at).collect()
            }
        };
        graph.constants[constant] = Constant::floats(old.dtype, &old.shape.clone(), &values);
    }
    Ok(())
}
