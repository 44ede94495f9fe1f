//! Labelled grids of images: contact sheets, images of several models side by side.

use std::borrow::Cow;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::font;

const PAPER: Rgb<u8> = Rgb([250, 250, 250]);
const INK: Rgb<u8> = Rgb([32, 32, 36]);
/// Images smaller than this are enlarged by a whole factor to at least this many pixels a side, larger ones reduced
/// to at most [`LARGEST`].
const SMALLEST: u32 = 256;
const LARGEST: u32 = 384;
/// Pixels between cells and around them.
const GAP: u32 = 12;
/// More of them between groups of columns.
const GROUP_GAP: u32 = 24;
/// Pixels of a font pixel.
const TEXT_SCALE: u32 = 2;
const TITLE_SCALE: u32 = 3;
/// Lines of a caption; what is longer ends in dots.
const CAPTION_LINES: usize = 4;

/// An image and what stands below it.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    /// 8-bit RGB of any size.
    pub image: &'a RgbImage,
    /// Wrapped to the cell's width; may be empty.
    pub caption: &'a str,
}

/// Images in rows and columns.
#[derive(Debug, Clone, Default)]
pub struct Grid<'a> {
    /// Above everything; may be empty.
    pub title: &'a str,
    /// Above the columns; may be empty or fewer than there are columns.
    pub headings: Vec<&'a str>,
    /// Row after row.
    pub cells: Vec<Cell<'a>>,
    /// Cells of a row.
    pub columns: usize,
    /// So many columns belong together, with a wider gap after them; 0 if none do.
    pub group: usize,
}

/// A grid without title and headings.
///
/// # Panics
/// As [`Grid::draw`].
pub fn grid(cells: &[Cell], columns: usize) -> RgbImage {
    let cells = cells.to_vec();
    Grid {
        cells,
        columns,
        ..Grid::default()
    }
    .draw()
}

impl Grid<'_> {
    /// The grid as an image. Pixels of small images stay visible squares, large images are averaged down.
    ///
    /// # Panics
    /// If there is no cell or no column.
    pub fn draw(&self) -> RgbImage {
        assert!(!self.cells.is_empty() && self.columns > 0, "a grid has cells");
        let images: Vec<Cow<RgbImage>> = self.cells.iter().map(|cell| to_show(cell.image)).collect();
        let layout = Layout::new(self, &images);
        let mut sheet = RgbImage::from_pixel(layout.width(), layout.height(), PAPER);
        if !self.title.is_empty() {
            let letters = letters(layout.width() - 2 * GAP, TITLE_SCALE);
            let title = wrapped(self.title, letters, 1).remove(0);
            font::draw(&mut sheet, (GAP, GAP), &title, TITLE_SCALE, INK);
        }
        for (column, heading) in self.headings.iter().take(self.columns).enumerate() {
            let place = (layout.left(column), layout.below_title);
            let fitting = wrapped(heading, layout.letters(), 1);
            font::draw(
                &mut sheet,
                place,
                fitting.first().map_or("", |line| line),
                TEXT_SCALE,
                INK,
            );
        }
        let mut top = layout.below_headings;
        for (row, height) in layout.row_heights.iter().enumerate() {
            let cells = row * self.columns..((row + 1) * self.columns).min(images.len());
            for (column, index) in cells.enumerate() {
                let left = layout.left(column);
                let image = images[index].as_ref();
                imageops::replace(&mut sheet, image, i64::from(left), i64::from(top));
                let mut y = top + layout.cell.1 + GAP / 2;
                for line in wrapped(self.cells[index].caption, layout.letters(), CAPTION_LINES) {
                    font::draw(&mut sheet, (left, y), &line, TEXT_SCALE, INK);
                    y += font::LINE * TEXT_SCALE;
                }
            }
            top += height;
        }
        sheet
    }
}

/// Where everything is, in pixels.
struct Layout {
    columns: u32,
    group: usize,
    /// Width and height of the room for an image.
    cell: (u32, u32),
    below_title: u32,
    below_headings: u32,
    /// Image, caption and gap of every row.
    row_heights: Vec<u32>,
}

impl Layout {
    fn new(grid: &Grid, images: &[Cow<RgbImage>]) -> Self {
        let largest = |side: fn(&RgbImage) -> u32| images.iter().map(|image| side(image)).max().unwrap_or(0);
        let cell = (largest(RgbImage::width).max(SMALLEST), largest(RgbImage::height));
        let if_any = |any: bool, scale: u32| if any { font::LINE * scale + GAP } else { 0 };
        let below_title = GAP + if_any(!grid.title.is_empty(), TITLE_SCALE);
        let below_headings = below_title + if_any(!grid.headings.is_empty(), TEXT_SCALE);
        let letters = letters(cell.0, TEXT_SCALE);
        let lines = |cell: &Cell| wrapped(cell.caption, letters, CAPTION_LINES).len() as u32;
        let row_height = |row: &[Cell]| {
            let text = row.iter().map(lines).max().unwrap_or(0) * font::LINE * TEXT_SCALE;
            cell.1 + text + GAP + if text > 0 { GAP / 2 } else { 0 }
        };
        Self {
            columns: grid.columns.min(grid.cells.len()) as u32,
            group: grid.group,
            cell,
            below_title,
            below_headings,
            row_heights: grid.cells.chunks(grid.columns).map(row_height).collect(),
        }
    }

    fn left(&self, column: usize) -> u32 {
        let groups_before = column.checked_div(self.group).unwrap_or(0);
        GAP + column as u32 * (self.cell.0 + GAP) + groups_before as u32 * GROUP_GAP
    }

    fn width(&self) -> u32 {
        let last = self.columns as usize - 1;
        self.left(last) + self.cell.0 + GAP
    }

    fn height(&self) -> u32 {
        self.below_headings + self.row_heights.iter().sum::<u32>()
    }

    /// Letters of a caption's line.
    fn letters(&self) -> usize {
        letters(self.cell.0, TEXT_SCALE)
    }
}

fn letters(width: u32, scale: u32) -> usize {
    // The last letter needs no gap after it.
    ((width + scale) / (font::ADVANCE * scale)) as usize
}

/// The image at a size for looking at.
fn to_show(image: &RgbImage) -> Cow<'_, RgbImage> {
    let (width, height) = image.dimensions();
    let long = width.max(height).max(1);
    if long < SMALLEST {
        let factor = SMALLEST.div_ceil(long);
        let nearest = imageops::resize(image, width * factor, height * factor, FilterType::Nearest);
        return Cow::Owned(nearest);
    }
    if long > LARGEST {
        let reduced = |side: u32| (side * LARGEST / long).max(1);
        return Cow::Owned(imageops::thumbnail(image, reduced(width), reduced(height)));
    }
    Cow::Borrowed(image)
}

/// Breaks a text into at most `most` lines of at most `letters` glyphs, at spaces where there are some.
fn wrapped(text: &str, letters: usize, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && font::length(&line) + 1 + font::length(word) > letters {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            for letter in word.chars() {
                if font::length(&line) >= letters {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(letter);
            }
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            while font::length(last) + 3 > letters && last.pop().is_some() {}
            last.push_str("...");
        }
    }
    lines
}
