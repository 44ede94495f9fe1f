//! Letters: a bitmap font of 5 by 9 pixels for printable ASCII, drawn for this program in `font.txt`.
//!
//! `font.txt` holds six rows of sixteen glyphs: a line with the characters, then nine lines of pixels, `#` for ink.
//! The last glyph, a box, stands for every character that has none.

use image::{Rgb, RgbImage};

const SHEET: &str = include_str!("font.txt");
const FIRST: char = ' ';
const PER_ROW: usize = 16;
/// Characters from the start of one glyph to the next in `font.txt`.
const PITCH: usize = 7;
const GLYPH_WIDTH: usize = 5;
const GLYPH_HEIGHT: usize = 9;
/// The box, after `~`.
const MISSING: usize = 95;

/// Pixels from one letter to the next, unscaled.
pub(super) const ADVANCE: u32 = GLYPH_WIDTH as u32 + 1;
/// Pixels from one line to the next, unscaled.
pub(super) const LINE: u32 = GLYPH_HEIGHT as u32 + 2;

/// Draws one line with its upper left corner at `(x, y)`, every pixel of a glyph as a square of `scale` pixels.
/// What leaves the image is cut off.
pub(super) fn draw(image: &mut RgbImage, (x, y): (u32, u32), text: &str, scale: u32, ink: Rgb<u8>) {
    for (index, letter) in text.chars().flat_map(spelled).enumerate() {
        let left = x + index as u32 * ADVANCE * scale;
        for (row, column) in inked(letter) {
            fill(image, left + column * scale, y + row * scale, scale, ink);
        }
    }
}

/// Number of glyphs a text is drawn with.
pub(super) fn length(text: &str) -> usize {
    text.chars().flat_map(spelled).count()
}

/// What a character is drawn as: itself, or a neighbour in ASCII that reads the same.
fn spelled(letter: char) -> impl Iterator<Item = char> {
    let ascii = match letter {
        '\u{2018}' | '\u{2019}' => "'",
        '\u{201c}' | '\u{201d}' => "\"",
        '\u{2010}'..='\u{2015}' | '\u{2212}' => "-",
        '\u{d7}' => "x",
        '\u{b1}' => "+/-",
        '\u{2026}' => "...",
        '\u{2192}' => "->",
        '\u{a0}' | '\t' => " ",
        _ => "",
    };
    let itself = ascii.is_empty().then_some(letter);
    ascii.chars().chain(itself)
}

/// `(row, column)` of the pixels with ink.
fn inked(letter: char) -> impl Iterator<Item = (u32, u32)> {
    let index = match letter {
        ' '..='~' => letter as usize - FIRST as usize,
        _ => MISSING,
    };
    let lines = SHEET.lines().skip(index / PER_ROW * (GLYPH_HEIGHT + 1) + 1);
    let left = index % PER_ROW * PITCH;
    lines.take(GLYPH_HEIGHT).enumerate().flat_map(move |(row, line)| {
        let pixels = line.bytes().skip(left).take(GLYPH_WIDTH).enumerate();
        pixels.filter_map(move |(column, pixel)| (pixel == b'#').then_some((row as u32, column as u32)))
    })
}

fn fill(image: &mut RgbImage, left: u32, top: u32, side: u32, ink: Rgb<u8>) {
    for y in top..(top + side).min(image.height()) {
        for x in left..(left + side).min(image.width()) {
            image.put_pixel(x, y, ink);
        }
    }
}
