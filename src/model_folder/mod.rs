//! A pipeline folder, as `optimum-cli export onnx` and diffusers' ONNX pipelines write it.
//!
//! ```text
//! model_index.json                      which components there are, and their classes
//! unet/ (or transformer/)               model.onnx, config.json: the denoiser
//! text_encoder/, text_encoder_2/, …     model.onnx, config.json
//! vae_encoder/, vae_decoder/            model.onnx, config.json
//! tokenizer/, tokenizer_2/, …           tokenizer.json, or vocab.json and merges.txt
//! scheduler/                            scheduler_config.json
//! ```
//!
//! Everything that reads a model starts here: `doctor` lists what is missing, the encoding cache and the
//! run manifest take their model hashes from here.

mod content_hash;
mod json_file;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result, onnx, placeholder};
use content_hash::files_below;

pub use content_hash::{ContentHash, hash_named};
pub use json_file::JsonFile;

const EXPORT: &str = "`optimum-cli export onnx --model MODEL OUTPUT_FOLDER` writes such a folder.";

/// One part of a pipeline, by its subfolder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Component {
    Unet,
    Transformer,
    TextEncoder,
    TextEncoder2,
    TextEncoder3,
    VaeEncoder,
    VaeDecoder,
    Tokenizer,
    Tokenizer2,
    Tokenizer3,
    Scheduler,
}

/// What a component's subfolder must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Network,
    Tokenizer,
    Scheduler,
}

impl Component {
    /// Every component this program knows, in the order they are listed to a user.
    pub const ALL: [Self; 11] = [
        Self::Unet,
        Self::Transformer,
        Self::TextEncoder,
        Self::TextEncoder2,
        Self::TextEncoder3,
        Self::VaeEncoder,
        Self::VaeDecoder,
        Self::Tokenizer,
        Self::Tokenizer2,
        Self::Tokenizer3,
        Self::Scheduler,
    ];

    /// Name of the subfolder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Transformer => "transformer",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::TextEncoder3 => "text_encoder_3",
            Self::VaeEncoder => "vae_encoder",
            Self::VaeDecoder => "vae_decoder",
            Self::Tokenizer => "tokenizer",
            Self::Tokenizer2 => "tokenizer_2",
            Self::Tokenizer3 => "tokenizer_3",
            Self::Scheduler => "scheduler",
        }
    }

    /// Whether `model_index.json` announces this component. An export splits `vae` into two folders and
    /// leaves the index as it was; older ONNX pipelines name both halves.
    fn announced(self, index: &JsonFile) -> bool {
        let present = |key: &str| {
            index
                .get(key)
                .and_then(|v| v.get(0))
                .is_some_and(|v| !v.is_null())
        };
        let vae = matches!(self, Self::VaeEncoder | Self::VaeDecoder) && present("vae");
        vae || present(self.folder())
    }

    /// Whether it is a network: `model.onnx` with a `config.json`.
    pub fn is_network(self) -> bool {
        self.content() == Content::Network
    }

    fn content(self) -> Content {
        match self {
            Self::Tokenizer | Self::Tokenizer2 | Self::Tokenizer3 => Content::Tokenizer,
            Self::Scheduler => Content::Scheduler,
            _ => Content::Network,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// State of one component, for `doctor`.
#[derive(Debug)]
pub struct ComponentReport {
    /// Which component.
    pub component: Component,
    /// Bytes of all files in its subfolder; 0 if there is none.
    pub bytes: u64,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<Error>,
}

/// A pipeline folder whose `model_index.json` has been read. Components are looked at when asked for, so a
/// folder without, say, a decoder still serves what needs none.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    root: PathBuf,
    class_name: String,
    components: Vec<Component>,
}

impl ModelFolder {
    /// Reads `model_index.json` of the pipeline folder `root`.
    ///
    /// # Errors
    /// The folder or its index is missing or is not a pipeline's.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_path_buf();
        let place = root.display().to_string();
        if !root.is_dir() {
            return Err(Error::bad(
                place,
                "is not a folder",
                format!("Check the path. {EXPORT}"),
            ));
        }
        let index_path = root.join("model_index.json");
        if !index_path.is_file() {
            let what = "holds no model_index.json, so it is not a pipeline folder";
            return Err(Error::bad(place, what, EXPORT));
        }
        let index = JsonFile::read(index_path)?;
        let class_name = index.str("_class_name")?.to_owned();
        let components: Vec<Component> = Component::ALL
            .into_iter()
            .filter(|c| c.announced(&index))
            .collect();
        let folder = Self {
            root,
            class_name,
            components,
        };
        folder.denoiser()?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `_class_name` of the index, such as `StableDiffusionPipeline`.
    pub fn class_name(&self) -> &str {
        &self.class_name
    }

    /// Components that the index announces, whether or not their files are there.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The component that is trained: the UNet or the transformer.
    ///
    /// # Errors
    /// The index names neither.
    pub fn denoiser(&self) -> Result<Component> {
        [Component::Unet, Component::Transformer]
            .into_iter()
            .find(|c| self.components.contains(c))
            .ok_or_else(|| {
                Error::bad(
                    self.root.join("model_index.json").display().to_string(),
                    format!("{} names neither a unet nor a transformer", self.class_name),
                    "Give the folder of a text-to-image diffusion pipeline.",
                )
            })
    }

    /// Subfolder of a component.
    pub fn folder(&self, component: Component) -> PathBuf {
        self.root.join(component.folder())
    }

    /// `model.onnx` of a network component.
    ///
    /// # Errors
    /// It is missing; PyTorch weights lying in its place are named as such.
    pub fn network(&self, component: Component) -> Result<PathBuf> {
        let path = self.folder(component).join("model.onnx");
        if path.is_file() {
            return Ok(path);
        }
        let pytorch = fs::read_dir(self.folder(component)).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|e| matches!(e.path().extension(), Some(x) if x == "safetensors" || x == "bin"))
        });
        let what = match pytorch {
            true => "is missing; the folder holds PyTorch weights instead",
            false => "is missing",
        };
        Err(Error::bad(path.display().to_string(), what, EXPORT))
    }

    /// `config.json` of a network component.
    ///
    /// # Errors
    /// It is missing or is not a JSON object.
    pub fn config(&self, component: Component) -> Result<JsonFile> {
        let path = self.folder(component).join("config.json");
        match path.is_file() {
            true => JsonFile::read(path),
            false => Err(Error::bad(path.display().to_string(), "is missing", EXPORT)),
        }
    }

    /// `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// It is missing.
    pub fn scheduler_config(&self) -> Result<PathBuf> {
        let path = self.folder(Component::Scheduler).join("scheduler_config.json");
        match path.is_file() {
            true => Ok(path),
            false => Err(Error::bad(
                path.display().to_string(),
                "is missing",
                "Copy it from the original model's scheduler/ folder: it holds the noise schedule.",
            )),
        }
    }

    /// Subfolder of a tokenizer with the files that make one.
    ///
    /// # Errors
    /// It holds neither `tokenizer.json` nor `vocab.json` with `merges.txt`.
    pub fn tokenizer(&self, component: Component) -> Result<PathBuf> {
        let folder = self.folder(component);
        let has = |name: &str| folder.join(name).is_file();
        match has("tokenizer.json") || has("vocab.json") && has("merges.txt") {
            true => Ok(folder),
            false => Err(Error::bad(
                folder.display().to_string(),
                "holds neither tokenizer.json nor vocab.json with merges.txt",
                "Copy them from the original model's tokenizer folder.",
            )),
        }
    }

    /// Looks at every announced component, and also at those present without being announced.
    pub fn check(&self) -> Vec<ComponentReport> {
        Component::ALL
            .into_iter()
            .filter(|c| self.components.contains(c) || self.folder(*c).is_dir())
            .map(|component| ComponentReport {
                component,
                bytes: files_below(&self.folder(component))
                    .map(|files| files.iter().map(|f| f.bytes).sum())
                    .unwrap_or(0),
                problem: self.require(component).err(),
            })
            .collect()
    }

    /// Whether the files of a component are there; what is in them is not looked at.
    ///
    /// # Errors
    /// One is missing.
    pub fn require(&self, component: Component) -> Result<()> {
        match component.content() {
            Content::Network => self
                .network(component)
                .and_then(|_| self.config(component))
                .map(drop),
            Content::Tokenizer => self.tokenizer(component).map(drop),
            Content::Scheduler => self.scheduler_config().map(drop),
        }
    }

    /// Whether the files of the given components are there and all of each: ONNX files that can be read, with every weight
    /// that they keep in other files; nothing else saved in their place. Takes milliseconds, as no weights are read.
    ///
    /// # Errors
    /// The first file that is not.
    pub fn check_files(&self, components: &[Component]) -> Result<()> {
        for &component in components {
            self.require(component)?;
            if component.is_network() {
                onnx::check_files(&self.network(component)?)?;
            }
            // Configs are JSON, whose reader sees what else they are.
            let vocabularies =
                ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| self.folder(component).join(name));
            let mut present = vocabularies.iter().filter(|path| path.is_file());
            present.try_for_each(|path| placeholder::check(path))?;
        }
        Ok(())
    }

    /// Hash over the content of every file of the given components, external weights included; two folders
    /// with equal files have equal hashes wherever they are.
    ///
    /// # Errors
    /// A file cannot be read, or a component has no subfolder.
    pub fn hash(&self, components: &[Component]) -> Result<ContentHash> {
        let folders: Vec<PathBuf> = components
            .iter()
            .map(|&component| self.folder(component))
            .collect();
        let named = components.iter().zip(&folders);
        hash_named(named.map(|(component, folder)| (component.folder(), folder.as_path())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout `optimum-cli export onnx` gives for a Stable Diffusion model, with stand-in files.
    fn pipeline() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "model_index.json",
            r#"{"_class_name": "StableDiffusionPipeline", "safety_checker": [null, null],
                "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder": ["transformers", "CLIPTextModel"], "scheduler": ["diffusers", "DDIMScheduler"],
                "tokenizer": ["transformers", "CLIPTokenizer"]}"#,
        );
        for network in ["unet", "vae_encoder", "vae_decoder", "text_encoder"] {
            put(&format!("{network}/model.onnx"), "graph");
            put(
                &format!("{network}/config.json"),
                r#"{"scaling_factor": 0.5, "shift_factor": null}"#,
            );
        }
        put("tokenizer/vocab.json", "{}");
        put("tokenizer/merges.txt", "");
        put("scheduler/scheduler_config.json", "{}");
        dir
    }

    fn problems(folder: &ModelFolder) -> Vec<String> {
        let reports = folder.check();
        reports
            .into_iter()
            .filter_map(|r| r.problem.map(|p| p.to_string()))
            .collect()
    }

    #[test]
    fn a_complete_folder_has_no_problems() {
        let dir = pipeline();
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(folder.denoiser().unwrap(), Component::Unet);
        assert_eq!(folder.components().len(), 6);
        assert_eq!(problems(&folder), [""; 0]);
        let vae = folder.config(Component::VaeEncoder).unwrap();
        assert_eq!(vae.number("scaling_factor").unwrap(), 0.5);
        assert!(vae.get("shift_factor").is_none());
        assert!(
            vae.number("latent_channels")
                .unwrap_err()
                .to_string()
                .contains("latent_channels")
        );
    }

    #[test]
    fn each_missing_file_is_named() {
        let dir = pipeline();
        fs::remove_file(dir.path().join("tokenizer/merges.txt")).unwrap();
        fs::remove_file(dir.path().join("scheduler/scheduler_config.json")).unwrap();
        fs::remove_file(dir.path().join("vae_encoder/config.json")).unwrap();
        fs::rename(
            dir.path().join("unet/model.onnx"),
            dir.path().join("unet/diffusion_pytorch_model.safetensors"),
        )
        .unwrap();
        let problems = problems(&ModelFolder::open(dir.path()).unwrap());
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[0].contains("unet/model.onnx") && problems[0].contains("PyTorch weights"));
        assert!(problems[1].contains("vae_encoder/config.json"));
        assert!(problems[2].contains("merges.txt"));
        assert!(problems[3].contains("scheduler_config.json"));
    }

    #[test]
    fn what_is_no_pipeline_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("model_index.json") && error.contains("optimum-cli"),
            "{error}"
        );
        assert!(ModelFolder::open(dir.path().join("none")).is_err());
        fs::write(
            dir.path().join("model_index.json"),
            r#"{"_class_name": "BertModel"}"#,
        )
        .unwrap();
        let error = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("neither a unet nor a transformer"), "{error}");
        fs::write(dir.path().join("model_index.json"), "[").unwrap();
        assert!(
            ModelFolder::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("is not JSON")
        );
    }

    #[test]
    fn the_hash_follows_content_and_not_place() {
        let (one, two) = (pipeline(), pipeline());
        let hash = |dir: &tempfile::TempDir, c| ModelFolder::open(dir.path()).unwrap().hash(&[c]).unwrap();
        fs::write(one.path().join("unet/model.onnx_data"), "weights").unwrap();
        fs::write(two.path().join("unet/model.onnx_data"), "Weights").unwrap();
        fs::write(two.path().join("unet/.hidden"), "x").unwrap();
        assert_ne!(hash(&one, Component::Unet), hash(&two, Component::Unet));
        assert_eq!(
            hash(&one, Component::VaeEncoder),
            hash(&two, Component::VaeEncoder)
        );
        assert_ne!(
            hash(&one, Component::VaeEncoder),
            hash(&one, Component::VaeDecoder)
        );
        fs::write(two.path().join("unet/model.onnx_data"), "weights").unwrap();
        assert_eq!(hash(&one, Component::Unet), hash(&two, Component::Unet));
    }
}
