//! What is in an adapter file: networks, ranks, scales, types, and how large the change is where.

use std::collections::BTreeMap;

use faer::Mat;
use rayon::prelude::*;
use serde::Serialize;

use super::base::BaseModel;
use super::content::{AdapterFile, Content};
use super::factors::{Lora, ModuleFactors};
use super::file::{ReadTensor, TensorEntry, TensorFile};

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Who writes such files.
    pub format: String,
    /// The family of models it fits, if that can be told.
    pub base: Option<String>,
    /// Numbers in all tensors.
    pub parameters: usize,
    /// Networks it changes.
    pub components: Vec<ComponentSummary>,
    /// Modules by what they do in their block.
    pub groups: Vec<Group>,
    /// Texts beside the tensors.
    pub metadata: BTreeMap<String, String>,
}

/// What a file holds of one network. Counts are of modules; of tensors where whole weights are held.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComponentSummary {
    /// The network.
    pub component: String,
    /// Modules.
    pub modules: usize,
    /// Numbers.
    pub parameters: usize,
    /// Modules by rank.
    pub ranks: BTreeMap<usize, usize>,
    /// Modules by alpha.
    pub alphas: Vec<(f64, usize)>,
    /// Modules by element type.
    pub dtypes: BTreeMap<String, usize>,
    /// Frobenius norm of the change of all weights.
    pub norm: Option<f64>,
}

/// Modules of a network that have the same place in their blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// The network.
    pub component: String,
    /// Path below the block, such as `attn1.to_q`.
    pub name: String,
    /// Modules.
    pub modules: usize,
    /// Mean Frobenius norm of alpha / r · B·A.
    pub mean_norm: f64,
    /// The largest of these norms.
    pub largest_norm: f64,
    /// Module that has it.
    pub largest: String,
}

/// Looks at everything in `file`.
pub fn summarise(file: &AdapterFile) -> Summary {
    let (base, components, groups) = match &file.content {
        Content::Full(file) => (None, vec![of_weights(file)], Vec::new()),
        Content::Lora(modules) => {
            let lora = Lora {
                modules: modules.clone(),
                metadata: file.metadata.clone(),
            };
            let norms: Vec<f64> = modules.par_iter().map(norm).collect();
            (
                BaseModel::of_lora(&lora).map(|b| b.to_string()),
                of_modules(modules, &norms),
                groups(modules, &norms),
            )
        }
    };
    Summary {
        format: file.format.to_string(),
        base,
        parameters: components.iter().map(|c| c.parameters).sum(),
        components,
        groups,
        metadata: file.metadata.clone(),
    }
}

/// Frobenius norm of alpha / r · B·A, from the small products BᵀB and A·Aᵀ.
fn norm(module: &ModuleFactors) -> f64 {
    let (rank, columns) = (module.rank(), module.columns());
    let value = |tensor: &ReadTensor, index: usize| f64::from(tensor.values[index]);
    let b = Mat::from_fn(module.outputs(), rank, |i, j| value(&module.up, i * rank + j));
    let a = Mat::from_fn(rank, columns, |i, j| value(&module.down, i * columns + j));
    let (b, a) = (b.transpose() * &b, &a * a.transpose());
    let cell = |i: usize, j: usize| b[(i, j)] * a[(i, j)];
    let square: f64 = (0..rank).flat_map(|i| (0..rank).map(move |j| cell(i, j))).sum();
    // Where the product is zero, rounding can leave less.
    square.max(0.0).sqrt() * module.scale().abs()
}

fn of_weights(file: &TensorFile) -> ComponentSummary {
    let mut dtypes = BTreeMap::new();
    for entry in file.entries() {
        *dtypes.entry(entry.precision().name().to_owned()).or_default() += 1;
    }
    ComponentSummary {
        component: "unet".into(),
        modules: file.entries().len(),
        parameters: file.entries().iter().map(TensorEntry::count).sum(),
        ranks: BTreeMap::new(),
        alphas: Vec::new(),
        dtypes,
        norm: None,
    }
}

fn of_modules(modules: &[ModuleFactors], norms: &[f64]) -> Vec<ComponentSummary> {
    let mut found: Vec<ComponentSummary> = Vec::new();
    for (module, norm) in modules.iter().zip(norms) {
        let component = module.component.to_string();
        if found.last().is_none_or(|c| c.component != component) {
            found.push(ComponentSummary {
                component,
                modules: 0,
                parameters: 0,
                ranks: BTreeMap::new(),
                alphas: Vec::new(),
                dtypes: BTreeMap::new(),
                norm: Some(0.0),
            });
        }
        let summary = found.last_mut().expect("one was added if there was none");
        summary.modules += 1;
        summary.parameters += module.down.values.len() + module.up.values.len();
        *summary.ranks.entry(module.rank()).or_default() += 1;
        match summary
            .alphas
            .iter_mut()
            .find(|(alpha, _)| *alpha == module.alpha)
        {
            Some((_, count)) => *count += 1,
            None => summary.alphas.push((module.alpha, 1)),
        }
        *summary
            .dtypes
            .entry(module.down.precision.name().to_owned())
            .or_default() += 1;
        summary.norm = summary.norm.map(|sum| sum.hypot(*norm));
    }
    for summary in &mut found {
        summary.alphas.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    found
}

fn groups(modules: &[ModuleFactors], norms: &[f64]) -> Vec<Group> {
    let mut found: BTreeMap<(&str, String), Vec<(&ModuleFactors, f64)>> = BTreeMap::new();
    for (module, norm) in modules.iter().zip(norms) {
        let key = (module.component.folder(), below_block(module.module.as_str()));
        found.entry(key).or_default().push((module, *norm));
    }
    let group = |((component, name), members): ((&str, String), Vec<(&ModuleFactors, f64)>)| {
        let mean = members.iter().map(|(_, norm)| norm).sum::<f64>() / members.len() as f64;
        let (largest, norm) = members
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("a group has a member");
        Group {
            component: component.to_owned(),
            name,
            modules: members.len(),
            mean_norm: mean,
            largest_norm: *norm,
            largest: largest.module.as_str().to_owned(),
        }
    };
    found.into_iter().map(group).collect()
}

/// What follows the last list of blocks in a path: `attn1.to_q` of a transformer block, `conv1` of a residual one.
fn below_block(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let is_block = |pair: &[&str]| {
        let list = pair[0].ends_with('s') && pair[0] != "embeddings";
        list && pair[1].bytes().all(|b| b.is_ascii_digit())
    };
    let start = parts.windows(2).rposition(is_block).map_or(0, |at| at + 2);
    parts[start..].join(".")
}
