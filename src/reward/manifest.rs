//! `reward.yaml`: everything about a reward model that its networks do not say themselves.
//!
//! docs/reward.md explains the file, docs/reward.schema.json gives it to editors. Names of preprocessing steps end in
//! a version; what a version does never changes, so that a manifest keeps giving the same scores.

use std::path::Path;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::yaml::{self, Document, Schema};
use crate::{Error, Result};

/// Name of the file in a reward's folder.
pub const FILE_NAME: &str = "reward.yaml";

const EXAMPLE: &str = "docs/reward.md explains the file.";

/// What the loader checks manifests against.
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    Schema::of::<Manifest>(|path| format!("Write `{path}` into the manifest; docs/reward.md explains it."))
});

/// A reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Heading of its column in tables. Letters, digits, dots, dashes and underscores.
    pub name: String,
    /// Version of the weights, as their makers call it.
    pub version: String,
    /// What the number is, such as "cosine", "100 x cosine" or "rating, 1 to 10".
    pub unit: String,
    /// Licence of the weights.
    pub licence: String,
    /// Where the weights come from.
    pub source: String,
    /// How pictures and prompts become a score.
    pub scorer: Scorer,
    /// What scores usually look like, for those who want to compare rewards of different units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// Mean and standard deviation of the scores over a set of pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Mean score.
    pub mean: f64,
    /// Standard deviation of the scores.
    pub std: f64,
    /// Which pictures and prompts these are.
    pub over: String,
}

/// The ways to come to a score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scorer {
    /// Similarity of a picture's and a prompt's embedding: CLIP score, PickScore, HPSv2, SigLIP.
    DualTower {
        /// Embeds pictures.
        image: ImageTower,
        /// Embeds prompts.
        text: TextTower,
        /// What becomes of the cosine of the two embeddings.
        scale: Scale,
    },
    /// The picture alone: aesthetic ratings, or any network that gives one number per picture.
    ImageHead {
        /// Embeds or rates pictures.
        image: ImageTower,
        /// Makes a rating of the embedding; without it the network's output is the rating.
        #[serde(default)]
        head: Option<Head>,
    },
    /// One network reads picture and prompt together: ImageReward.
    CrossEncoder {
        /// Reads pictures and gives one number per picture and prompt.
        image: ImageTower,
        /// How prompts reach the same network.
        prompt: PromptInput,
        /// The score is (output - mean) / std.
        #[serde(default)]
        standardize: Option<Standardize>,
    },
    /// No score: features of pictures, for FID, KID and other metrics of sets.
    FeatureExtractor {
        /// Gives one row of features per picture.
        image: ImageTower,
    },
    /// No score: features of pictures whose squared distance is the LPIPS distance, from layers of any network.
    Perceptual {
        /// Gives activations (N,C,H,W) of several layers.
        image: LayeredTower,
        /// safetensors file with f32 `lin0` [1, C, 1, 1], `lin1`, … for the layers in their order, none below 0, relative to
        /// the manifest.
        heads: String,
    },
    /// How far a classifier finds in the picture what the prompt names.
    ClassifierMatch {
        /// Names what is in pictures; `output` is not used, see `heads`.
        image: ClassifierTower,
        /// JSON file with the labels of every output, in the order of its logits: `{"output": ["label", …]}`.
        labels: String,
        /// Which label the prompt asks of which output.
        heads: Vec<ClassifierHead>,
        /// The number that comes of it.
        measure: Measure,
    },
}

/// A network that reads pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageTower {
    /// ONNX file, relative to the manifest.
    pub model: String,
    /// Input for pictures (N,C,H,W).
    pub input: String,
    /// Output with one row per picture.
    pub output: String,
    /// From an 8-bit RGB picture to the input, step by step.
    pub preprocessing: Vec<Step>,
    /// Further inputs that do not reach the output, such as those of a text tower in the same file; they are given zeros.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused_inputs: Vec<String>,
}

/// A network that reads pictures and has several outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTower {
    /// ONNX file, relative to the manifest.
    pub model: String,
    /// Input for pictures (N,C,H,W).
    pub input: String,
    /// From an 8-bit RGB picture to the input, step by step.
    pub preprocessing: Vec<Step>,
}

/// A network that reads pictures, and whose layers are looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayeredTower {
    /// ONNX file, relative to the manifest.
    pub model: String,
    /// Input for pictures (N,C,H,W).
    pub input: String,
    /// Outputs with activations (N,C,H,W).
    pub layers: Vec<String>,
    /// From an 8-bit RGB picture to the input, step by step.
    pub preprocessing: Vec<Step>,
}

/// A network that reads prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextTower {
    /// ONNX file, relative to the manifest; the image tower's file where one file holds both.
    pub model: String,
    /// Output with one row per prompt.
    pub output: String,
    /// How prompts reach it.
    pub prompt: PromptInput,
}

/// How prompts reach a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptInput {
    /// Input for token ids (N,L).
    pub ids: String,
    /// Input that is 1 for tokens and 0 for padding, if the network has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// Folder with `tokenizer.json`, or with CLIP's `vocab.json` and `merges.txt`, relative to the manifest.
    pub tokenizer: String,
    /// Tokens of a prompt: longer ones are cut, keeping the end token, shorter ones padded.
    pub length: usize,
    /// Token that pads. CLIP's text towers pad with the end token (transformers) or with 0 (open_clip).
    pub pad_id: i64,
    /// What happens to the text before it is tokenized.
    #[serde(default)]
    pub cleaning: Cleaning,
}

/// Changes to a prompt before it is tokenized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cleaning {
    /// None: transformers' tokenizers.
    #[default]
    NoneV1,
}

/// One step of preprocessing. The version in a name stands for exactly what it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Pillow's resize (8 bits, width first) of the shorter side; the longer one is rounded down, as torchvision and
    /// transformers do.
    PillowResizeShortestV1 {
        /// Pixels of the shorter side afterwards.
        size: u32,
        /// Pillow's filter.
        filter: Filter,
    },
    /// Pillow's resize (8 bits, width first) of both sides, whatever the proportions.
    PillowResizeExactV1 {
        /// Pixels afterwards.
        height: u32,
        /// Pixels afterwards.
        width: u32,
        /// Pillow's filter.
        filter: Filter,
    },
    /// The middle square; an odd rest is halved to the even number, as torchvision's CenterCrop does. Sides that are too
    /// short are filled with black.
    CenterCropTorchvisionV1 {
        /// Pixels of a side afterwards.
        size: u32,
    },
    /// The middle square; an odd rest is halved and rounded down, as transformers' CLIPImageProcessor does.
    CenterCropTransformersV1 {
        /// Pixels of a side afterwards.
        size: u32,
    },
    /// Bytes to floats: value / 255.
    ToUnitFloatV1 {},
    /// PyTorch's bicubic interpolation of floats without antialiasing (a = -0.75) until the longer side has `size` pixels;
    /// black is added to make it square. HPSv2 with torchvision before 0.17.
    TorchResizeLongestV1 {
        /// Pixels of a side afterwards.
        size: u32,
    },
    /// The same with antialiasing (a = -0.5). HPSv2 with torchvision from 0.17 on.
    TorchResizeLongestAntialiasedV1 {
        /// Pixels of a side afterwards.
        size: u32,
    },
    /// Bytes to floats from 0 to 255 of the given size, as clean-fid resizes: Pillow's bicubic on floats of each channel,
    /// antialiased, not rounded, clipped to 0 and 255.
    CleanFidResizeV1 {
        /// Pixels afterwards.
        height: u32,
        /// Pixels afterwards.
        width: u32,
    },
    /// PyTorch's bilinear interpolation of floats without antialiasing, whatever the proportions: pytorch-fid.
    TorchResizeBilinearV1 {
        /// Pixels afterwards.
        height: u32,
        /// Pixels afterwards.
        width: u32,
    },
    /// (value - mean) / std for each of the three channels.
    NormalizeV1 {
        /// Red, green, blue.
        mean: [f32; 3],
        /// Red, green, blue.
        std: [f32; 3],
    },
}

/// Pillow's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Filter {
    Bilinear,
    Bicubic,
    Lanczos,
}

/// What becomes of the cosine of two embeddings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scale {
    /// The cosine itself.
    Cosine {},
    /// exp(logit_scale) x cosine + logit_bias, as the model was trained with.
    Logit {
        /// The model's own parameter, before exp.
        logit_scale: f64,
        /// SigLIP's; 0 for others.
        #[serde(default)]
        logit_bias: f64,
    },
    /// factor x cosine, and no less than `minimum` where that is set.
    Factor {
        /// Such as 100.
        factor: f64,
        /// Such as 0, for CLIPScore as it was published.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        minimum: Option<f64>,
    },
}

/// An affine map from an embedding to a rating.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// safetensors file with `weight` [1, D] and `bias` [1], relative to the manifest.
    pub file: String,
    /// Divide embeddings by their length first.
    pub l2_normalize: bool,
}

/// Constants that a raw output is standardized with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Standardize {
    /// Subtracted first.
    pub mean: f64,
    /// Divided by afterwards.
    pub std: f64,
}

/// One output of a classifier, and what a prompt asks of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifierHead {
    /// Output with one logit per label (N,K).
    pub output: String,
    /// Which label is right.
    pub expect: Expect,
}

/// How the right label follows from a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Expect {
    /// The label that stands in the prompt at this place among all labels of the output that stand there, whole words only,
    /// longer labels before shorter ones.
    Mentioned {
        /// 1 for the first.
        nth: usize,
        /// The right label where the prompt mentions fewer; without it such prompts are refused.
        #[serde(default)]
        otherwise: Option<String>,
    },
    /// Always the same.
    Always {
        /// The right label.
        label: String,
    },
}

/// What is reported of a classifier's probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Product of the right labels' probabilities: 0 to 1.
    Probability,
    /// Its logarithm.
    LogProbability,
    /// Share of outputs whose most probable label is the right one: 0 to 1.
    ShareRight,
}

impl ImageTower {
    /// All inputs that are given something.
    pub fn inputs(&self) -> Vec<&str> {
        [self.input.as_str()].into_iter().chain(self.unused()).collect()
    }

    /// Where pictures go in and rows come out.
    fn ends(&self) -> (&str, Vec<&str>) {
        (&self.input, vec![&self.output])
    }

    /// Inputs that are given zeros.
    pub fn unused(&self) -> Vec<&str> {
        self.unused_inputs.iter().map(String::as_str).collect()
    }
}

/// What determines the features of a picture, for cache keys; names of files are left out, their content counts.
#[derive(Serialize)]
pub(super) struct FeatureDescription<'a> {
    input: &'a str,
    outputs: Vec<&'a str>,
    preprocessing: &'a [Step],
    /// Where pictures and prompts are read together.
    prompt: Option<&'a PromptInput>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// The first unknown or missing key or unusable value, with file, line and nearest known name.
    pub fn read(path: &Path) -> Result<Self> {
        let (manifest, document): (Self, Document) = yaml::read(path, &SCHEMA, EXAMPLE)?;
        manifest.check().map_err(|error| document.locate(error))?;
        Ok(manifest)
    }

    /// The scorer's name, as in the file.
    pub fn kind(&self) -> &'static str {
        match self.scorer {
            Scorer::DualTower { .. } => "dual_tower",
            Scorer::ImageHead { .. } => "image_head",
            Scorer::CrossEncoder { .. } => "cross_encoder",
            Scorer::FeatureExtractor { .. } => "feature_extractor",
            Scorer::Perceptual { .. } => "perceptual",
            Scorer::ClassifierMatch { .. } => "classifier_match",
        }
    }

    /// Whether it gives a score, not only features of pictures.
    pub fn gives_scores(&self) -> bool {
        !matches!(
            self.scorer,
            Scorer::FeatureExtractor { .. } | Scorer::Perceptual { .. }
        )
    }

    /// The preprocessing of pictures.
    pub fn preprocessing(&self) -> &[Step] {
        match &self.scorer {
            Scorer::DualTower { image, .. }
            | Scorer::ImageHead { image, .. }
            | Scorer::CrossEncoder { image, .. }
            | Scorer::FeatureExtractor { image } => &image.preprocessing,
            Scorer::Perceptual { image, .. } => &image.preprocessing,
            Scorer::ClassifierMatch { image, .. } => &image.preprocessing,
        }
    }

    /// Files and folders of the reward, relative to the manifest, each once.
    pub fn files(&self) -> Vec<&str> {
        let mut files = match &self.scorer {
            Scorer::DualTower { image, text, .. } => {
                vec![&image.model, &text.model, &text.prompt.tokenizer]
            }
            Scorer::ImageHead { image, head } => {
                let head = head.iter().map(|head| &head.file);
                [&image.model].into_iter().chain(head).collect()
            }
            Scorer::CrossEncoder { image, prompt, .. } => vec![&image.model, &prompt.tokenizer],
            Scorer::FeatureExtractor { image } => vec![&image.model],
            Scorer::Perceptual { image, heads } => vec![&image.model, heads],
            Scorer::ClassifierMatch { image, labels, .. } => vec![&image.model, labels],
        };
        files.sort();
        files.dedup();
        files.into_iter().map(String::as_str).collect()
    }

    /// What determines the features of a picture beside the files.
    pub(super) fn features(&self) -> FeatureDescription<'_> {
        let ((input, outputs), prompt) = match &self.scorer {
            Scorer::DualTower { image, .. }
            | Scorer::ImageHead { image, .. }
            | Scorer::FeatureExtractor { image } => (image.ends(), None),
            Scorer::Perceptual { image, .. } => {
                let layers = image.layers.iter().map(String::as_str).collect();
                ((image.input.as_str(), layers), None)
            }
            Scorer::CrossEncoder { image, prompt, .. } => (image.ends(), Some(prompt)),
            Scorer::ClassifierMatch { image, heads, .. } => {
                let outputs = heads.iter().map(|head| head.output.as_str()).collect();
                ((image.input.as_str(), outputs), None)
            }
        };
        FeatureDescription {
            input,
            outputs,
            preprocessing: self.preprocessing(),
            prompt,
        }
    }

    /// The files that determine the features of a picture.
    pub(super) fn feature_files(&self) -> Vec<&str> {
        match &self.scorer {
            Scorer::DualTower { image, .. }
            | Scorer::ImageHead { image, .. }
            | Scorer::FeatureExtractor { image } => vec![&image.model],
            Scorer::Perceptual { image, heads } => vec![&image.model, heads],
            Scorer::CrossEncoder { image, prompt, .. } => vec![&image.model, &prompt.tokenizer],
            Scorer::ClassifierMatch { image, .. } => vec![&image.model],
        }
    }

    fn check(&self) -> Result<()> {
        let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if self.name.is_empty() || !self.name.chars().all(is_name_char) {
            let what = format!("is {:?}, which is no heading of a column", self.name);
            let remedy = "Use letters, digits, dots, dashes and underscores.";
            return Err(Error::bad("name", what, remedy));
        }
        if let Some(reference) = &self.reference {
            positive("reference.std", reference.std)?;
        }
        match &self.scorer {
            Scorer::CrossEncoder {
                standardize: Some(s), ..
            } => positive("scorer.standardize.std", s.std),
            Scorer::ClassifierMatch { heads, .. } => check_heads(heads),
            Scorer::Perceptual { image, .. } if image.layers.is_empty() => Err(Error::bad(
                "scorer.image.layers",
                "is empty",
                "Name at least one output of the network.",
            )),
            _ => Ok(()),
        }
    }
}

fn positive(place: &str, value: f64) -> Result<()> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::bad(
            place,
            format!("is {value}, not above 0"),
            "Give the standard deviation.",
        )),
    }
}

fn check_heads(heads: &[ClassifierHead]) -> Result<()> {
    if heads.is_empty() {
        let remedy = "Name at least one output of the classifier.";
        return Err(Error::bad("scorer.heads", "is empty", remedy));
    }
    let zeroth = |head: &ClassifierHead| matches!(head.expect, Expect::Mentioned { nth: 0, .. });
    match heads.iter().position(zeroth) {
        None => Ok(()),
        Some(i) => {
            let place = format!("scorer.heads[{i}].expect.nth");
            Err(Error::bad(place, "is 0", "Count from 1."))
        }
    }
}

/// The JSON Schema of manifests, for editors, as text.
pub fn json_schema() -> String {
    let mut schema = SCHEMA.json().clone();
    schema["title"] = "ortdpo reward model".into();
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema has text keys only");
    text.push('\n');
    text
}
