//! Encoders for tests: plain arithmetic instead of models, and a count of what they were asked.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, ArrayView4, s};

use super::*;
use crate::config::data::MicroConditioning;
use crate::model_folder::ContentHash;
use crate::pipeline::{Embedding, LatentScaling, Moments, PromptTokens};
use crate::text::Tokens;

/// Length of an embedding; longer captions are cut.
const CONTEXT: usize = 16;

pub struct FakeEncoders {
    pub identity: u8,
    pub images: Cell<usize>,
    pub captions: Cell<usize>,
    /// Sessions that were loaded.
    pub loads: Cell<usize>,
}

impl FakeEncoders {
    pub fn new(identity: u8) -> Self {
        let (images, captions, loads) = Default::default();
        Self {
            identity,
            images,
            captions,
            loads,
        }
    }

    pub fn counts(&self) -> (usize, usize, usize) {
        (self.images.take(), self.captions.take(), self.loads.take())
    }
}

fn add(cell: &Cell<usize>, n: usize) {
    cell.set(cell.get() + n);
}

impl Encoders for FakeEncoders {
    fn identity(&self) -> Result<Identity> {
        Ok(Identity {
            images: ContentHash([self.identity; 32]),
            captions: ContentHash([9; 32]),
        })
    }

    fn scaling(&self) -> Result<LatentScaling> {
        Ok(LatentScaling {
            factor: 0.5,
            shift: 0.0,
        })
    }

    fn images(&self, _sizes: &[image::Size]) -> Result<Box<dyn ImageEncoder + '_>> {
        add(&self.loads, 1);
        Ok(Box::new(self))
    }

    fn captions(&self) -> Result<Box<dyn CaptionEncoder + '_>> {
        add(&self.loads, 1);
        Ok(Box::new(self))
    }
}

impl ImageEncoder for &FakeEncoders {
    /// Every fourth pixel, and a log variance of −4.
    fn encode(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>> {
        add(&self.images, images.shape()[0]);
        let moments = |image: ndarray::ArrayView3<f32>| {
            let mean = image.slice(s![.., ..;4, ..;4]).to_owned();
            let logvar = Some(Array3::from_elem(mean.dim(), -4.0));
            Moments { mean, logvar }
        };
        Ok(images.outer_iter().map(moments).collect())
    }
}

impl CaptionEncoder for &FakeEncoders {
    fn tokenize(&self, caption: &str) -> Result<PromptTokens> {
        let mut ids: Vec<i64> = caption.bytes().map(i64::from).collect();
        let truncated = ids.len() > CONTEXT;
        let used = ids.len().min(CONTEXT);
        ids.resize(CONTEXT, 0);
        Ok(PromptTokens(vec![Tokens { ids, used, truncated }]))
    }

    /// Each id and its negative.
    fn encode(&mut self, captions: &[&PromptTokens]) -> Result<Vec<Embedding>> {
        add(&self.captions, captions.len());
        let sign = |column: usize| if column == 0 { 1.0 } else { -1.0 };
        let embed = |tokens: &&PromptTokens| Embedding {
            hidden: Array2::from_shape_fn((CONTEXT, 2), |(i, column)| {
                tokens.0[0].ids[i] as f32 * sign(column)
            }),
            pooled: None,
        };
        Ok(captions.iter().map(embed).collect())
    }
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pairs")
        .join(name)
}

pub fn source(name: &str) -> ParquetPairs {
    ParquetPairs::open(&fixture(name), "train", Images::Pairs).unwrap()
}

pub const OPTIONS: EncodeOptions = EncodeOptions {
    resolution: 16,
    buckets: None,
    micro_conditioning: MicroConditioning::Image,
    views: Views {
        crops: 1,
        flip: false,
    },
    independent_views: false,
    keep_ties: false,
    max_skipped_share: 0.2,
    batch: 3,
    verify: true,
};

pub fn prepare(name: &str, encoders: &FakeEncoders, cache: &Path, options: EncodeOptions) -> Result<Dataset> {
    Dataset::prepare(&source(name), encoders, cache, options, &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
}
