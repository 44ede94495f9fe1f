//! Which graph node is which layer of the original network.
//!
//! Exporters rename weights (`onnx::MatMul_123`, `val_161`, transposed), but they tell the module elsewhere: the legacy
//! exporter in the node's name (`/mid_block/attentions.0/proj_in/Conv`), the dynamo exporter in the node's metadata
//! (`pkg.torch.onnx.name_scopes`). Adapters are named after that module path, as diffusers and PEFT expect.

use crate::onnx::{Graph, Node, ValueId};

/// Kind and size of a layer with a weight matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerKind {
    /// `y = x·W (+ b)`.
    Linear {
        /// Features of `x`.
        inputs: usize,
        /// Features of `y`.
        outputs: usize,
        /// Whether the graph stores `W` as `[inputs, outputs]`, the transpose of PyTorch's layout.
        transposed: bool,
    },
    /// Convolution; weight `[outputs, inputs / groups, kernel…]`.
    Conv {
        /// Channels of `x`.
        inputs: usize,
        /// Channels of `y`.
        outputs: usize,
        /// Kernel size per spatial dimension.
        kernel: Vec<usize>,
        /// Groups.
        groups: usize,
    },
}

/// A layer found in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Position of its node in `graph.nodes`.
    pub node: usize,
    /// Module path in the original network, e.g. `mid_block.attentions.0.proj_in`.
    pub module: String,
    /// Its weight in the graph.
    pub weight: ValueId,
    /// Kind and size.
    pub kind: LayerKind,
}

/// Parts that diffusers' denoisers have directly below themselves.
const DENOISER_PARTS: [&str; 2] = ["time_embedding", "time_text_embed"];

/// All linear and convolution layers with a constant weight, in graph order. If the denoiser was exported inside another
/// module, that module's name is left out: adapters are named as diffusers names the denoiser's layers.
pub fn find_layers(graph: &Graph) -> Vec<Layer> {
    let mut layers = wrapped_layers(graph);
    let wrapper = wrapper(layers.iter().map(|l| l.module.as_str())).map_or(0, str::len);
    layers.iter_mut().for_each(|l| drop(l.module.drain(..wrapper)));
    layers
}

/// Path, with a dot behind it, of the module that was exported around the denoiser, if there was one.
pub(super) fn wrapper_of(graph: &Graph) -> Option<String> {
    wrapper(wrapped_layers(graph).iter().map(|l| l.module.as_str())).map(str::to_owned)
}

fn wrapper<'a>(modules: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let around = |module: &'a str| {
        let part = DENOISER_PARTS
            .iter()
            .find_map(|part| module.find(&format!(".{part}.")))?;
        Some(&module[..=part])
    };
    let found = modules.clone().find_map(around)?;
    modules
        .clone()
        .all(|module| module.starts_with(found))
        .then_some(found)
}

fn wrapped_layers(graph: &Graph) -> Vec<Layer> {
    let made_by = graph.producers();
    let layer = |(i, node): (usize, &Node)| {
        let operand = node.input(1)?;
        let turned = transposed_weight(graph, &made_by, operand);
        let weight = turned.unwrap_or(operand);
        if !graph.parameters.contains(&weight) {
            return None;
        }
        let kind = match (node.op.as_str(), graph.shape(operand)) {
            ("MatMul", [inputs, outputs]) => LayerKind::Linear {
                inputs: *inputs,
                outputs: *outputs,
                transposed: turned.is_none(),
            },
            _ if turned.is_some() => return None,
            ("Gemm", [a, b]) if node.attrs.get_int("transA", 0) == 0 => {
                let transposed = node.attrs.get_int("transB", 0) == 0;
                let (inputs, outputs) = if transposed { (*a, *b) } else { (*b, *a) };
                LayerKind::Linear {
                    inputs,
                    outputs,
                    transposed,
                }
            }
            ("Conv", [outputs, inputs, kernel @ ..]) => {
                let groups = node.attrs.get_int("group", 1).max(1) as usize;
                LayerKind::Conv {
                    inputs: inputs * groups,
                    outputs: *outputs,
                    kernel: kernel.to_vec(),
                    groups,
                }
            }
            _ => return None,
        };
        Some(Layer {
            node: i,
            module: module_of(graph, node, weight)?,
            weight,
            kind,
        })
    };
    graph.nodes.iter().enumerate().filter_map(layer).collect()
}

/// The matrix whose transpose `value` is. Dynamo's exports have it so where its optimizer did not run.
fn transposed_weight(graph: &Graph, made_by: &[Option<usize>], value: ValueId) -> Option<ValueId> {
    let node = &graph.nodes[made_by[graph.index(value)]?];
    let matrix = node.op == "Transpose" && graph.rank(value) == 2;
    // Transposes that change nothing are not in a static graph, so this one exchanges the two dimensions.
    node.input(0).filter(|_| matrix)
}

/// Module path of a node: from its name, its metadata, or the name of its weight.
pub fn module_of(graph: &Graph, node: &Node, weight: ValueId) -> Option<String> {
    scope_of(node)
        .filter(|scope| !scope.is_empty())
        .or_else(|| graph.name(weight).strip_suffix(".weight").map(str::to_owned))
}

/// Path of the module that a node was traced in, from its name (legacy exporter) or its metadata (dynamo).
pub fn scope_of(node: &Node) -> Option<String> {
    if let Some(scoped) = node.name.strip_prefix('/') {
        let (module, _op) = scoped.rsplit_once('/')?;
        return Some(module.replace('/', "."));
    }
    let (_, scopes) = node
        .metadata
        .iter()
        .find(|(k, _)| k == "pkg.torch.onnx.name_scopes")?;
    // A Python list: the scopes from the outermost module inwards, then the name of the traced operation.
    let scopes: Vec<&str> = scopes
        .trim_matches(['[', ']'])
        .split(", ")
        .map(|s| s.trim_matches(['\'', '"']))
        .collect();
    match scopes.as_slice() {
        [.., module, _operation] => Some((*module).to_owned()),
        _ => None,
    }
}

/// Whether `pattern` chooses `module`: the whole path, its end at a dot (PEFT's rule), or a pattern with `*`.
pub fn matches(pattern: &str, module: &str) -> bool {
    if pattern.contains('*') {
        return glob(pattern.as_bytes(), module.as_bytes())
            || module
                .match_indices('.')
                .any(|(i, _)| glob(pattern.as_bytes(), &module.as_bytes()[i + 1..]));
    }
    module
        .strip_suffix(pattern)
        .is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|i| glob(rest, &text[i..])),
        Some((c, rest)) => text
            .split_first()
            .is_some_and(|(t, tail)| t == c && glob(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_exported_around_the_network_is_found() {
        let found = |modules: &[&str]| wrapper(modules.iter().copied()).map(str::to_owned);
        assert_eq!(
            found(&["unet.time_embedding.linear_1", "unet.mid_block.0"]),
            Some("unet.".into())
        );
        assert_eq!(
            found(&["w.model.a", "w.model.time_text_embed.b"]),
            Some("w.model.".into())
        );
        assert_eq!(found(&["time_embedding.linear_1", "mid_block.0"]), None);
        assert_eq!(
            found(&["unet.time_embedding.linear_1", "controlnet.conv_in"]),
            None
        );
        assert_eq!(found(&["text_model.encoder.a", "text_model.encoder.b"]), None);
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn a_pattern_matches_whole_path_components() {
        let module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0";
        assert!(matches("to_out.0", module));
        assert!(matches("attn1.to_out.0", module));
        assert!(matches("attn1.*", module));
        assert!(matches("down_blocks.*.attn1.to_out.0", module));
        assert!(!matches("out.0", module));
        assert!(!matches("attn2.*", module));
    }
}
