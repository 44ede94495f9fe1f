//! ONNX models as static graphs.
//!
//! A file is read by [`Model::read`] (external data stays where it is), made static by [`specialize`] (dimensions fixed,
//! integer sub-graphs folded, every shape known), grown by the builder methods of [`Graph`], and written by
//! [`save`] or handed to a session as bytes. This module alone knows protobuf.

mod adaptable;
pub mod attr;
pub mod build;
mod chunks;
mod cost;
pub mod data;
mod dims;
pub mod einsum;
mod eval;
pub mod graph;
pub mod infer;
mod literal;
mod liveness;
mod location;
mod order;
mod patch;
mod print;
mod proto;
pub mod read;
mod rewrite;
mod save;
mod sequence;
mod single;
mod slices;
pub mod specialize;
pub mod validate;
pub mod view;
mod window;
pub mod write;
mod zeros;

pub use adaptable::{AdapterInputs, save_adaptable};
pub use attr::{Attr, Attrs};
pub use chunks::LARGE_MATRIX;
pub use cost::{Work, weight_bytes};
pub use data::{Constant, TensorData};
pub use dims::Dims;
pub use graph::{Graph, MICROSOFT, Node, TensorType, ValueId};
pub use liveness::BufferEvent;
pub use location::check_files;
pub use order::{SHAPE_ONLY, Token};
pub use patch::{Replacement, save_patched};
pub use read::{Dim, InputInfo, Model};
pub use rewrite::{drop_ones, expand_group_norms, halves, raise, single_around};
pub use save::save;
pub use specialize::{Options as SpecializeOptions, specialize};
pub use validate::validate;
pub use view::View;
