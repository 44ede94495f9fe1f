//! `torch.nn.functional.interpolate(align_corners=False)` on float pictures, bicubic and bilinear.
//!
//! Bicubic with `antialias=True` the kernel is Keys' cubic with a = -0.5, widened when shrinking; without, it is a = -0.75
//! over four samples whatever the scale, the border repeated. Values may leave the range they came from.

use super::{Kernel, Taps, antialiased, cubic};

/// A picture of float samples: planes (C,H,W) in one row-major buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Planes {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// As many values as the shape says.
    pub values: Vec<f32>,
}

/// Resizes every plane to `height` x `width`, both at least 1.
pub fn bicubic(planes: &Planes, height: usize, width: usize, antialias: bool) -> Planes {
    match antialias {
        true => resized(planes, height, width, widened_cubic),
        false => resized(planes, height, width, four_samples),
    }
}

/// Resizes every plane to `height` x `width`, both at least 1, between the two nearest samples whatever the scale.
pub fn bilinear(planes: &Planes, height: usize, width: usize) -> Planes {
    resized(planes, height, width, two_samples)
}

fn resized(planes: &Planes, height: usize, width: usize, taps: fn(usize, usize) -> Vec<Taps<f64>>) -> Planes {
    let [channels, from_height, from_width] = planes.shape;
    let narrow = along_rows(&planes.values, from_width, &taps(from_width, width));
    let down = taps(from_height, height);
    let plane = |values: &[f32]| down_columns(values, width, &down);
    let values = narrow.chunks_exact(from_height * width).flat_map(plane).collect();
    Planes {
        shape: [channels, height, width],
        values,
    }
}

/// Pillow's windows for the cubic kernel.
fn widened_cubic(source: usize, target: usize) -> Vec<Taps<f64>> {
    let kernel = Kernel {
        support: 2.0,
        value: |x| cubic(x, -0.5),
    };
    antialiased(source as u32, target as u32, 0..target as u32, kernel)
}

/// The samples on both sides of each position; none beyond the border. Positions are single precision, as in PyTorch.
fn two_samples(source: usize, target: usize) -> Vec<Taps<f64>> {
    let scale = source as f32 / target as f32;
    let taps = |i: usize| {
        let position = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let start = (position as usize).min(source - 1);
        let above = position - start as f32;
        match start + 1 < source {
            true => Taps {
                start,
                weights: vec![f64::from(1.0 - above), f64::from(above)],
            },
            false => Taps {
                start,
                weights: vec![1.0],
            },
        }
    };
    (0..target).map(taps).collect()
}

/// Four samples around each position; those beyond the border count for the border's own.
fn four_samples(source: usize, target: usize) -> Vec<Taps<f64>> {
    let scale = source as f64 / target as f64;
    let taps = |i: usize| {
        let position = (i as f64 + 0.5) * scale - 0.5;
        let below = position.floor();
        let inside = |offset: i64| (below as i64 + offset).clamp(0, source as i64 - 1) as usize;
        let (start, end) = (inside(-1), inside(2));
        let mut weights = vec![0.0; end - start + 1];
        for offset in -1..=2 {
            weights[inside(offset) - start] += cubic(below + offset as f64 - position, -0.75);
        }
        Taps { start, weights }
    };
    (0..target).map(taps).collect()
}

fn along_rows(values: &[f32], from_width: usize, taps: &[Taps<f64>]) -> Vec<f32> {
    let sum = |row: &[f32], taps: &Taps<f64>| {
        let window = &row[taps.start..taps.start + taps.weights.len()];
        let products = window.iter().zip(&taps.weights).map(|(&v, w)| f64::from(v) * w);
        products.sum::<f64>() as f32
    };
    let rows = values.chunks_exact(from_width);
    rows.flat_map(|row| taps.iter().map(move |taps| sum(row, taps)))
        .collect()
}

fn down_columns(values: &[f32], width: usize, taps: &[Taps<f64>]) -> Vec<f32> {
    let mut out = Vec::with_capacity(taps.len() * width);
    let mut sums = vec![0.0f64; width];
    for Taps { start, weights } in taps {
        sums.fill(0.0);
        for (row, &weight) in values[start * width..].chunks_exact(width).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += f64::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| sum as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat() {
        let flat = Planes {
            shape: [3, 11, 30],
            values: vec![0.25; 3 * 11 * 30],
        };
        for antialias in [true, false] {
            let resized = bicubic(&flat, 20, 7, antialias);
            assert_eq!(resized.shape, [3, 20, 7]);
            assert!(resized.values.iter().all(|v| (v - 0.25).abs() < 1e-6));
        }
    }
}
