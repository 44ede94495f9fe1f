//! Tensor sequences (`SplitToSequence` and friends, which unoptimised dynamo exports hold), resolved to plain values.

use super::attr::Attrs;
use super::graph::{Node, ValueId};
use super::proto::NodeProto;
use super::specialize::{Binding, Walk, input_name};
use super::view::View;
use crate::{Error, Result};

/// Whether `op` makes or reads sequences.
pub fn handles(op: &str) -> bool {
    matches!(
        op,
        "SplitToSequence" | "SequenceConstruct" | "SequenceAt" | "SequenceLength" | "ConcatFromSequence"
    )
}

/// Resolves one such node.
pub fn node(walk: &mut Walk, proto: &NodeProto, attrs: &Attrs, place: &str) -> Result<()> {
    let result = match proto.op_type.as_str() {
        "SplitToSequence" => Binding::Sequence(split(walk, proto, attrs, place)?),
        "SequenceConstruct" => Binding::Sequence(
            proto
                .input
                .iter()
                .map(|n| walk.value(n, place))
                .collect::<Result<_>>()?,
        ),
        "SequenceLength" => {
            let n = items(walk, input_name(proto, 0, place)?, place)?.len() as i64;
            Binding::Value(walk.graph.int_scalar(n))
        }
        "SequenceAt" => {
            let list = items(walk, input_name(proto, 0, place)?, place)?;
            let index = walk.value(input_name(proto, 1, place)?, place)?;
            let index = walk
                .graph
                .constant_integers(index)
                .and_then(|v| v.first().copied());
            let at = index.map(|i| if i < 0 { i + list.len() as i64 } else { i });
            let item = at.and_then(|i| usize::try_from(i).ok()).and_then(|i| list.get(i));
            Binding::Value(*item.ok_or_else(|| {
                Error::bad(
                    place,
                    "picks an item that is not in the sequence",
                    "Export the model again.",
                )
            })?)
        }
        _ => {
            let list = items(walk, input_name(proto, 0, place)?, place)?;
            let axis = attrs.get_int("axis", 0);
            if attrs.get_int("new_axis", 0) != 0 {
                let axes = walk.graph.ints(&[axis]);
                let raised = list
                    .into_iter()
                    .map(|v| walk.graph.op("Unsqueeze", &[v, axes], Attrs::new()));
                let raised: Vec<ValueId> = raised.collect::<Result<_>>()?;
                Binding::Value(walk.graph.op("Concat", &raised, Attrs::new().int("axis", axis))?)
            } else {
                Binding::Value(walk.graph.op("Concat", &list, Attrs::new().int("axis", axis))?)
            }
        }
    };
    walk.bind(&proto.output[0], result);
    Ok(())
}

/// Longest sequence that is resolved.
const LONGEST: usize = 1 << 16;

fn items(walk: &Walk, name: &str, place: &str) -> Result<Vec<ValueId>> {
    match walk.lookup(name, place)? {
        Binding::Sequence(list) => Ok(list),
        Binding::Value(_) => Err(Error::bad(
            place,
            format!("uses the tensor `{name}` as a sequence"),
            "Export the model again.",
        )),
    }
}

fn split(walk: &mut Walk, proto: &NodeProto, attrs: &Attrs, place: &str) -> Result<Vec<ValueId>> {
    let x = walk.value(input_name(proto, 0, place)?, place)?;
    let lengths = match proto.input.get(1).filter(|n| !n.is_empty()) {
        Some(name) => Some(walk.value(name, place)?),
        None => None,
    };
    let probe = Node {
        op: "SplitToSequence".into(),
        domain: String::new(),
        name: proto.name.clone(),
        inputs: vec![Some(x), lengths],
        outputs: Vec::new(),
        attrs: attrs.clone(),
        metadata: Vec::new(),
    };
    let view = View::new(&walk.graph, &probe);
    let axis = view.axis_attr(0, 0)?;
    let n = view.shape(0)?[axis];
    let too_many = || view.error(format!("makes a sequence of more than {LONGEST} parts"));
    let (parts, keep) = match lengths {
        None if n > LONGEST => return Err(too_many()),
        None => (vec![1; n], attrs.get_int("keepdims", 1) != 0),
        Some(v) if walk.graph.rank(v) == 0 => {
            let each = usize::try_from(view.first_int(1, 1)?).unwrap_or(0).max(1);
            if n.div_ceil(each) > LONGEST {
                return Err(too_many());
            }
            let part = |i| each.min(n - i * each);
            ((0..n.div_ceil(each)).map(part).collect(), true)
        }
        Some(_) => {
            let count = view.ints(1)?.map_or(0, |given| given.len());
            (view.split_parts(count)?, true)
        }
    };
    let (mut start, mut list) = (0, Vec::with_capacity(parts.len()));
    for part in parts {
        let mut piece = walk.graph.slice(x, axis, start, start + part)?;
        if !keep {
            let axes = walk.graph.ints(&[axis as i64]);
            piece = walk.graph.op("Squeeze", &[piece, axes], Attrs::new())?;
        }
        list.push(piece);
        start += part;
    }
    Ok(list)
}
