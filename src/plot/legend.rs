//! What each curve means, in rows above the drawing.

use super::canvas::{Anchor, Canvas};

/// Mean width of a character at 12 px.
pub const CHARACTER: f64 = 6.6;

const ROW: f64 = 17.0;
const SAMPLE: f64 = 24.0;

/// Most characters of a label.
const LONGEST: usize = 44;

/// A label that fits into a drawing.
pub fn shorten(label: &str, longest: usize) -> String {
    match label.chars().count() <= longest {
        true => label.to_owned(),
        false => label.chars().take(longest - 1).chain(['…']).collect(),
    }
}

/// Writes label, class and dash of each curve from `left` to `right`, the first row at `top`; returns the height.
pub fn draw(
    canvas: &mut Canvas,
    entries: &[(&str, String, &str)],
    (left, right): (f64, f64),
    top: f64,
) -> f64 {
    let (mut x, mut y) = (left, top);
    for (label, class, dash) in entries {
        let label = shorten(label, LONGEST);
        let width = SAMPLE + 6.0 + CHARACTER * label.chars().count() as f64 + 14.0;
        if x > left && x + width > right {
            (x, y) = (left, y + ROW);
        }
        canvas.polyline(class, &[(x, y - 4.0), (x + SAMPLE, y - 4.0)], dash, None);
        canvas.text("ink", (x + SAMPLE + 6.0, y), Anchor::Start, &label);
        x += width;
    }
    y + ROW - top
}
