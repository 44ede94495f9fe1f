//! `.onnx_adapter`: ONNX Runtime's own file of adapter weights, which a run takes beside its inputs
//! (`RunOptions.add_adapter` in every language's API).
//!
//! Its parameters are named like inputs of the model, and stand in for them: see [`crate::pipeline::adaptable`] for the
//! model that has such inputs. A file is of one network. For every module there are
//!
//! | name | linear layer | convolution |
//! |---|---|---|
//! | `COMPONENT.MODULE.lora_A` | (in, r) | (r, in, kh, kw) |
//! | `COMPONENT.MODULE.lora_B` | (r, out) | (out, r, 1, 1) |
//!
//! Matrices are laid out for `x·A·B`, so that nothing has to be transposed in a run. The format knows no scale: alpha / r
//! is in B.

mod flatbuffer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flatbuffer::Parameter;

use super::content::{check_shapes, component_of, listed, not_finite};
use super::factors::{Lora, ModuleFactors};
use super::file::{Precision, ReadTensor, floats};
use super::keys::ModuleName;
use crate::fsutil::write_atomically_with;
use crate::model_folder::Component;
use crate::tensor::transposed;
use crate::{Error, Result};

/// Suffixes of the names of a module's two parameters: A and B.
pub const SIDES: [&str; 2] = [".lora_A", ".lora_B"];

/// Networks whose adapters have a place in a pipeline folder.
const COMPONENTS: [Component; 4] = [
    Component::Unet,
    Component::Transformer,
    Component::TextEncoder,
    Component::TextEncoder2,
];

/// Whether `path` is such a file, by its first bytes.
///
/// # Errors
/// The file cannot be read.
pub fn is_one(path: &Path) -> Result<bool> {
    let file = std::fs::File::open(path).map_err(Error::io(path, "read"))?;
    let mut head = Vec::new();
    let read = file.take(8).read_to_end(&mut head);
    read.map_err(Error::io(path, "read"))?;
    Ok(head.get(4..) == Some(flatbuffer::IDENTIFIER.as_slice()))
}

/// Reads the factors in `path`.
///
/// # Errors
/// It is cut off, or its parameters are not named and shaped as above.
pub fn read(path: &Path) -> Result<Vec<ModuleFactors>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let place = || path.display().to_string();
    let parameters = flatbuffer::read(&bytes).ok_or_else(|| {
        let remedy = "Copy or convert it again.";
        Error::bad(place(), "is cut off, or no adapter of ONNX Runtime", remedy)
    })?;
    let foreign: Vec<&str> = parameters
        .iter()
        .map(|p| p.name.as_ref())
        .filter(|name| parse(name).is_none())
        .collect();
    if !foreign.is_empty() {
        return Err(Error::bad(
            place(),
            format!("holds {}, which are not named as factors are", listed(&foreign)),
            "Give an adapter that `ortdpo adapter convert` wrote: names as `unet.MODULE.lora_A`.",
        ));
    }
    let mut pairs: BTreeMap<(&'static str, String), [Option<ReadTensor>; 2]> = BTreeMap::new();
    for parameter in &parameters {
        let Some((component, module, side)) = parse(&parameter.name) else {
            continue;
        };
        let tensor = tensor(path, parameter)?;
        pairs.entry((component.folder(), module.to_owned())).or_default()[side] = Some(tensor);
    }
    type Found = ((&'static str, String), [Option<ReadTensor>; 2]);
    let complete = |((folder, module), sides): Found| {
        let [Some(down), Some(up)] = sides else {
            let what = format!("has one factor of `{module}` without the other");
            return Err(Error::bad(
                place(),
                what,
                "Convert the adapter again: the file is incomplete.",
            ));
        };
        check_shapes(path, &module, &down.shape, &up.shape)?;
        Ok(ModuleFactors {
            component: component_of(folder),
            module: ModuleName::Path(module),
            alpha: down.shape[0] as f64,
            down,
            up,
        })
    };
    pairs.into_iter().map(complete).collect()
}

/// Component, module, and 0 for A or 1 for B.
fn parse(name: &str) -> Option<(Component, &str, usize)> {
    let (side, name) =
        (SIDES.iter().enumerate()).find_map(|(side, suffix)| Some((side, name.strip_suffix(suffix)?)))?;
    let (component, module) = name.split_once('.')?;
    let component = COMPONENTS.into_iter().find(|c| c.folder() == component)?;
    Some((component, module, side))
}

fn tensor(path: &Path, parameter: &Parameter<'_>) -> Result<ReadTensor> {
    let place = || path.display().to_string();
    let kind = match parameter.dtype {
        1 => safetensors::Dtype::F32,
        10 => safetensors::Dtype::F16,
        16 => safetensors::Dtype::BF16,
        other => {
            let what = format!(
                "holds `{}` of element type {other}, which is no float",
                parameter.name
            );
            return Err(Error::bad(place(), what, "Give fp32, fp16 or bf16."));
        }
    };
    let (precision, values) = floats(kind, &parameter.data).expect("all three types are floats");
    let dims: Option<Vec<usize>> = parameter.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let counted = dims.filter(|dims| {
        let count = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        count == Some(values.len())
    });
    let Some(shape) = counted else {
        let what = format!(
            "holds {} values for `{}` of shape {:?}",
            values.len(),
            parameter.name,
            parameter.dims
        );
        return Err(Error::bad(place(), what, "Copy or convert it again."));
    };
    if let Some(value) = values.iter().find(|v| !v.is_finite()) {
        return Err(not_finite(path, &parameter.name, *value));
    }
    Ok(match shape.as_slice() {
        [rows, columns] => ReadTensor {
            values: transposed(&values, *rows, *columns),
            shape: vec![*columns, *rows],
            precision,
        },
        _ => ReadTensor {
            shape,
            values,
            precision,
        },
    })
}

/// Writes the modules of `component` to `path`. The same adapter gives the same bytes.
///
/// # Errors
/// Paths of modules are not known, a scaled factor is too large for its type, the adapter is larger than 2 GiB, or the
/// file cannot be written.
pub fn write(path: &Path, lora: &Lora, component: Component) -> Result<()> {
    lora.paths()?;
    let mut parameters = Vec::new();
    for module in lora.of(component) {
        let place = module.place();
        let scale = module.scale();
        let scaled = module.up.values.iter().map(|v| (f64::from(*v) * scale) as f32);
        let precision = module.up.precision;
        let up: Vec<f32> = scaled.map(|v| precision.rounded(v)).collect();
        if let Some(value) = up.iter().find(|v| !v.is_finite()) {
            let what = format!("becomes {value} when its scale {scale} is taken in");
            return Err(Error::bad(place, what, "Choose another --dtype."));
        }
        parameters.push(parameter(
            format!("{place}{}", SIDES[0]),
            &module.down,
            &module.down.values,
        ));
        parameters.push(parameter(format!("{place}{}", SIDES[1]), &module.up, &up));
    }
    let layout = flatbuffer::Layout::of(&parameters).ok_or_else(|| {
        let remedy = "Write it in 16 bits (`--dtype f16`), or `ortdpo adapter resize` it first.";
        Error::bad(path.display().to_string(), "would be larger than 2 GiB", remedy)
    })?;
    write_atomically_with(path, |out| layout.write(&parameters, out))
}

fn parameter(name: String, tensor: &ReadTensor, values: &[f32]) -> Parameter<'static> {
    let (shape, values) = match tensor.shape.as_slice() {
        [rows, columns] => (
            vec![*columns, *rows],
            Cow::Owned(transposed(values, *rows, *columns)),
        ),
        _ => (tensor.shape.clone(), Cow::Borrowed(values)),
    };
    let mut data = Vec::with_capacity(values.len() * tensor.precision.bytes());
    tensor
        .precision
        .write(&values, &mut data)
        .expect("writing to memory does not fail");
    Parameter {
        name: name.into(),
        dims: shape.iter().map(|d| *d as i64).collect(),
        dtype: match tensor.precision {
            Precision::Fp32 => 1,
            Precision::Fp16 => 10,
            Precision::Bf16 => 16,
        },
        data: data.into(),
    }
}
