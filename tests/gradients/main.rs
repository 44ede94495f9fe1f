//! Gradient rules against central differences, operator by operator, over random shapes, attributes and broadcasting.

#[path = "../gradcheck/mod.rs"]
mod gradcheck;

mod arrange;
mod elementwise;
mod gather;
mod reduce;
