//! From the bytes of an image file to what a VAE encoder takes.
//!
//! Follows the preprocessing of the public Diffusion-DPO code: convert to RGB, resize the shortest side with
//! Pillow's antialiased bilinear filter, crop a square, scale to [-1, 1]. Differs from it in two ways: the
//! orientation stored in the file's EXIF data is applied, and crop and flip are decided once per pair.

use std::fmt;
use std::io::Cursor;

use fast_image_resize as fir;
use serde::{Deserialize, Serialize};

use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, RgbImage};

/// Changes whenever the same file would give other values; part of every cache key.
pub const PREPROCESSING_VERSION: u32 = 1;

/// Wider or taller images than this are no pictures, and resizing them would need gigabytes.
const MAX_ASPECT_RATIO: u32 = 100;

/// Which part of the resized image is taken, and whether it is mirrored. Both images of a pair share it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Position of the part in the room that is left, 0 (left or top) to 1; `None` is the centre as
    /// torchvision's `CenterCrop` rounds it.
    pub crop: Option<(f64, f64)>,
    /// Mirror left and right.
    pub flip: bool,
}

impl View {
    /// The middle, as it is.
    pub const CENTER: Self = Self {
        crop: None,
        flip: false,
    };

    /// Where the crop of an image of `resized` size begins: left and top.
    fn begins(&self, resized: Size, target: Size) -> [usize; 2] {
        [
            offset(resized.width - target.width, self.crop.map(|c| c.0)) as usize,
            offset(resized.height - target.height, self.crop.map(|c| c.1)) as usize,
        ]
    }
}

/// Height and width of an image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Size {
    /// As high as wide.
    pub fn square(side: u32) -> Self {
        Self {
            height: side,
            width: side,
        }
    }

    /// Logarithm of width over height.
    pub fn log_aspect(&self) -> f64 {
        (f64::from(self.width) / f64::from(self.height)).ln()
    }

    /// Pixels in all.
    pub fn pixels(&self) -> u64 {
        u64::from(self.height) * u64::from(self.width)
    }

    /// Height and width, for arrays.
    pub fn sides(&self) -> [usize; 2] {
        [self.height as usize, self.width as usize]
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// What an image file says of itself before its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// `png`, `jpeg` or `webp`.
    pub format: &'static str,
    /// Pixels, as stored.
    pub width: u32,
    /// Pixels, as stored.
    pub height: u32,
}

impl Header {
    /// Reads it, without decoding anything.
    ///
    /// # Errors
    /// Why the file is no image.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let unusable = |error: &dyn std::fmt::Display| format!("cannot be decoded: {error}");
        let reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|e| unusable(&e))?;
        let format = match reader.format() {
            Some(ImageFormat::Png) => "png",
            Some(ImageFormat::Jpeg) => "jpeg",
            Some(ImageFormat::WebP) => "webp",
            _ => return Err(unusable(&"it is neither PNG nor JPEG nor WebP")),
        };
        let (width, height) = reader.into_dimensions().map_err(|e| unusable(&e))?;
        Ok(Self {
            format,
            width,
            height,
        })
    }
}

/// Decodes PNG, JPEG or WebP to 8-bit RGB, upright. Transparency is dropped, as Pillow's
/// `convert("RGB")` does; 16-bit channels keep their high byte (Pillow turns 16-bit greys white).
///
/// # Errors
/// Why the image cannot be used, for the list of skipped pairs.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let image = upright(bytes).map_err(|error| format!("cannot be decoded: {error}"))?;
    let (width, height) = (image.width(), image.height());
    let (short, long) = (width.min(height), width.max(height));
    match short {
        0 => Err("has no pixels".into()),
        _ if long / short > MAX_ASPECT_RATIO => {
            Err(format!("is {width}x{height}, too narrow to be a picture"))
        }
        _ => Ok(into_rgb8(image)),
    }
}

/// Size of the image that [`decode`] makes of a file, from its header alone; zeros where the header cannot be read.
pub fn upright_size(bytes: &[u8]) -> Size {
    let read = || -> image::ImageResult<Size> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        let mut decoder = reader.into_decoder()?;
        let (width, height) = decoder.dimensions();
        use image::metadata::Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        Ok(match decoder.orientation()? {
            Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => Size {
                height: width,
                width: height,
            },
            _ => Size { height, width },
        })
    };
    read().unwrap_or_default()
}

fn upright(bytes: &[u8]) -> image::ImageResult<DynamicImage> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn into_rgb8(image: DynamicImage) -> RgbImage {
    let high_byte = |value: u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            let wide = image.into_rgb16();
            ImageBuffer::from_fn(wide.width(), wide.height(), |x, y| {
                image::Rgb(wide.get_pixel(x, y).0.map(high_byte))
            })
        }
        other => other.into_rgb8(),
    }
}

/// Smallest size of the same shape that covers `target`. For squares this is what torchvision's `Resize` computes.
fn covering(original: Size, target: Size) -> Size {
    let scale = |side: u32, to: u32, from: u32| (u64::from(to) * u64::from(side) / u64::from(from)) as u32;
    let [narrower, as_wide] = [
        u64::from(original.width) * u64::from(target.height),
        u64::from(target.width) * u64::from(original.height),
    ];
    match narrower <= as_wide {
        true => Size {
            height: scale(original.height, target.width, original.width),
            width: target.width,
        },
        false => Size {
            height: target.height,
            width: scale(original.width, target.height, original.height),
        },
    }
}

/// Where a view of an image of `original` size begins, (top, left) in the image that was resized to cover `target`; of mirrored
/// views, in the mirrored image.
pub fn crop_of(original: Size, target: Size, view: View) -> [usize; 2] {
    let resized = covering(original, target);
    let [left, top] = view.begins(resized, target);
    match view.flip {
        true => [top, (resized.width - target.width) as usize - left],
        false => [top, left],
    }
}

/// Resizes until `target` is just covered: triangle filter, widened when shrinking.
///
/// One axis at a time, width first: the values between the passes are rounded to 8 bits, so the order shows
/// (by 1/255, in a fifth of the pixels). This is Pillow's up to 12.0; later ones choose it by size.
fn resize_to_cover(image: RgbImage, target: Size) -> RgbImage {
    let (width, height) = image.dimensions();
    let resized = covering(Size { height, width }, target);
    resize(
        resize(image, resized.width, height),
        resized.width,
        resized.height,
    )
}

fn resize(image: RgbImage, width: u32, height: u32) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image;
    }
    let (from_width, from_height) = image.dimensions();
    let source =
        fir::images::Image::from_vec_u8(from_width, from_height, image.into_raw(), fir::PixelType::U8x3)
            .expect("an RGB image holds three bytes per pixel");
    let mut target = fir::images::Image::new(width, height, fir::PixelType::U8x3);
    let bilinear = fir::ResizeAlg::Convolution(fir::FilterType::Bilinear);
    fir::Resizer::new()
        .resize(
            &source,
            &mut target,
            &fir::ResizeOptions::new().resize_alg(bilinear),
        )
        .expect("both images are RGB and neither is empty");
    RgbImage::from_raw(width, height, target.into_vec()).expect("the target was made with these sizes")
}

/// Where the part starts along one side with `room` pixels to spare.
fn offset(room: u32, position: Option<f64>) -> u32 {
    match position {
        // Python rounds halves to even, and so torchvision's CenterCrop does.
        None => (f64::from(room) / 2.0).round_ties_even() as u32,
        Some(position) => (position.clamp(0.0, 1.0) * f64::from(room)).round() as u32,
    }
}

/// An image ready to be viewed: it just covers the size that is trained on, 8-bit RGB.
#[derive(Debug, Clone)]
pub struct Prepared {
    resized: RgbImage,
    target: Size,
}

impl Prepared {
    /// Resizes a decoded image.
    pub fn new(image: RgbImage, target: Size) -> Self {
        let resized = resize_to_cover(image, target);
        Self { resized, target }
    }

    /// Size of its views.
    pub fn target(&self) -> Size {
        self.target
    }

    /// Writes one view as 3 planes of values in [-1, 1] (C,H,W) into `out`.
    ///
    /// # Panics
    /// If `out` does not hold 3 values a pixel of [`Prepared::target`].
    pub fn write(&self, view: View, out: &mut [f32]) {
        let [height, width] = self.target.sides();
        assert_eq!(out.len(), 3 * height * width, "room for one image");
        let (all_width, all_height) = self.resized.dimensions();
        let resized = Size {
            height: all_height,
            width: all_width,
        };
        let [left, top] = view.begins(resized, self.target);
        let row_bytes = all_width as usize * 3;
        let rows = self
            .resized
            .as_raw()
            .chunks_exact(row_bytes)
            .skip(top)
            .take(height);
        for (y, row) in rows.enumerate() {
            let pixels = row[left * 3..(left + width) * 3].chunks_exact(3);
            for (x, pixel) in pixels.enumerate() {
                let x = if view.flip { width - 1 - x } else { x };
                for (channel, &value) in pixel.iter().enumerate() {
                    // In this order torchvision's ToTensor and Normalize(0.5, 0.5) round.
                    out[(channel * height + y) * width + x] = (f32::from(value) / 255.0 - 0.5) / 0.5;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!(
            "{}/tests/fixtures/images/{name}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .unwrap()
    }

    fn view(prepared: &Prepared, view: View) -> Vec<f32> {
        let mut out = vec![f32::NAN; 3 * prepared.target.pixels() as usize];
        prepared.write(view, &mut out);
        out
    }

    /// Largest and mean difference to torchvision's image, in steps of 1/255.
    fn differences(name: &str, resolution: u32) -> (f32, f32) {
        let ours = view(
            &Prepared::new(decode(&fixture(name)).unwrap(), Size::square(resolution)),
            View::CENTER,
        );
        let theirs = image::load_from_memory(&fixture(&format!("expected/{name}.png")))
            .unwrap()
            .into_rgb8();
        let size = resolution as usize;
        let mut all = Vec::new();
        for (i, value) in ours.iter().enumerate() {
            let (channel, y, x) = (i / (size * size), i / size % size, i % size);
            let expected = theirs.get_pixel(x as u32, y as u32).0[channel];
            all.push(((value + 1.0) * 127.5 - f32::from(expected)).abs());
        }
        (
            all.iter().copied().fold(0.0, f32::max),
            all.iter().sum::<f32>() / all.len() as f32,
        )
    }

    #[test]
    fn equals_torchvision_on_every_kind_of_image() {
        let cases: serde_json::Value = serde_json::from_slice(&fixture("cases.json")).unwrap();
        let resolution = cases["resolution"].as_u64().unwrap() as u32;
        let cases = cases["cases"].as_array().unwrap();
        assert!(cases.len() > 25);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let image = decode(&fixture(name)).unwrap();
            assert_eq!(
                u64::from(image.width()),
                case["width"].as_u64().unwrap(),
                "{name}"
            );
            assert_eq!(
                u64::from(image.height()),
                case["height"].as_u64().unwrap(),
                "{name}"
            );
            let (largest, mean) = differences(name, resolution);
            let only_moved = image.width().min(image.height()) == resolution;
            // JPEG decoders agree to a step or two, by how they interpolate colour.
            let (largest_allowed, mean_allowed) = match name {
                "subsampled.jpg" => (2.01, 0.5),
                _ if name.ends_with(".jpg") => (1.01, 0.05),
                _ if only_moved => (1e-4, 1e-5),
                _ => (1.01, 0.01),
            };
            assert!(
                largest <= largest_allowed && mean <= mean_allowed,
                "{name}: {largest} {mean}"
            );
        }
    }

    #[test]
    fn a_flip_mirrors_and_a_crop_moves() {
        let prepared = Prepared::new(decode(&fixture("wide.png")).unwrap(), Size::square(32));
        let at = |position, flip| {
            view(
                &prepared,
                View {
                    crop: Some((position, 0.0)),
                    flip,
                },
            )
        };
        let (left, right, mirrored) = (at(0.0, false), at(1.0, false), at(0.0, true));
        let room = prepared.resized.width() as usize - 32;
        assert_eq!(room, 87);
        for (y, x) in [(0, 0), (3, 31), (31, 12)] {
            assert_eq!(left[y * 32 + x], mirrored[y * 32 + 31 - x]);
            let pixel = prepared.resized.get_pixel((x + room) as u32, y as u32).0[2];
            assert_eq!(right[(64 + y) * 32 + x], (f32::from(pixel) / 255.0 - 0.5) / 0.5);
        }
        assert_eq!(view(&prepared, View::CENTER), at(44.0 / 87.0, false));
    }

    #[test]
    fn a_bucket_takes_a_part_of_its_own_shape() {
        let image = decode(&fixture("wide.png")).unwrap();
        let (width, height) = image.dimensions();
        let original = Size { height, width };
        assert_eq!(upright_size(&fixture("wide.png")), original);
        assert_eq!(upright_size(b"<html>"), Size::default());
        let target = Size {
            height: 24,
            width: 48,
        };
        let prepared = Prepared::new(image, target);
        let resized = covering(original, target);
        assert_eq!(prepared.resized.dimensions(), (resized.width, resized.height));
        assert_eq!((resized.height, resized.width), (24, 24 * width / height));
        for flip in [false, true] {
            let view = View {
                crop: Some((1.0, 0.0)),
                flip,
            };
            let mut out = vec![f32::NAN; 3 * 24 * 48];
            prepared.write(view, &mut out);
            let [top, left] = crop_of(original, target, view);
            assert_eq!(
                (top, left),
                (0, if flip { 0 } else { resized.width as usize - 48 })
            );
            let (x, y) = (resized.width - 48 + 7, 5);
            let shown = if flip { 47 - 7 } else { 7 };
            let pixel = prepared.resized.get_pixel(x, y).0[1];
            assert_eq!(out[(24 + 5) * 48 + shown], (f32::from(pixel) / 255.0 - 0.5) / 0.5);
        }
    }

    #[test]
    fn sizes_are_those_of_upright_images() {
        let cases: serde_json::Value = serde_json::from_slice(&fixture("cases.json")).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let size = upright_size(&fixture(case["name"].as_str().unwrap()));
            assert_eq!(u64::from(size.width), case["width"].as_u64().unwrap(), "{case}");
            assert_eq!(u64::from(size.height), case["height"].as_u64().unwrap(), "{case}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_with_a_reason() {
        let png = fixture("rgb.png");
        assert!(decode(&png[..png.len() / 2]).is_err());
        assert!(decode(b"<html>404</html>").is_err());
        assert!(decode(b"").is_err());
        let mut line = Cursor::new(Vec::new());
        RgbImage::new(500, 2)
            .write_to(&mut line, image::ImageFormat::Png)
            .unwrap();
        assert!(decode(&line.into_inner()).unwrap_err().contains("500x2"));
    }
}
