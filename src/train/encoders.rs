//! The pipeline's encoders, which are not loaded where that would take more memory than the run may.

use crate::Result;
use crate::config::bytes::ByteSize;
use crate::data::image::Size;
use crate::data::{CaptionEncoder, Encoders, Identity, ImageEncoder, OnnxEncoders};
use crate::forecast::Encoding;
use crate::pipeline::LatentScaling;

/// See the module's text. They are asked for only where the cache lacks something.
pub struct WithinBudget<'a> {
    /// The encoders.
    pub encoders: OnnxEncoders<'a>,
    /// What the process may take.
    pub budget: Option<ByteSize>,
    /// Pictures that are encoded at once, at most.
    pub batch: usize,
}

impl Encoders for WithinBudget<'_> {
    fn identity(&self) -> Result<Identity> {
        self.encoders.identity()
    }

    fn scaling(&self) -> Result<LatentScaling> {
        self.encoders.scaling()
    }

    fn images(&self, sizes: &[Size]) -> Result<Box<dyn ImageEncoder + '_>> {
        let largest = sizes.iter().max_by_key(|size| size.pixels());
        if let (Some(budget), Some(size)) = (self.budget, largest) {
            let bytes = Encoding::images(self.encoders.model, size.sides(), self.batch)?;
            Encoding::within(budget, "pictures", bytes, ", make data.encode_batch smaller")?;
        }
        self.encoders.images(sizes)
    }

    fn captions(&self) -> Result<Box<dyn CaptionEncoder + '_>> {
        if let Some(budget) = self.budget {
            let bytes = Encoding::captions(self.encoders.model)?;
            Encoding::within(budget, "captions", bytes, "")?;
        }
        self.encoders.captions()
    }
}
