//! Pillow's `Image.resize` for 8-bit RGB, bit for bit.
//!
//! Separable convolution, first along rows, then along columns, in 22-bit fixed point with rounding to 8 bits in
//! between. This is what Pillow does up to version 12; version 13 goes down the columns first for some sizes.

use image::RgbImage;

use super::{Kernel, Taps, antialiased, cubic};

/// Bits after the point of a weight: 32 less 8 of a value less 2 for negative lobes.
const PRECISION: u32 = 32 - 8 - 2;

/// The filters of Pillow that reference implementations use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Triangle.
    Bilinear,
    /// Keys' cubic, a = -0.5.
    Bicubic,
    /// Sinc windowed by sinc, three lobes.
    Lanczos,
}

impl Filter {
    pub(crate) fn kernel(self) -> Kernel {
        match self {
            Self::Bilinear => Kernel {
                support: 1.0,
                value: |x| (1.0 - x.abs()).max(0.0),
            },
            Self::Bicubic => Kernel {
                support: 2.0,
                value: |x| cubic(x, -0.5),
            },
            Self::Lanczos => Kernel {
                support: 3.0,
                value: lanczos,
            },
        }
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| match x == 0.0 {
        true => 1.0,
        false => (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI),
    };
    match (-3.0..3.0).contains(&x) {
        true => sinc(x) * sinc(x / 3.0),
        false => 0.0,
    }
}

/// A part of a resized picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Window {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

/// Resizes to `width` x `height`, both at least 1.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let whole = Window {
        left: 0,
        top: 0,
        width,
        height,
    };
    resize_window(image, width, height, filter, whole)
}

/// The `window` of what [`resize`] gives, without computing the rest.
///
/// # Panics
/// If the window is not inside `width` x `height`.
pub fn resize_window(image: &RgbImage, width: u32, height: u32, filter: Filter, window: Window) -> RgbImage {
    let along = |from: u32, to: u32, start: u32, length: u32| match from == to {
        true => None,
        false => Some(fixed(antialiased(
            from,
            to,
            start..start + length,
            filter.kernel(),
        ))),
    };
    let across = along(image.width(), width, window.left, window.width);
    let down = along(image.height(), height, window.top, window.height);
    // Rows that no target row looks at are not computed.
    let (first, last) = match &down {
        None => (window.top as usize, (window.top + window.height) as usize),
        Some(taps) => (
            taps.iter().map(|t| t.start).min().unwrap_or(0),
            taps.iter().map(|t| t.start + t.weights.len()).max().unwrap_or(0),
        ),
    };
    let stride = image.width() as usize * 3;
    let rows = &image.as_raw()[first * stride..last * stride];
    let narrow = match across {
        Some(taps) => along_rows(rows, stride, &taps),
        None => {
            let columns = window.left as usize * 3..(window.left + window.width) as usize * 3;
            rows.chunks_exact(stride)
                .flat_map(|row| &row[columns.clone()])
                .copied()
                .collect()
        }
    };
    let pixels = match down {
        Some(taps) => down_columns(&narrow, window.width as usize * 3, first, &taps),
        None => narrow,
    };
    RgbImage::from_raw(window.width, window.height, pixels)
        .expect("as many bytes as the window has were made")
}

fn fixed(taps: Vec<Taps<f64>>) -> Vec<Taps<i32>> {
    let round = |weight: f64| {
        let scaled = weight * f64::from(1 << PRECISION);
        (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
    };
    let convert = |taps: Taps<f64>| Taps {
        start: taps.start,
        weights: taps.weights.into_iter().map(round).collect(),
    };
    taps.into_iter().map(convert).collect()
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The sums start at one half, so that dropping the fraction rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn along_rows(pixels: &[u8], stride: usize, taps: &[Taps<i32>]) -> Vec<u8> {
    let rows = pixels.chunks_exact(stride);
    let mut out = Vec::with_capacity(rows.len() * taps.len() * 3);
    for row in rows {
        for Taps { start, weights } in taps {
            let window = &row[start * 3..(start + weights.len()) * 3];
            let mut sums = [HALF; 3];
            for (pixel, &weight) in window.chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sums.map(to_byte));
        }
    }
    out
}

/// `pixels` begin at row `first` of what the taps count in.
fn down_columns(pixels: &[u8], stride: usize, first: usize, taps: &[Taps<i32>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(taps.len() * stride);
    let mut sums = vec![0i32; stride];
    for Taps { start, weights } in taps {
        sums.fill(HALF);
        let rows = pixels[(start - first) * stride..].chunks_exact(stride);
        for (row, &weight) in rows.zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_and_the_same_size_changes_nothing() {
        let flat = RgbImage::from_pixel(37, 19, image::Rgb([3, 200, 255]));
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let small = resize(&flat, 8, 50, filter);
            assert!(small.pixels().all(|p| p.0 == [3, 200, 255]), "{filter:?}");
        }
        let noise = RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * 31 + y * 17) as u8; 3]));
        assert_eq!(resize(&noise, 9, 7, Filter::Bicubic), noise);
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let noise = RgbImage::from_fn(41, 29, |x, y| {
            image::Rgb([(x * 31 + y * 17) as u8, (x * y) as u8, y as u8])
        });
        let window = Window {
            left: 5,
            top: 3,
            width: 11,
            height: 14,
        };
        for (width, height) in [(30, 20), (41, 20), (30, 29), (41, 29), (80, 90)] {
            let whole = resize(&noise, width, height, Filter::Lanczos);
            let part = image::imageops::crop_imm(&whole, 5, 3, 11, 14).to_image();
            assert_eq!(
                resize_window(&noise, width, height, Filter::Lanczos, window),
                part
            );
        }
    }
}
