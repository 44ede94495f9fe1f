//! Passes over whole graphs on their way from what an exporter wrote to what a runtime is given: precisions, newer operator sets,
//! operators that runtimes lack.

mod groups;
pub mod halves;
mod ones;
mod raise;
mod single_around;

pub use groups::expand_group_norms;
pub use ones::drop_ones;
pub use raise::raise;
pub use single_around::single_around;
