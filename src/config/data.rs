//! The `data:` section. What the keys do is in [`crate::data`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::require;
use crate::pairs::Choose;
use crate::{Error, Result};

/// Which preference pairs are trained and evaluated on, and how they are encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Format of the data set.
    pub kind: DataKind,
    /// Folder with the data set, or a single file of it. Online objectives with `rollout.prompts` or `rollout.labels` need none.
    pub path: PathBuf,
    /// Which images of a prompt meet where the data set ranks several of them: `hpdv2`, `imagereward`, `jsonl`, `imagefolder`.
    pub choose: Choose,
    /// Split that is trained on: files are named `SPLIT-*` or `SPLIT.*`, or lie in `SPLIT/`. Sets that are not divided are `train`.
    pub split: String,
    /// Split that is evaluated on; `null` takes the first of heldout, validation and test that is there.
    pub heldout_split: Option<String>,
    /// Side of the square training images in pixels, those of rollouts too, a multiple of 8: 512 for SD1.5, 1024 for SDXL.
    pub resolution: u32,
    /// Aspect-ratio buckets: images keep about their shape, in sizes of about `resolution`² pixels. Without them all are cut to
    /// squares. `{}` takes the usual ones.
    pub buckets: Option<BucketConfig>,
    /// What SDXL's denoiser is told of each image's size and crop. Other models are told nothing.
    pub micro_conditioning: MicroConditioning,
    /// What becomes of pairs without a winner in training; evaluation always leaves them out.
    pub ties: Ties,
    /// Share of visits at which a pair's caption is replaced by the empty one, for both of its images.
    pub prompt_dropout: f64,
    /// Train on mirrored images too, both of a pair alike. Doubles the cache.
    pub flip: bool,
    /// Squares taken of each image; 1 is the centre. Each is encoded and cached on its own.
    pub crops: u32,
    /// Draw the view of each image of a pair by itself, as the published Diffusion-DPO does its flips; otherwise both have the same
    /// crop and flip.
    pub independent_views: bool,
    /// Share of damaged rows above which the data set is refused.
    pub max_skipped_share: f64,
    /// Folder of the encoding cache; it may be shared by runs and deleted between them.
    pub cache: PathBuf,
    /// Compare the checksums of all cached encodings before training.
    pub verify_cache: bool,
    /// Images or captions encoded at once.
    pub encode_batch: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            kind: DataKind::Pickapic,
            path: PathBuf::new(),
            choose: Choose::All,
            split: "train".into(),
            heldout_split: None,
            resolution: 512,
            buckets: None,
            micro_conditioning: MicroConditioning::Image,
            ties: Ties::Drop,
            prompt_dropout: 0.2,
            flip: false,
            crops: 1,
            independent_views: false,
            max_skipped_share: 0.05,
            cache: PathBuf::from(".cache/encodings"),
            verify_cache: true,
            encode_batch: 8,
        }
    }
}

/// Format of a data set. docs/data.md shows what each looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// Parquet files with the columns of Pick-a-Pic v2.
    Pickapic,
    /// Parquet files with the columns `prompt`, and the images `chosen` and `rejected`.
    ChosenRejected,
    /// HPDv2's lists: `train.json` with `prompt`, `file_path`, and `human_preference` or `rank`.
    Hpdv2,
    /// HPDv3's lists: `train.json` with `prompt`, `path1` (preferred) and `path2`.
    Hpdv3,
    /// ImageRewardDB: a record per image with `prompt_id`, `prompt`, `image_path` and `rank`.
    Imagereward,
    /// JSON lines with `prompt`, `chosen` and `rejected`, or with two images and a label, or with ranked images.
    Jsonl,
    /// Hugging Face's imagefolder: a `metadata.jsonl` beside the images.
    Imagefolder,
    /// Folders `w` and `l`, or names that end in `_w` and `_l`, with the prompts in text files.
    Folders,
    /// WebDataset: tar archives with two images and a JSON file per sample.
    Webdataset,
    /// Single images that people liked or not, for `kto`: parquet files with `caption`, `jpg_0`, and `label_0`, 1 or 0; or CSV or
    /// JSON lines with `file_path`, `caption` and `label`. Nothing is evaluated on held-out images, for there is nothing to
    /// compare.
    Rated,
}

impl DataKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Pickapic,
        Self::ChosenRejected,
        Self::Hpdv2,
        Self::Hpdv3,
        Self::Imagereward,
        Self::Jsonl,
        Self::Imagefolder,
        Self::Folders,
        Self::Webdataset,
        Self::Rated,
    ];

    /// As in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pickapic => "pickapic",
            Self::ChosenRejected => "chosen_rejected",
            Self::Hpdv2 => "hpdv2",
            Self::Hpdv3 => "hpdv3",
            Self::Imagereward => "imagereward",
            Self::Jsonl => "jsonl",
            Self::Imagefolder => "imagefolder",
            Self::Folders => "folders",
            Self::Webdataset => "webdataset",
            Self::Rated => "rated",
        }
    }
}

impl fmt::Display for DataKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::bad(
                "kind of data set",
                format!("there is none called `{text}`"),
                format!("Choose one of {names}."),
            )
        })
    }
}

/// Which sizes images are brought to where they keep about their shape. See [`crate::data::Buckets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BucketConfig {
    /// Height and width are multiples of it, in pixels; a multiple of 8 that divides `resolution`. Denoisers halve latents up to
    /// three times, so 64.
    pub step: u32,
    /// Shortest side, in pixels; half of `resolution` by default.
    pub min: Option<u32>,
    /// Longest side, in pixels; twice `resolution` by default.
    pub max: Option<u32>,
}

impl Default for BucketConfig {
    fn default() -> Self {
        Self {
            step: 64,
            min: None,
            max: None,
        }
    }
}

impl BucketConfig {
    /// Shortest and longest side, in pixels, as multiples of the step.
    pub fn sides(&self, resolution: u32) -> [u32; 2] {
        let min = self.min.unwrap_or(resolution / 2).next_multiple_of(self.step);
        let max = self.max.unwrap_or(2 * resolution) / self.step * self.step;
        [min.min(resolution), max.max(resolution)]
    }

    /// Checks every value against the side of the square; errors name the key.
    fn check(&self, resolution: u32) -> Result<()> {
        require(
            self.step >= 8 && self.step.is_multiple_of(8) && resolution.is_multiple_of(self.step),
            "data.buckets.step",
            format!("is {}, with data.resolution {resolution}", self.step),
            "Give a multiple of 8 that divides data.resolution, such as 64.",
        )?;
        for (key, side, holds) in [
            (
                "data.buckets.min",
                self.min,
                self.min.is_none_or(|min| min > 0 && min <= resolution),
            ),
            (
                "data.buckets.max",
                self.max,
                self.max.is_none_or(|max| max >= resolution && max <= 8192),
            ),
        ] {
            require(
                holds,
                key,
                format!(
                    "is {}, with data.resolution {resolution}",
                    side.unwrap_or_default()
                ),
                "The shortest side may be no longer than data.resolution, and the longest no shorter nor above 8192.",
            )?;
        }
        Ok(())
    }
}

/// Where SDXL's micro-conditioning (`time_ids`) comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MicroConditioning {
    /// From each image: the size of its file, where its crop begins, and the size it is trained in.
    Image,
    /// All images count as made in the size they are trained in and uncropped, as in the published Diffusion-DPO of SDXL.
    Target,
}

/// What becomes of pairs whose images were found equally good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// They are left out, as in Diffusion-DPO.
    Drop,
    /// They keep full weight with the label 0.5: the loss pulls their margin towards zero.
    Soft,
    /// One image, drawn anew at each visit, counts as preferred, with half the weight.
    Half,
}

impl DataConfig {
    /// Whether there are any; online objectives can do with prompts alone.
    pub fn is_given(&self) -> bool {
        !self.path.as_os_str().is_empty()
    }

    /// Checks every value; errors name the key.
    pub fn check(&self) -> Result<()> {
        require(
            self.resolution >= 8 && self.resolution.is_multiple_of(8) && self.resolution <= 4096,
            "data.resolution",
            format!("is {}", self.resolution),
            "Give a multiple of 8 from 8 to 4096, since the VAE shrinks images by 4 or 8.",
        )?;
        if let Some(buckets) = &self.buckets {
            buckets.check(self.resolution)?;
        }
        for (key, share) in [
            ("data.prompt_dropout", self.prompt_dropout),
            ("data.max_skipped_share", self.max_skipped_share),
        ] {
            let holds = (0.0..=1.0).contains(&share);
            require(holds, key, format!("is {share}"), "Give a number from 0 to 1.")?;
        }
        for (key, count) in [
            ("data.crops", self.crops as usize),
            ("data.encode_batch", self.encode_batch),
        ] {
            require(count >= 1, key, "is 0", "Give at least 1.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> DataConfig {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn the_documented_example_reads() {
        let config = read(
            "{kind: pickapic, path: models/tiny-sd/pairs, resolution: 64, ties: drop, prompt_dropout: 0.2}",
        );
        config.check().unwrap();
        assert_eq!(config.resolution, 64);
        assert_eq!(
            config,
            DataConfig {
                path: "models/tiny-sd/pairs".into(),
                resolution: 64,
                ..Default::default()
            }
        );
        assert!(serde_yaml::from_str::<DataConfig>("{resolutoin: 64}").is_err());
    }

    #[test]
    fn kinds_have_one_name_everywhere() {
        for kind in DataKind::ALL {
            assert_eq!(read(&format!("{{kind: {kind}}}")).kind, kind);
            assert_eq!(kind.name().parse::<DataKind>().unwrap(), kind);
        }
        assert!("pickpic".parse::<DataKind>().is_err());
    }

    #[test]
    fn bad_values_are_named() {
        for (text, key) in [
            ("{path: p, resolution: 500}", "data.resolution"),
            ("{path: p, prompt_dropout: 1.5}", "data.prompt_dropout"),
            ("{path: p, max_skipped_share: -1}", "data.max_skipped_share"),
            ("{path: p, crops: 0}", "data.crops"),
            ("{path: p, buckets: {step: 60}}", "data.buckets.step"),
            ("{path: p, resolution: 520, buckets: {}}", "data.buckets.step"),
            ("{path: p, buckets: {step: 0}}", "data.buckets.step"),
            ("{path: p, buckets: {min: 576}}", "data.buckets.min"),
            ("{path: p, buckets: {max: 448}}", "data.buckets.max"),
            ("{path: p, encode_batch: 0}", "data.encode_batch"),
        ] {
            let error = read(text).check().unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }
}
