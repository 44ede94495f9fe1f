//! A pipeline folder whose networks take adapters as inputs, for ONNX Runtime in any program.
//!
//! Every chosen layer `y = f(x)` becomes `y = f(x) + x·A·B` (for convolutions, two of them in a row). A and B are inputs
//! with a default: zeros of rank 1, so that without an adapter the network computes what it did. Their rank is open.
//! Names and layouts are those of [`crate::adapter::onnx_adapter`], whose files ONNX Runtime puts in their place.

use std::fs;
use std::path::{Path, PathBuf};

use super::adapters::{Index, modules};
use super::derived_folder::{ADAPTABLE, read_network, write_folder};
use super::factors::sizes;
use crate::adapter::Lora;
use crate::adapter::content::listed;
use crate::adapter::onnx_adapter::SIDES;
use crate::model_folder::{Component, ModelFolder};
use crate::onnx::{AdapterInputs, Graph, save_adaptable};
use crate::traingraph::{Layer, LayerKind, matches};
use crate::{Error, Result};

/// Which layers take adapters.
#[derive(Debug, Clone)]
pub enum Slots {
    /// The layers that these adapters change.
    Of(Vec<Lora>),
    /// Layers of these networks whose names match one of these patterns, by the rules of a run's `adapter.targets`.
    Matching {
        /// Networks.
        components: Vec<Component>,
        /// Patterns.
        targets: Vec<String>,
    },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Networks that take adapters, and how many of their layers do.
    pub components: Vec<(Component, usize)>,
}

/// Writes `model` with inputs for adapters to `output`, which must be free: all or nothing.
///
/// # Errors
/// Layers are not there; the folder is in use; the disk is full.
pub fn export(model: &ModelFolder, slots: &Slots, output: &Path) -> Result<Exported> {
    let wanted = |component: Component| match slots {
        Slots::Of(loras) => loras.iter().any(|lora| lora.components().contains(&component)),
        Slots::Matching { components, .. } => components.contains(&component),
    };
    let chosen: Vec<Component> = Component::ALL.into_iter().filter(|c| wanted(*c)).collect();
    let foreign = |c: &&Component| !ADAPTABLE.contains(c) || !model.components().contains(c);
    if let Some(component) = chosen.iter().find(foreign) {
        let what = format!("has no {component} that could take adapters");
        let remedy = "Choose networks of the pipeline: unet, text_encoder, text_encoder_2.";
        return Err(Error::bad(model.root().display().to_string(), what, remedy));
    }
    write_folder(model, output, |folder| {
        let mut exported = Exported {
            components: Vec::new(),
        };
        let mut replaced: Vec<PathBuf> = Vec::new();
        for component in chosen {
            let (source, graph) = read_network(model, component, false)?;
            let layers = modules(&graph, component);
            let inputs: Vec<AdapterInputs> = select(slots, component, &layers, model)?
                .into_iter()
                .map(|layer| inputs_of(&graph, layer, component))
                .collect::<Result<_>>()?;
            let target = folder.join(component.folder());
            fs::create_dir_all(&target).map_err(Error::io(&target, "create the folder"))?;
            save_adaptable(&source, &inputs, &target.join("model.onnx"))?;
            exported.components.push((component, inputs.len()));
            // Data files stay, and the new model names the same places in them.
            replaced.push(source.path.clone());
        }
        Ok((exported, replaced))
    })
}

fn select<'a>(
    slots: &Slots,
    component: Component,
    layers: &'a [Layer],
    model: &ModelFolder,
) -> Result<Vec<&'a Layer>> {
    let place = || format!("{} ({component})", model.root().display());
    match slots {
        Slots::Of(loras) => {
            let known = Index::new(layers);
            let (mut positions, mut missing) = (Vec::new(), Vec::new());
            for module in loras.iter().flat_map(|lora| lora.of(component)) {
                match known.find(&module.module) {
                    Some(position) => positions.push(position),
                    None => missing.push(module.module.as_str()),
                }
            }
            if !missing.is_empty() {
                let what = format!("does not have what an adapter changes: {}", listed(&missing));
                let remedy = "`ortdpo adapter inspect FILE --model DIR` lists all differences.";
                return Err(Error::bad(place(), what, remedy));
            }
            positions.sort_unstable();
            positions.dedup();
            Ok(positions.into_iter().map(|position| &layers[position]).collect())
        }
        Slots::Matching { targets, .. } => {
            let is_target = |layer: &&Layer| targets.iter().any(|t| matches(t, &layer.module));
            let found: Vec<&Layer> = layers
                .iter()
                .filter(is_target)
                .filter(|l| sizes(l).is_some())
                .collect();
            match found.is_empty() {
                false => Ok(found),
                true => Err(Error::bad(
                    place(),
                    format!("has no layer that matches {}", targets.join(", ")),
                    "Patterns are ends of module names, such as `to_q`, or have a `*`.",
                )),
            }
        }
    }
}

fn inputs_of(graph: &Graph, layer: &Layer, component: Component) -> Result<AdapterInputs> {
    let node = &graph.nodes[layer.node];
    let output = node.output(0).expect("a layer has an output");
    let Some((row, outputs)) = sizes(layer) else {
        let what = format!("cannot adapt `{}`, a convolution in groups", layer.module);
        return Err(Error::bad(component.to_string(), what, "Leave it out."));
    };
    // Dimension by dimension; the rank is open.
    let (down, up) = match layer.kind {
        LayerKind::Linear { .. } => (vec![Some(row[0]), None], vec![None, Some(outputs)]),
        LayerKind::Conv { .. } => {
            let ones = row[1..].iter().map(|_| Some(1));
            (
                [None].into_iter().chain(row.iter().copied().map(Some)).collect(),
                [Some(outputs), None].into_iter().chain(ones).collect(),
            )
        }
    };
    Ok(AdapterInputs {
        layer: graph.name(output),
        dtype: node
            .input(0)
            .map_or(crate::tensor::DType::F32, |x| graph.dtype(x)),
        names: SIDES.map(|side| format!("{component}.{}{side}", layer.module)),
        shapes: [down, up],
    })
}
