//! Fixing the open dimensions of a model's inputs.

use std::collections::BTreeMap;

use super::graph::TensorType;
use super::read::{Dim, InputInfo, Model};
use crate::{Error, Result};

/// Dimensions given by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dims {
    /// Named dimensions (`batch` → 2).
    pub named: BTreeMap<String, usize>,
    /// Whole shapes by input name, for dimensions without a name.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// Refuses `--dim` and `--shape` for names the model does not have: a typing error would otherwise go unnoticed.
pub(super) fn check_known(infos: &[InputInfo], dims: &Dims, model: &Model) -> Result<()> {
    let place = || model.path.display().to_string();
    let mut names: Vec<&str> = infos
        .iter()
        .flat_map(|i| i.dims.iter().flatten())
        .filter_map(|d| match d {
            Dim::Named(n) => Some(n.as_str()),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    if let Some(name) = dims.named.keys().find(|n| !names.contains(&n.as_str())) {
        let known = if names.is_empty() {
            "It has no named dimensions.".into()
        } else {
            format!("It has: {}.", names.join(", "))
        };
        return Err(Error::bad(
            place(),
            format!("has no dimension named `{name}`"),
            known,
        ));
    }
    let inputs: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
    if let Some(name) = dims.shapes.keys().find(|n| !inputs.contains(&n.as_str())) {
        return Err(Error::bad(
            place(),
            format!("has no input named `{name}`"),
            format!("It has: {}.", inputs.join(", ")),
        ));
    }
    Ok(())
}

/// The type of an input once all dimensions are given.
pub(super) fn fix(info: &InputInfo, dims: &Dims, model: &Model) -> Result<TensorType> {
    let place = || format!("{}: input `{}`", model.path.display(), info.name);
    let given = dims.shapes.get(&info.name);
    let shape = match (&info.dims, given) {
        (None, Some(given)) => given.clone(),
        (None, None) => {
            return Err(Error::bad(
                place(),
                "has no declared shape",
                format!("Give it with --shape {}=….", info.name),
            ));
        }
        (Some(declared), Some(given)) if given.len() != declared.len() => {
            return Err(Error::bad(
                place(),
                format!(
                    "has {} dimensions, but --shape gives {}",
                    declared.len(),
                    given.len()
                ),
                "Give one number per dimension.",
            ));
        }
        (Some(declared), given) => declared
            .iter()
            .enumerate()
            .map(|(i, dim)| {
                let by_name = match dim {
                    Dim::Fixed(n) => Some(*n),
                    Dim::Named(name) => dims.named.get(name).copied(),
                    Dim::Unknown => None,
                };
                match (by_name, given.map(|g| g[i])) {
                    (Some(a), Some(b)) if a != b => Err(Error::bad(
                        place(),
                        format!("dimension {i} is {a}, but --shape gives {b}"),
                        "Give the same number, or leave one out.",
                    )),
                    (Some(n), _) | (None, Some(n)) => Ok(n),
                    (None, None) => Err(open_dimension(place(), info, i, dim)),
                }
            })
            .collect::<Result<_>>()?,
    };
    let ty = TensorType::new(info.dtype, shape);
    if !ty.is_countable() {
        return Err(Error::bad(
            place(),
            format!("would be impossibly large: {ty}"),
            "Give smaller dimensions.",
        ));
    }
    Ok(ty)
}

fn open_dimension(place: String, info: &InputInfo, i: usize, dim: &Dim) -> Error {
    match dim {
        Dim::Named(name) => Error::bad(
            place,
            format!("dimension {i} (`{name}`) is not fixed"),
            format!("Give it with --dim {name}=N."),
        ),
        _ => Error::bad(
            place,
            format!("dimension {i} has no name and is not fixed"),
            format!("Give all dimensions with --shape {}=….", info.name),
        ),
    }
}
