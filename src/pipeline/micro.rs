//! SDXL's micro-conditioning: what the denoiser is told of each image beside its text (Podell et al. 2023, section 2.2).

/// Numbers of an image's `time_ids`.
pub const TIME_IDS: usize = 6;

/// `time_ids` of one image: height and width of the original, where the crop begins (top, left), height and width of what is
/// trained on; all in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeIds(pub [f32; TIME_IDS]);

impl TimeIds {
    /// Those of an image of `original` size that was resized and, from `crop` (top, left) on, cropped to `target`; sizes are
    /// height and width.
    pub fn new(original: [usize; 2], crop: [usize; 2], target: [usize; 2]) -> Self {
        let [o, c, t] = [original, crop, target].map(|pair| pair.map(|pixels| pixels as f32));
        Self([o[0], o[1], c[0], c[1], t[0], t[1]])
    }

    /// Those of an image that was neither resized nor cropped, as pictures are made.
    pub fn whole(size: [usize; 2]) -> Self {
        Self::new(size, [0, 0], size)
    }
}
