//! The UNets of Stable Diffusion 1.5 and XL as exported, without their weights (`scripts/fixtures/structures.py`).

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use ortdpo::onnx::{Dims, Graph, Model, SpecializeOptions, specialize};

/// More bytes than the largest weight has.
const WEIGHTS_LENGTH: u64 = 1 << 28;

/// An export in a folder of its own.
pub struct Structure {
    folder: tempfile::TempDir,
}

impl Structure {
    /// Unpacks `name`, with a file of no contents where the weights would be: readers check its length.
    pub fn unpack(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let structure = Self { folder };
        fs::write(structure.model(), unpacked(&format!("{name}.onnx.gz"))).expect("the model can be written");
        let weights = File::create(structure.weights()).expect("the file of weights can be made");
        weights
            .set_len(WEIGHTS_LENGTH)
            .expect("a file can have a length without contents");
        structure
    }

    /// The model file.
    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }

    fn weights(&self) -> PathBuf {
        self.folder.path().join("weights")
    }

    /// Removes the file of weights: who reads weights from now on, fails.
    pub fn remove_weights(&self) {
        fs::remove_file(self.weights()).expect("the file of weights is there");
    }

    /// The static graph for two samples with latents of 32×32 (images of 256×256) and captions of 77 tokens.
    pub fn specialize(&self) -> ortdpo::Result<Graph> {
        self.specialize_at(32)
    }

    /// The static graph for two samples with square latents.
    pub fn specialize_at(&self, side: usize) -> ortdpo::Result<Graph> {
        let sizes = [
            ("batch_size", 2),
            ("height", side),
            ("width", side),
            ("sequence_length", 77),
        ];
        let options = SpecializeOptions {
            dims: Dims {
                named: sizes.map(|(name, size)| (name.to_owned(), size)).into(),
                ..Dims::default()
            },
            ..SpecializeOptions::default()
        };
        specialize(&Model::read(self.model())?, &options)
    }
}

/// Contents of a compressed file among the structures.
pub fn unpacked(file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/structures");
    let packed = File::open(folder.join(file)).expect("the fixture is there");
    let mut bytes = Vec::new();
    GzDecoder::new(packed)
        .read_to_end(&mut bytes)
        .expect("the fixture is whole");
    bytes
}
