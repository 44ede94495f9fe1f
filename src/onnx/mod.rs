//! ONNX models as static graphs.
//!
//! A file is read by [`Model::read`] (external data stays where it is), made static by [`specialize`] (dimensions fixed,
//! integer sub-graphs folded, every shape known), grown by the builder methods of [`Graph`], and written by
//! [`write::save`] or handed to a session as bytes. This module alone knows protobuf.

pub mod attr;
pub mod build;
pub mod data;
pub mod einsum;
mod eval;
pub mod graph;
pub mod infer;
mod proto;
pub mod read;
mod sequence;
pub mod specialize;
pub mod view;
pub mod write;

pub use attr::{Attr, Attrs};
pub use data::{Constant, TensorData};
pub use graph::{Graph, Node, TensorType, ValueId};
pub use read::{Dim, InputInfo, Model};
pub use specialize::{Dims, Options as SpecializeOptions, specialize};
pub use view::View;
