//! From a decoded picture to what a network reads, step by step as the manifest lists them.

use image::{RgbImage, imageops};

use super::manifest::{Filter, Step};
use crate::resample::pillow;
use crate::resample::torch::{Planes, bicubic, bilinear};
use crate::{Error, Result};

/// A checked list of steps: every picture comes out with the same size.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    steps: Vec<Step>,
    height: usize,
    width: usize,
}

/// What is known of a picture between two steps, whatever its size was at first.
#[derive(Clone, Copy)]
enum Size {
    Any,
    Shortest(u32),
    Exact(u32, u32),
}

/// A picture between two steps.
enum Picture {
    Bytes(RgbImage),
    Floats(Planes),
}

impl Preprocessor {
    /// Checks that the steps fit together and end in floats of one size. Errors name the place in the manifest.
    ///
    /// # Errors
    /// A step that cannot follow the one before, or a size that stays open.
    pub fn new(steps: &[Step]) -> Result<Self> {
        let (mut size, mut is_float) = (Size::Any, false);
        for (index, step) in steps.iter().enumerate() {
            let place = || format!("scorer.image.preprocessing[{index}].step");
            (size, is_float) =
                after(step, size, is_float).map_err(|(what, remedy)| Error::bad(place(), what, remedy))?;
        }
        let place = "scorer.image.preprocessing";
        match size {
            Size::Exact(height, width) if is_float => Ok(Self {
                steps: steps.to_vec(),
                height: height as usize,
                width: width as usize,
            }),
            Size::Exact(..) => {
                let what = "ends with bytes, but networks read floats";
                Err(Error::bad(
                    place,
                    what,
                    "Add step to_unit_float_v1 and, usually, normalize_v1.",
                ))
            }
            _ => {
                let what = "leaves pictures of different sizes";
                Err(Error::bad(
                    place,
                    what,
                    "End the resizing with a crop, or with pillow_resize_exact_v1.",
                ))
            }
        }
    }

    /// Channels, height, width of every result.
    pub fn shape(&self) -> [usize; 3] {
        [3, self.height, self.width]
    }

    /// Values of one result.
    pub fn len(&self) -> usize {
        3 * self.height * self.width
    }

    /// Never: no picture has no pixels.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Prepares a picture: planes (C,H,W) into `out`.
    ///
    /// # Panics
    /// If `out` does not hold [`len`](Self::len) values or the picture has no pixels.
    pub fn apply(&self, image: &RgbImage, out: &mut [f32]) {
        assert!(
            image.width() > 0 && image.height() > 0,
            "decoding refuses empty pictures"
        );
        let mut picture = Picture::Bytes(image.clone());
        let mut steps = self.steps.iter().peekable();
        while let Some(step) = steps.next() {
            // A resize that is followed by a crop computes only what the crop leaves.
            let crop = match (step, steps.peek()) {
                (Step::PillowResizeShortestV1 { .. }, Some(next)) => crop_of(next),
                _ => None,
            };
            if crop.is_some() {
                steps.next();
            }
            picture = picture.after(step, crop);
        }
        match picture {
            Picture::Floats(planes) => out.copy_from_slice(&planes.values),
            Picture::Bytes(_) => unreachable!("a checked list of steps ends in floats"),
        }
    }
}

/// Why a step does not fit, and what to do.
type Misfit = (String, &'static str);

/// What is known after a step, given what is known before it.
fn after(step: &Step, size: Size, is_float: bool) -> Result<(Size, bool), Misfit> {
    let on = |floats: bool| match (floats, is_float) {
        (false, true) => Err((
            "works on bytes, but comes after to_unit_float_v1".to_owned(),
            "Put it before.",
        )),
        (true, false) => Err((
            "works on floats, but comes before to_unit_float_v1".to_owned(),
            "Put it behind.",
        )),
        _ => Ok(()),
    };
    match *step {
        Step::PillowResizeShortestV1 { size, .. } => {
            on(false)?;
            at_least_one(size)?;
            Ok((Size::Shortest(size), false))
        }
        Step::PillowResizeExactV1 { height, width, .. } => {
            on(false)?;
            at_least_one(height.min(width))?;
            Ok((Size::Exact(height, width), false))
        }
        Step::CenterCropTorchvisionV1 { size: crop } | Step::CenterCropTransformersV1 { size: crop } => {
            on(false)?;
            at_least_one(crop)?;
            let room = match size {
                Size::Any => return Err(("crops pictures of unknown size".into(), "Resize them first.")),
                Size::Shortest(short) => short,
                Size::Exact(height, width) => height.min(width),
            };
            match crop <= room {
                true => Ok((Size::Exact(crop, crop), false)),
                false => Err((
                    format!("crops {crop} pixels from pictures that may have only {room}"),
                    "Resize to at least the size of the crop.",
                )),
            }
        }
        Step::ToUnitFloatV1 {} => {
            on(false)?;
            Ok((size, true))
        }
        Step::TorchResizeLongestV1 { size } | Step::TorchResizeLongestAntialiasedV1 { size } => {
            on(true)?;
            at_least_one(size)?;
            Ok((Size::Exact(size, size), true))
        }
        Step::CleanFidResizeV1 { height, width } => {
            on(false)?;
            at_least_one(height.min(width))?;
            Ok((Size::Exact(height, width), true))
        }
        Step::TorchResizeBilinearV1 { height, width } => {
            on(true)?;
            at_least_one(height.min(width))?;
            Ok((Size::Exact(height, width), true))
        }
        Step::NormalizeV1 { std, .. } => {
            on(true)?;
            match std.iter().all(|&s| s > 0.0) {
                true => Ok((size, true)),
                false => Err(("divides by a std that is not above 0".into(), "Mend the numbers.")),
            }
        }
    }
}

fn at_least_one(size: u32) -> Result<(), Misfit> {
    match size {
        0 => Err(("makes pictures without pixels".into(), "Give the size in pixels.")),
        _ => Ok(()),
    }
}

/// Pixels of the square, and the rounding of its place.
#[derive(Clone, Copy)]
struct Crop {
    size: u32,
    offset: fn(u32) -> u32,
}

fn crop_of(step: &Step) -> Option<Crop> {
    match *step {
        Step::CenterCropTorchvisionV1 { size } => Some(Crop {
            size,
            // Python rounds halves to even.
            offset: |room| (f64::from(room) / 2.0).round_ties_even() as u32,
        }),
        Step::CenterCropTransformersV1 { size } => Some(Crop {
            size,
            offset: |room| room / 2,
        }),
        _ => None,
    }
}

impl From<Filter> for pillow::Filter {
    fn from(filter: Filter) -> Self {
        match filter {
            Filter::Bilinear => Self::Bilinear,
            Filter::Bicubic => Self::Bicubic,
            Filter::Lanczos => Self::Lanczos,
        }
    }
}

impl Picture {
    fn after(self, step: &Step, then: Option<Crop>) -> Self {
        match (self, step) {
            (Self::Bytes(image), &Step::PillowResizeShortestV1 { size, filter }) => {
                Self::Bytes(resize_shortest(&image, size, filter, then))
            }
            (
                Self::Bytes(image),
                &Step::PillowResizeExactV1 {
                    height,
                    width,
                    filter,
                },
            ) => Self::Bytes(pillow::resize(&image, width, height, filter.into())),
            (Self::Bytes(image), Step::ToUnitFloatV1 {}) => Self::Floats(to_unit(&image)),
            (Self::Bytes(image), &Step::CleanFidResizeV1 { height, width }) => {
                Self::Floats(clean_fid_resize(&image, height as usize, width as usize))
            }
            (Self::Bytes(image), crop) => match crop_of(crop) {
                Some(Crop { size, offset }) => {
                    let (left, top) = (offset(image.width() - size), offset(image.height() - size));
                    Self::Bytes(imageops::crop_imm(&image, left, top, size, size).to_image())
                }
                None => unreachable!("a checked list of steps gives bytes to steps for bytes"),
            },
            (Self::Floats(planes), &Step::TorchResizeLongestV1 { size }) => {
                Self::Floats(resize_longest(&planes, size as usize, false))
            }
            (Self::Floats(planes), &Step::TorchResizeLongestAntialiasedV1 { size }) => {
                Self::Floats(resize_longest(&planes, size as usize, true))
            }
            (Self::Floats(planes), &Step::TorchResizeBilinearV1 { height, width }) => {
                Self::Floats(bilinear(&planes, height as usize, width as usize))
            }
            (Self::Floats(mut planes), Step::NormalizeV1 { mean, std }) => {
                let per_plane = planes.shape[1] * planes.shape[2];
                for (plane, (mean, std)) in planes
                    .values
                    .chunks_exact_mut(per_plane)
                    .zip(mean.iter().zip(std))
                {
                    plane.iter_mut().for_each(|value| *value = (*value - mean) / std);
                }
                Self::Floats(planes)
            }
            (Self::Floats(_), _) => unreachable!("a checked list of steps gives floats to steps for floats"),
        }
    }
}

/// Shortest side to `size`; the other is rounded down, as torchvision and transformers compute it.
fn resize_shortest(image: &RgbImage, size: u32, filter: Filter, crop: Option<Crop>) -> RgbImage {
    let (width, height) = image.dimensions();
    let other = |long: u32, short: u32| (u64::from(size) * u64::from(long) / u64::from(short)) as u32;
    let (width, height) = match width <= height {
        true => (size, other(height, width)),
        false => (other(width, height), size),
    };
    match crop {
        None => pillow::resize(image, width, height, filter.into()),
        Some(Crop { size, offset }) => {
            let window = pillow::Window {
                left: offset(width - size),
                top: offset(height - size),
                width: size,
                height: size,
            };
            pillow::resize_window(image, width, height, filter.into(), window)
        }
    }
}

/// Pillow's bicubic on floats of 0 to 255, which PyTorch's antialiased one equals, without rounding in between.
fn clean_fid_resize(image: &RgbImage, height: usize, width: usize) -> Planes {
    let mut resized = bicubic(&to_planes(image, f32::from), height, width, true);
    resized
        .values
        .iter_mut()
        .for_each(|value| *value = value.clamp(0.0, 255.0));
    resized
}

fn to_unit(image: &RgbImage) -> Planes {
    to_planes(image, |byte| f32::from(byte) / 255.0)
}

fn to_planes(image: &RgbImage, value: fn(u8) -> f32) -> Planes {
    let (width, height) = image.dimensions();
    let area = width as usize * height as usize;
    let mut values = vec![0.0; 3 * area];
    let (red, rest) = values.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    let pixels = image.as_raw().chunks_exact(3);
    for (((pixel, red), green), blue) in pixels.zip(red).zip(green).zip(blue) {
        *red = value(pixel[0]);
        *green = value(pixel[1]);
        *blue = value(pixel[2]);
    }
    Planes {
        shape: [3, height as usize, width as usize],
        values,
    }
}

/// HPSv2's `ResizeMaxSize`: the longest side to `size`, then black around the middle. Unlike there, pictures whose longest
/// side has that size already are made square as well, and no side becomes 0.
fn resize_longest(planes: &Planes, size: usize, antialias: bool) -> Planes {
    let [channels, height, width] = planes.shape;
    let scale = size as f64 / height.max(width) as f64;
    let scaled = |side: usize| ((side as f64 * scale).round_ties_even() as usize).max(1);
    let resized = match scale == 1.0 {
        true => planes.clone(),
        false => bicubic(planes, scaled(height), scaled(width), antialias),
    };
    let [_, height, width] = resized.shape;
    let (top, left) = ((size - height) / 2, (size - width) / 2);
    let mut square = Planes {
        shape: [channels, size, size],
        values: vec![0.0; channels * size * size],
    };
    for (index, row) in resized.values.chunks_exact(width).enumerate() {
        let (channel, y) = (index / height, index % height);
        let start = (channel * size + top + y) * size + left;
        square.values[start..start + width].copy_from_slice(row);
    }
    square
}
