//! Memory and time of a data set of a million pairs, without the models: what `data inspect` and the start of `train` keep.
//!
//! ```text
//! cargo bench --bench data [-- ROWS [FOLDER]]
//! ```
//!
//! Writes parquet files with two tiny pictures of its own a row, and a JSON-lines list of as many rows that share a thousand
//! pictures. Each line says how long a stage took, and the peak of resident memory in it (Linux).

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{ArrayRef, BinaryArray, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use image::{Rgb, RgbImage};
use ndarray::{Array2, Array3, ArrayView4};
use ortdpo::Result;
use ortdpo::config::data::{DataConfig, DataKind};
use ortdpo::data::{CaptionEncoder, Dataset, EncodeOptions, Encoders, Identity, ImageEncoder, Part, open};
use ortdpo::dataset_tools::Input;
use ortdpo::dataset_tools::inspect::{Look, inspect};
use ortdpo::model_folder::ContentHash;
use ortdpo::pairs::Choose;
use ortdpo::pipeline::{Embedding, LatentScaling, Moments, PromptTokens};
use ortdpo::text::Tokens;
use parquet::arrow::ArrowWriter;

/// Pairs of a prompt.
const PER_PROMPT: usize = 10;
const ROWS_PER_FILE: usize = 100_000;
const SHARED_PICTURES: usize = 1000;

/// Encoders that cost nothing and give as little as possible.
struct Nothing;

impl Encoders for Nothing {
    fn identity(&self) -> Result<Identity> {
        Ok(Identity {
            images: ContentHash([1; 32]),
            captions: ContentHash([2; 32]),
        })
    }

    fn scaling(&self) -> Result<LatentScaling> {
        Ok(LatentScaling {
            factor: 1.0,
            shift: 0.0,
        })
    }

    fn images(&self, _: &[ortdpo::data::image::Size]) -> Result<Box<dyn ImageEncoder + '_>> {
        Ok(Box::new(Self))
    }

    fn captions(&self) -> Result<Box<dyn CaptionEncoder + '_>> {
        Ok(Box::new(Self))
    }
}

impl ImageEncoder for Nothing {
    fn encode(&mut self, images: ArrayView4<f32>) -> Result<Vec<Moments>> {
        let moments = |_| Moments {
            mean: Array3::zeros((1, 1, 1)),
            logvar: None,
        };
        Ok((0..images.shape()[0]).map(moments).collect())
    }
}

impl CaptionEncoder for Nothing {
    fn tokenize(&self, _: &str) -> Result<PromptTokens> {
        Ok(PromptTokens(vec![Tokens {
            ids: vec![0],
            used: 1,
            truncated: false,
        }]))
    }

    fn encode(&mut self, captions: &[&PromptTokens]) -> Result<Vec<Embedding>> {
        let embedding = |_| Embedding {
            hidden: Array2::zeros((1, 1)),
            pooled: None,
        };
        Ok(captions.iter().map(embedding).collect())
    }
}

/// A picture that no other number has.
fn picture(number: usize) -> Vec<u8> {
    let image = RgbImage::from_fn(8, 8, |x, _| {
        Rgb([(number >> 16) as u8, (number >> 8) as u8, number as u8].map(|v| v.wrapping_add(x as u8 * 9)))
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("an RGB image can be written as PNG");
    bytes.into_inner()
}

fn prompt(row: usize) -> String {
    format!(
        "a portrait of astronaut {} riding a horse, soft light",
        row / PER_PROMPT
    )
}

fn write_parquet(folder: &Path, rows: usize) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let fields = [
        ("caption", DataType::Utf8),
        ("jpg_0", DataType::Binary),
        ("jpg_1", DataType::Binary),
        ("label_0", DataType::Float64),
    ];
    let schema = Arc::new(Schema::new(
        fields.map(|(name, kind)| Field::new(name, kind, false)).to_vec(),
    ));
    for first in (0..rows).step_by(ROWS_PER_FILE) {
        let file = File::create(folder.join(format!("train-{:05}.parquet", first / ROWS_PER_FILE)));
        let mut writer = ArrowWriter::try_new(file.expect("the file can be made"), schema.clone(), None)
            .expect("the schema can be written");
        let last = (first + ROWS_PER_FILE).min(rows);
        for start in (first..last).step_by(1000) {
            let part = start..(start + 1000).min(last);
            let pictures = |side: usize| {
                let files = part.clone().map(|row| picture(2 * row + side));
                Arc::new(BinaryArray::from_iter_values(files)) as ArrayRef
            };
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(part.clone().map(prompt))),
                pictures(0),
                pictures(1),
                Arc::new(Float64Array::from_iter_values(
                    part.clone().map(|row| (row % 2) as f64),
                )),
            ];
            let batch = RecordBatch::try_new(schema.clone(), columns).expect("the columns fit");
            writer.write(&batch).expect("the disk has room");
        }
        writer.close().expect("the disk has room");
    }
}

fn write_list(folder: &Path, rows: usize) {
    fs::create_dir_all(folder.join("images")).expect("the folder can be made");
    for number in 0..SHARED_PICTURES {
        fs::write(folder.join(format!("images/{number}.png")), picture(number)).expect("the disk has room");
    }
    let mut list = BufWriter::new(File::create(folder.join("train.jsonl")).expect("the file can be made"));
    for row in 0..rows {
        let (chosen, rejected) = (row % SHARED_PICTURES, (row * 7 + 1) % SHARED_PICTURES);
        let prompt = prompt(row);
        writeln!(
            list,
            r#"{{"prompt": "{prompt}", "chosen": "images/{chosen}.png", "rejected": "images/{rejected}.png"}}"#
        )
        .expect("the disk has room");
    }
}

/// Says what `work` took.
fn measured<T>(name: &str, work: impl FnOnce() -> T) -> T {
    // Sets the peak back to what is resident now.
    fs::write("/proc/self/clear_refs", "5").ok();
    let start = Instant::now();
    let result = work();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or("unknown");
    println!(
        "{name:<44} {:>8.1} s   peak {}",
        start.elapsed().as_secs_f64(),
        peak.trim()
    );
    result
}

fn look(name: &str, kind: DataKind, path: &Path) {
    measured(&format!("{name}: inspect"), || {
        let input = Input {
            path: path.to_path_buf(),
            kind: Some(kind),
            splits: Vec::new(),
            choose: Choose::All,
        };
        let splits = input.open().expect("the data set was just written").splits;
        let go_on = &mut |_| ControlFlow::Continue(());
        inspect(&splits, Look::default(), None, go_on).expect("the data set was just written")
    });
    let config = DataConfig {
        kind,
        path: path.to_path_buf(),
        resolution: 8,
        encode_batch: 64,
        ..DataConfig::default()
    };
    let cache = path.with_extension("cache");
    for stage in ["first start of a run", "second start, from the cache"] {
        measured(&format!("{name}: {stage}"), || {
            let source = open(&config, Part::Train).expect("the data set was just written");
            let source = source.expect("the split is named");
            let options = EncodeOptions::new(&config, Part::Train);
            let go_on = &mut |_| ControlFlow::Continue(());
            Dataset::prepare(&*source, &Nothing, &cache, options, go_on).expect("the cache can be written")
        });
    }
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"));
    let rows: usize = arguments
        .next()
        .map_or(1_000_000, |n| n.parse().expect("a number of rows"));
    let own = tempfile::tempdir().expect("there is a folder for temporary files");
    let folder = arguments.next().map_or(own.path().to_path_buf(), PathBuf::from);
    let (parquet, list) = (folder.join("parquet"), folder.join("list"));
    measured("writing parquet", || write_parquet(&parquet, rows));
    measured("writing the list", || write_list(&list, rows));
    look("jsonl, shared pictures", DataKind::Jsonl, &list);
    look("parquet, own pictures", DataKind::Pickapic, &parquet);
}
