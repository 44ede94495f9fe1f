//! The derived model of `ortdpo derive`: a forward graph that also computes gradients.
//!
//! The derived graph has the forward graph's inputs, one more input `Y.cotangent` for every float output `Y`, the forward
//! graph's outputs, and an output `W.grad` for every tensor asked for: the gradient of `Σ ⟨Y.cotangent, Y⟩` with respect
//! to `W`. A cotangent is what a loss on `Y` sends back, `∂loss/∂Y`; ones give the gradient of the sum.

use std::collections::HashSet;

use super::{gradients, reached_from, reaching};
use crate::onnx::{Graph, TensorType, ValueId};
use crate::{Error, Result};

/// The tensors whose gradients are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrt {
    /// Every float initializer, and every float `Constant` of more than one element, that reaches an output through data
    /// operands.
    Parameters,
    /// Initializers, constants and inputs by name.
    Named(Vec<String>),
}

impl std::str::FromStr for Wrt {
    type Err = Error;

    /// `params`, or names separated by commas.
    fn from_str(text: &str) -> Result<Self> {
        if text == "params" {
            return Ok(Self::Parameters);
        }
        let names: Vec<String> = text.split(',').map(|n| n.trim().to_owned()).collect();
        if names.iter().any(String::is_empty) {
            return Err(Error::bad(
                format!("--wrt {text}"),
                "names an empty tensor",
                "Give `params`, or names separated by single commas.",
            ));
        }
        Ok(Self::Named(names))
    }
}

/// A derived graph and what it was asked for.
#[derive(Debug, Clone)]
pub struct Derived {
    /// The graph; see the module's text.
    pub graph: Graph,
    /// Name and type of each tensor that has a gradient, in the order of the outputs.
    pub wrt: Vec<(String, TensorType)>,
}

/// Name of the input that takes `∂loss/∂output`.
pub fn cotangent_name(output: &str) -> String {
    format!("{output}.cotangent")
}

/// Name of the output that holds the gradient with respect to `tensor`.
pub fn gradient_name(tensor: &str) -> String {
    format!("{tensor}.grad")
}

/// Adds cotangents and gradients to `graph`.
///
/// # Errors
/// A name that is not there, not of floats or not on a way to a float output; no parameter at all; an operator without
/// gradient rule on the way, named with its node.
pub fn derive(mut graph: Graph, wrt: &Wrt) -> Result<Derived> {
    let outputs: Vec<ValueId> = graph
        .outputs
        .iter()
        .copied()
        .filter(|v| graph.dtype(*v).is_float())
        .collect();
    if outputs.is_empty() {
        return Err(Error::bad(
            format!("graph `{}`", graph.name),
            "has no output of floats to differentiate",
            "Derive from a model with float outputs.",
        ));
    }
    let targets = match wrt {
        Wrt::Parameters => parameters(&mut graph, &outputs)?,
        Wrt::Named(names) => names
            .iter()
            .map(|n| named(&graph, n, &outputs))
            .collect::<Result<_>>()?,
    };
    refuse_taken_names(&graph, &outputs, &targets)?;
    let seeds: Vec<(ValueId, ValueId)> = outputs
        .into_iter()
        .map(|y| {
            let (name, ty) = (cotangent_name(&graph.name(y)), graph.ty(y).clone());
            (y, graph.add_input(&name, ty))
        })
        .collect();
    let found = gradients(&mut graph, &seeds, &targets)?;
    let mut described = Vec::with_capacity(targets.len());
    for (target, gradient) in targets.into_iter().zip(found) {
        let (name, ty) = (graph.name(target), graph.ty(target).clone());
        // A path may end in an operator that lets nothing through (a crop that drops everything): then it is zero.
        let gradient = match gradient {
            Some(gradient) => gradient,
            None => graph.zeros(&ty)?,
        };
        let gradient = graph.as_output(gradient, &gradient_name(&name))?;
        graph.outputs.push(gradient);
        described.push((name, ty));
    }
    graph.prune();
    Ok(Derived {
        graph,
        wrt: described,
    })
}

/// The parameters that reach one of `outputs`, each with a name of its own.
fn parameters(graph: &mut Graph, outputs: &[ValueId]) -> Result<Vec<ValueId>> {
    let needed = reaching(graph, outputs);
    let found: Vec<ValueId> = graph
        .parameters
        .iter()
        .copied()
        .filter(|v| needed[graph.index(*v)])
        .collect();
    if found.is_empty() {
        return Err(Error::bad(
            format!("graph `{}`", graph.name),
            "has no parameter that reaches an output",
            "Name inputs with --wrt to get gradients with respect to them.",
        ));
    }
    // Constants of a function that is called twice share a name.
    let mut taken = HashSet::new();
    for v in &found {
        let name = graph.name(*v);
        let free = (1..).map(|i| format!("{name}_{i}"));
        let name = std::iter::once(name.clone())
            .chain(free)
            .find(|n| !taken.contains(n));
        let name = name.expect("one of infinitely many names is free");
        graph.set_name(*v, &name);
        taken.insert(name);
    }
    Ok(found)
}

/// The initializer, constant or input called `name`.
fn named(graph: &Graph, name: &str, outputs: &[ValueId]) -> Result<ValueId> {
    let place = || format!("--wrt {name}");
    let candidates = || {
        graph
            .parameters
            .iter()
            .chain(&graph.inputs)
            .chain(graph.constants.keys())
    };
    let Some(&value) = candidates().find(|v| graph.name(**v) == name) else {
        let known: Vec<String> = candidates().map(|v| graph.name(*v)).collect();
        return Err(Error::bad(
            place(),
            "is no initializer, constant or input of the model",
            format!("The nearest names are {}.", nearest(name, &known)),
        ));
    };
    if !graph.dtype(value).is_float() {
        return Err(Error::bad(
            place(),
            format!("holds {}, through which no gradient flows", graph.dtype(value)),
            "Name a tensor of floats.",
        ));
    }
    let reached = reached_from(graph, &[value]);
    if !outputs.iter().any(|y| reached[graph.index(*y)]) {
        return Err(Error::bad(
            place(),
            "reaches no float output through data operands, so it has no gradient",
            "Leave it out, or use --wrt params for all tensors that have one.",
        ));
    }
    Ok(value)
}

/// The names most like `name`, best first, for people.
fn nearest(name: &str, known: &[String]) -> String {
    let mut ranked: Vec<(f64, &String)> = known
        .iter()
        .map(|k| (strsim::normalized_damerau_levenshtein(name, k), k))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    ranked.dedup_by(|a, b| a.1 == b.1);
    let best: Vec<String> = ranked.iter().take(3).map(|(_, k)| format!("`{k}`")).collect();
    best.join(", ")
}

/// Refuses a model that already uses one of the names the interface promises.
fn refuse_taken_names(graph: &Graph, outputs: &[ValueId], targets: &[ValueId]) -> Result<()> {
    let fixed: HashSet<String> = graph
        .inputs
        .iter()
        .chain(&graph.outputs)
        .chain(graph.constants.keys())
        .map(|v| graph.name(*v))
        .collect();
    let new = outputs
        .iter()
        .map(|y| cotangent_name(&graph.name(*y)))
        .chain(targets.iter().map(|w| gradient_name(&graph.name(*w))));
    let mut taken = fixed;
    for name in new {
        if taken.contains(&name) {
            return Err(Error::bad(
                format!("graph `{}`", graph.name),
                format!("already has a tensor named `{name}`, or it was asked for twice"),
                "Name each tensor once; derive from the forward model, not from one that was derived.",
            ));
        }
        taken.insert(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Constant;
    use crate::tensor::DType;

    /// `y = x·w`, with an `unused` parameter and integers `n`.
    fn product() -> Graph {
        let mut g = Graph::new("product", 17);
        let x = g.add_input("x", TensorType::new(DType::F32, [2, 3]));
        let w = g.add_constant("weight", Constant::floats(DType::F32, &[3], &[1.0, 2.0, 3.0]));
        let unused = g.add_constant("unused", Constant::floats(DType::F32, &[1], &[1.0]));
        g.add_constant("n", Constant::integers(DType::I64, &[1], &[1]));
        g.parameters.extend([w, unused]);
        let y = g.mul(x, w).unwrap();
        g.set_name(y, "y");
        g.outputs.push(y);
        g
    }

    fn names(graph: &Graph, values: &[ValueId]) -> Vec<String> {
        values.iter().map(|v| graph.name(*v)).collect()
    }

    #[test]
    fn cotangents_come_in_and_gradients_come_out() {
        let derived = derive(product(), &Wrt::Parameters).unwrap();
        let g = &derived.graph;
        assert_eq!(names(g, &g.inputs), ["x", "y.cotangent"]);
        assert_eq!(names(g, &g.outputs), ["y", "weight.grad"]);
        assert_eq!(g.shape(g.outputs[1]), [3]);
        assert_eq!(
            derived.wrt,
            [("weight".to_owned(), TensorType::new(DType::F32, [3]))]
        );
    }

    #[test]
    fn inputs_have_gradients_too() {
        let wrt = "x, weight".parse().unwrap();
        let g = derive(product(), &wrt).unwrap().graph;
        assert_eq!(names(&g, &g.outputs), ["y", "x.grad", "weight.grad"]);
    }

    #[test]
    fn a_mistyped_name_is_answered_with_near_ones() {
        let error = derive(product(), &"wieght".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("The nearest names are `weight`"), "{error}");
    }

    #[test]
    fn names_without_gradient_are_refused() {
        let refused = |wrt: &str| derive(product(), &wrt.parse().unwrap()).unwrap_err().to_string();
        assert!(refused("unused").contains("reaches no float output"));
        assert!(refused("n").contains("holds i64"));
        assert!(refused("x,x").contains("asked for twice"));
        assert!("x,,y".parse::<Wrt>().is_err());
    }

    #[test]
    fn a_derived_graph_is_not_derived_again() {
        let once = derive(product(), &"x".parse().unwrap()).unwrap().graph;
        let error = derive(once, &"x".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("already has a tensor named"), "{error}");
    }
}
