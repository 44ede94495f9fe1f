//! Every difference between what an adapter changes and what a model has.

use std::collections::HashMap;

use serde::Serialize;

use super::adapters::{Index, modules};
use super::derived_folder::read_network;
use super::factors::{fits, sizes};
use crate::adapter::content::Content;
use crate::adapter::{ModuleFactors, TensorFile};
use crate::model_folder::{Component, ModelFolder};
use crate::traingraph::{TrainableKind, Trainables};
use crate::{Error, Result};

/// In what way adapter and model differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The pipeline has no such network.
    Component,
    /// The network has no such layer or weight.
    Name,
    /// The layer or weight has another shape.
    Shape,
    /// The rank is larger than the layer can use: the adapter works, but is larger than it need be.
    Rank,
}

impl Kind {
    /// Whether an adapter with this difference cannot be used.
    pub fn is_fatal(self) -> bool {
        self != Self::Rank
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Component => "component",
            Self::Name => "name",
            Self::Shape => "shape",
            Self::Rank => "rank",
        })
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// In what way.
    pub kind: Kind,
    /// The network.
    pub component: String,
    /// Module, or weight where whole weights are compared.
    pub name: String,
    /// What the adapter has: shapes of A and B, or of the weight; the rank.
    pub adapter: String,
    /// What the model has; empty where it has nothing.
    pub model: String,
}

/// All differences, by kind.
///
/// # Errors
/// A network of the model cannot be read.
pub fn differences(content: &Content, model: &ModelFolder) -> Result<Vec<Difference>> {
    let mut found = match content {
        Content::Full(file) => of_weights(file, model)?,
        Content::Lora(modules) => {
            let mut components: Vec<Component> = modules.iter().map(|m| m.component).collect();
            components.dedup();
            let mut found = Vec::new();
            for component in components {
                let own: Vec<_> = modules.iter().filter(|m| m.component == component).collect();
                found.extend(of_component(&own, component, model)?);
            }
            found
        }
    };
    found.sort();
    Ok(found)
}

fn of_component(
    factors: &[&ModuleFactors],
    component: Component,
    model: &ModelFolder,
) -> Result<Vec<Difference>> {
    let difference = |kind, module: &ModuleFactors, adapter: String, model: String| Difference {
        kind,
        component: component.to_string(),
        name: module.module.as_str().to_owned(),
        adapter,
        model,
    };
    let shapes = |m: &ModuleFactors| format!("{:?} {:?}", m.down.shape, m.up.shape);
    if !model.components().contains(&component) {
        let missing = factors
            .iter()
            .map(|m| difference(Kind::Component, m, shapes(m), String::new()));
        return Ok(missing.collect());
    }
    let (_, graph) = read_network(model, component, false)?;
    let layers = modules(&graph, component);
    let known = Index::new(&layers);
    let mut found = Vec::new();
    for module in factors {
        let Some(position) = known.find(&module.module) else {
            found.push(difference(Kind::Name, module, shapes(module), String::new()));
            continue;
        };
        let Some((row, outputs)) = sizes(&layers[position]) else {
            let what = "a convolution in groups".to_owned();
            found.push(difference(Kind::Shape, module, shapes(module), what));
            continue;
        };
        let rank = module.rank();
        let most = row.iter().product::<usize>().min(outputs);
        if !fits(module, &row, outputs) {
            let down = [&[rank], row.as_slice()].concat();
            let expected = format!("{down:?} {:?}", [outputs, rank]);
            found.push(difference(Kind::Shape, module, shapes(module), expected));
        } else if rank > most {
            found.push(difference(
                Kind::Rank,
                module,
                rank.to_string(),
                format!("at most {most}"),
            ));
        }
    }
    Ok(found)
}

fn of_weights(file: &TensorFile, model: &ModelFolder) -> Result<Vec<Difference>> {
    let (source, graph) = read_network(model, model.denoiser()?, true)?;
    let known = Trainables::full(&graph, &["*".to_owned()])?;
    let mut by_name: HashMap<&str, &[usize]> = HashMap::new();
    for tensor in &known.tensors {
        if let TrainableKind::Weight { torch_shape, .. } = &tensor.kind {
            by_name.insert(&tensor.name, torch_shape);
        }
    }
    if by_name.is_empty() {
        let what = "has no weight with a known name";
        return Err(Error::bad(
            source.path.display().to_string(),
            what,
            "Export it again.",
        ));
    }
    let mut found = Vec::new();
    for entry in file.entries() {
        let expected = by_name.get(entry.name.as_str());
        if expected.is_some_and(|shape| *shape == entry.shape.as_slice()) {
            continue;
        }
        found.push(Difference {
            kind: if expected.is_some() {
                Kind::Shape
            } else {
                Kind::Name
            },
            component: Component::Unet.to_string(),
            name: entry.name.clone(),
            adapter: format!("{:?}", entry.shape),
            model: expected.map_or(String::new(), |shape| format!("{shape:?}")),
        });
    }
    Ok(found)
}
