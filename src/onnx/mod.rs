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
mod groups;
pub mod halves;
pub mod infer;
mod literal;
mod liveness;
mod location;
mod ones;
mod order;
mod patch;
mod print;
mod proto;
mod raise;
pub mod read;
mod save;
mod sequence;
mod single;
mod single_around;
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
pub use groups::expand_group_norms;
pub use liveness::BufferEvent;
pub use location::check_files;
pub use ones::drop_ones;
pub use order::{SHAPE_ONLY, Token};
pub use patch::{Replacement, save_patched};
pub use raise::raise;
pub use read::{Dim, InputInfo, Model};
pub use save::save;
pub use single_around::single_around;
pub use specialize::{Options as SpecializeOptions, specialize};
pub use validate::validate;
pub use view::View;
