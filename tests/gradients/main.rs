//! Gradient rules against central differences, operator by operator, over random shapes, attributes and broadcasting.

#[path = "../gradcheck/mod.rs"]
mod gradcheck;

mod arrange;
mod attention;
mod conv;
mod elementwise;
mod gather;
mod matmul;
mod norm;
mod reduce;
mod resize;
