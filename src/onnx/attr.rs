//! Node attributes with the readers that rules use.

use std::sync::Arc;

use super::data::Constant;
use super::proto;
use crate::{Error, Result};

/// One attribute value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<String>),
    Tensor(Constant),
    /// A subgraph (`If`, `Loop`, `Scan`); kept as read, resolved when the graph is made static.
    Graph(Arc<proto::GraphProto>),
}

/// The attributes of a node, in file order. Few per node, so a vector beats a map.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attrs(pub Vec<(String, Attr)>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute; for building nodes in one expression.
    pub fn with(mut self, name: &str, value: Attr) -> Self {
        self.0.push((name.to_owned(), value));
        self
    }

    /// Adds an integer.
    pub fn int(self, name: &str, value: i64) -> Self {
        self.with(name, Attr::Int(value))
    }

    /// Adds a float.
    pub fn float(self, name: &str, value: f32) -> Self {
        self.with(name, Attr::Float(value))
    }

    /// Adds a list of integers.
    pub fn ints(self, name: &str, values: &[i64]) -> Self {
        self.with(name, Attr::Ints(values.to_vec()))
    }

    /// Adds a string.
    pub fn str(self, name: &str, value: &str) -> Self {
        self.with(name, Attr::Str(value.to_owned()))
    }

    /// The attribute, if the node has it.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }

    /// Integer attribute, if present.
    pub fn opt_int(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Attr::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// Integer attribute with ONNX's default.
    pub fn get_int(&self, name: &str, default: i64) -> i64 {
        self.opt_int(name).unwrap_or(default)
    }

    /// Float attribute with ONNX's default.
    pub fn get_float(&self, name: &str, default: f32) -> f32 {
        match self.get(name) {
            Some(Attr::Float(v)) => *v,
            _ => default,
        }
    }

    /// String attribute with ONNX's default.
    pub fn get_str<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        match self.get(name) {
            Some(Attr::Str(v)) => v,
            _ => default,
        }
    }

    /// List of integers, if present.
    pub fn opt_ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(Attr::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// Reads the attributes of a protobuf node. Attributes that refer to a function's own attributes are looked up in
    /// `outer`, those of the calling node.
    pub(super) fn from_proto(list: &[proto::AttributeProto], outer: &Attrs, place: &str) -> Result<Self> {
        use proto::AttributeType as T;
        let text = |b: &prost::bytes::Bytes| String::from_utf8_lossy(b).into_owned();
        let mut attrs = Vec::with_capacity(list.len());
        for a in list {
            if !a.ref_attr_name.is_empty() {
                if let Some(value) = outer.get(&a.ref_attr_name) {
                    attrs.push((a.name.clone(), value.clone()));
                }
                continue;
            }
            let value = match a.r#type() {
                T::Float => Attr::Float(a.f),
                T::Int => Attr::Int(a.i),
                T::String => Attr::Str(text(&a.s)),
                T::Ints => Attr::Ints(a.ints.clone()),
                T::Floats => Attr::Floats(a.floats.clone()),
                T::Strings => Attr::Strs(a.strings.iter().map(text).collect()),
                T::Tensor => match &a.t {
                    Some(t) => Attr::Tensor(Constant::from_proto(t, None)?),
                    None => continue,
                },
                T::Graph => match &a.g {
                    Some(g) => Attr::Graph(Arc::new(g.clone())),
                    None => continue,
                },
                other => {
                    return Err(Error::bad(
                        place,
                        format!(
                            "attribute `{}` has type {other:?}, which ortdpo does not read",
                            a.name
                        ),
                        "Export the model without it.",
                    ));
                }
            };
            attrs.push((a.name.clone(), value));
        }
        Ok(Self(attrs))
    }

    /// Writes the attributes as protobuf.
    pub(super) fn to_proto(&self) -> Vec<proto::AttributeProto> {
        use proto::AttributeType as T;
        let one = |(name, value): &(String, Attr)| {
            let mut a = proto::AttributeProto {
                name: name.clone(),
                ..Default::default()
            };
            let kind = match value {
                Attr::Int(v) => {
                    a.i = *v;
                    T::Int
                }
                Attr::Float(v) => {
                    a.f = *v;
                    T::Float
                }
                Attr::Str(v) => {
                    a.s = v.clone().into_bytes().into();
                    T::String
                }
                Attr::Ints(v) => {
                    a.ints.clone_from(v);
                    T::Ints
                }
                Attr::Floats(v) => {
                    a.floats.clone_from(v);
                    T::Floats
                }
                Attr::Strs(v) => {
                    a.strings = v.iter().map(|s| s.clone().into_bytes().into()).collect();
                    T::Strings
                }
                Attr::Tensor(v) => {
                    a.t = Some(v.to_proto("", None));
                    T::Tensor
                }
                Attr::Graph(g) => {
                    a.g = Some((**g).clone());
                    T::Graph
                }
            };
            a.set_type(kind);
            a
        };
        self.0.iter().map(one).collect()
    }
}
