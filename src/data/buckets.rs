//! Aspect-ratio buckets: the sizes that training images are brought to, all of about as many pixels.
//!
//! As sd-scripts makes them: for every width that is a multiple of the step, the largest height with which the image has no
//! more pixels than the square, and the same the other way round. Both images of a pair share a bucket, since they share
//! noise: the one whose aspect ratio is nearest to the geometric mean of theirs.

use super::image::Size;
use crate::config::data::BucketConfig;

/// The sizes of a data set's images.
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    square: Size,
    /// In the order of their aspect ratios; at least the square.
    sizes: Vec<Size>,
}

impl Buckets {
    /// Squares of `resolution` pixels, or the buckets around them.
    pub fn new(resolution: u32, config: Option<&BucketConfig>) -> Self {
        let square = Size::square(resolution);
        let mut sizes = vec![square];
        if let Some(config) = config {
            let [min, max] = config.sides(resolution);
            let area = u64::from(resolution) * u64::from(resolution);
            for width in (min..=max).step_by(config.step as usize) {
                let step = u64::from(config.step);
                let height = (area / u64::from(width) / step * step).min(u64::from(max)) as u32;
                if height >= min {
                    sizes.extend([
                        Size { height, width },
                        Size {
                            height: width,
                            width: height,
                        },
                    ]);
                }
            }
        }
        sizes.sort_by(|a, b| a.log_aspect().total_cmp(&b.log_aspect()).then(a.cmp(b)));
        sizes.dedup();
        Self { square, sizes }
    }

    /// All sizes, the narrowest first.
    pub fn sizes(&self) -> &[Size] {
        &self.sizes
    }

    /// The size for a pair of images that were made in these sizes.
    pub fn of_pair(&self, originals: [Size; 2]) -> Size {
        if originals.iter().any(|size| size.height == 0 || size.width == 0) {
            // Unreadable; whoever decodes it will say so.
            return self.square;
        }
        let wanted = originals.iter().map(Size::log_aspect).sum::<f64>() / 2.0;
        let far = |size: &Size| (size.log_aspect() - wanted).abs();
        let nearest = self.sizes.iter().min_by(|a, b| far(a).total_cmp(&far(b)));
        *nearest.expect("there is always the square")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u32, height: u32) -> Size {
        Size { height, width }
    }

    #[test]
    fn sdxl_has_the_sizes_that_its_paper_lists() {
        let buckets = Buckets::new(1024, Some(&BucketConfig::default()));
        let all = buckets.sizes();
        // Appendix I of Podell et al. 2023, some of them (height, width), where the area stays below 1024².
        for (height, width) in [
            (512, 2048),
            (640, 1600),
            (768, 1344),
            (832, 1216),
            (1024, 1024),
            (1152, 896),
            (2048, 512),
        ] {
            assert!(all.contains(&Size { height, width }), "{height}x{width} {all:?}");
        }
        for size in all {
            assert!(size.height % 64 == 0 && size.width % 64 == 0, "{size}");
            assert!(
                size.pixels() <= 1024 * 1024 && size.pixels() > 1024 * 1024 * 85 / 100,
                "{size}"
            );
            assert!(all.contains(&Size {
                height: size.width,
                width: size.height
            }));
        }
    }

    #[test]
    fn a_pair_gets_the_size_between_its_images() {
        let buckets = Buckets::new(1024, Some(&BucketConfig::default()));
        let of = |a, b| buckets.of_pair([a, b]);
        assert_eq!(of(size(512, 512), size(768, 768)), size(1024, 1024));
        assert_eq!(of(size(1344, 768), size(2688, 1536)), size(1344, 768));
        assert_eq!(of(size(768, 1344), size(768, 1344)), size(768, 1344));
        // As much wider than high as the other is higher than wide.
        assert_eq!(of(size(1344, 768), size(768, 1344)), size(1024, 1024));
        assert_eq!(of(size(5000, 100), size(5000, 100)), size(2048, 512));
        let squares = Buckets::new(512, None);
        assert_eq!(
            (squares.sizes(), squares.of_pair([size(9, 1); 2])),
            (&[size(512, 512)][..], size(512, 512))
        );
        assert_eq!(of(size(0, 0), size(1344, 768)), size(1024, 1024));
    }
}
