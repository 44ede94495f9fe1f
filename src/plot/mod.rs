//! Charts as SVG: curves, heat maps, intervals.
//!
//! The same drawing serves a web page and a paper. Elements therefore carry class names instead of colours:
//! [`Figure::inline`] leaves the colours to the page's variables, which change with its light and dark theme, and
//! [`Figure::file`] brings a style sheet with the light theme's colours along. Drawing libraries write the colours
//! into every element, where no theme reaches them; so the few shapes that are needed are written here.
//!
//! ```text
//! Chart, HeatMap, Intervals ──draw──► Figure ─┬─ inline ─► HTML
//!     scale: values to pixels, ticks          └─ file ───► .svg
//! ```

mod canvas;
mod chart;
mod heatmap;
mod intervals;
mod legend;
mod scale;
mod smooth;
#[cfg(test)]
mod tests;
mod theme;

pub use canvas::{Figure, escape};
pub use chart::{Axis, Chart, Rule, Series};
pub use heatmap::{HeatMap, Hue};
pub use intervals::{IntervalRow, Intervals};
pub use scale::{MINUS, Scaling, fixed, number};
pub use smooth::window;
pub use theme::{page_rules, variables};
