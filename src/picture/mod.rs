//! Pictures for people: PNG files that say how they were made, and labelled grids of images.
//!
//! Nothing here depends on fonts of the system: letters are drawn by a small bitmap font of this program.

mod font;
mod grid;
mod parameters;
mod png;
#[cfg(test)]
mod tests;

pub use self::grid::{Cell, Grid, grid};
pub use self::parameters::Parameters;
pub use self::png::{read_png_text, write_png};
