//! The parquet schema of Pick-a-Pic v1 and v2 (`yuvalkirstain/pickapic_v2`), which many later sets reuse.
//!
//! Needed columns: `caption` (string), `jpg_0` and `jpg_1` (image files as binary, or the `{bytes, path}`
//! structs of Hugging Face's datasets), `label_0` (1: the first image is preferred, 0: the second, 0.5: tie).
//! Read where present: `has_label`, and a scorer's `score_0` and `score_1`. Other columns are never touched.
//!
//! Sets of single images that people liked or not have `jpg_0` and `label_0` (1 or 0) alone; such an image is delivered as a pair
//! with itself, and counts as preferred where it was liked.
//!
//! Files are `SPLIT-*.parquet` or `SPLIT.parquet` in the folder, in its `data/`, or in its `SPLIT/`, taken in
//! the order of their names. They are streamed: memory holds a few dozen rows, however large a row group is.

use std::fs;
use std::path::{Path, PathBuf};

use arrow_array::{Array, BinaryArray, RecordBatch, StringArray, StructArray, cast::AsArray, types};
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;

use super::pair::{Pair, PairSource, Preference, Row, Rows};
use super::parquet_file;
use super::shards::{find_shards, list_parquet, split_of};
use crate::model_folder::ContentHash;
use crate::rng::PairId;
use crate::{Error, Result};

/// Rows held in memory at once; at Pick-a-Pic's 0.2 MB an image, some 13 MB.
const ROWS_AT_ONCE: usize = 32;

const NEEDED: [&str; 4] = ["caption", "jpg_0", SECOND_IMAGE, "label_0"];
const SECOND_IMAGE: &str = "jpg_1";
const OPTIONAL: [&str; 3] = ["has_label", "score_0", "score_1"];

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// Two images and which is better.
    Pairs,
    /// One image and whether it is good.
    Single,
}

impl Images {
    /// Columns that cannot be missing.
    fn needed(self) -> impl Iterator<Item = &'static str> {
        let has = move |name: &&str| self == Self::Pairs || *name != SECOND_IMAGE;
        NEEDED.into_iter().filter(has)
    }
}

/// One split of a data set with the Pick-a-Pic columns.
#[derive(Debug)]
pub struct PickAPic {
    path: PathBuf,
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    images: Images,
    first_row: u64,
    rows: u64,
}

impl PickAPic {
    /// Finds the files of `split` and checks the columns of every one of them.
    ///
    /// `path` may also be a single parquet file, whose name then does not matter.
    ///
    /// # Errors
    /// No such files, or one that is not parquet or lacks a needed column.
    pub fn open(path: &Path, split: &str, images: Images) -> Result<Self> {
        let files = match path.is_file() {
            true => vec![path.to_path_buf()],
            false => find_shards(path, split)?,
        };
        let mut shards = Vec::with_capacity(files.len());
        let mut first_row = 0;
        for path in files {
            let reader = parquet_file::open(&path)?;
            check_columns(&path, reader.schema(), images)?;
            let rows = reader.metadata().file_metadata().num_rows().max(0) as u64;
            shards.push(Shard {
                path,
                images,
                first_row,
                rows,
            });
            first_row += rows;
        }
        Ok(Self {
            path: path.to_path_buf(),
            shards,
        })
    }

    /// The first of `candidates` that is a split of the folder; none if `path` is a single file.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn first_split<'a>(path: &Path, candidates: &[&'a str]) -> Result<Option<&'a str>> {
        if path.is_file() {
            return Ok(None);
        }
        let files = list_parquet(path, None)?;
        let has = |split: &str| files.iter().any(|file| split_of(file) == split) || path.join(split).is_dir();
        Ok(candidates.iter().copied().find(|split| has(split)))
    }
}

impl PairSource for PickAPic {
    fn rows(&self) -> Result<Rows<'_>> {
        Ok(Box::new(self.shards.iter().flat_map(
            |shard| match shard.rows() {
                Ok(rows) => rows,
                Err(error) => Box::new(std::iter::once(Err(error))) as Rows<'static>,
            },
        )))
    }

    fn len(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    fn stamp(&self) -> Result<ContentHash> {
        let mut hasher = blake3::Hasher::new();
        for Shard { path, .. } in &self.shards {
            let metadata = fs::metadata(path).map_err(Error::io(path, "look at"))?;
            let modified = metadata
                .modified()
                .map_err(Error::io(path, "read the modification time of"))?;
            let age = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            hasher
                .update(path.file_name().unwrap_or_default().as_encoded_bytes())
                .update(&[0]);
            hasher
                .update(&metadata.len().to_le_bytes())
                .update(&age.as_nanos().to_le_bytes());
        }
        Ok(ContentHash(*hasher.finalize().as_bytes()))
    }

    fn locate(&self, id: PairId) -> String {
        let shard = self.shards.iter().rev().find(|shard| shard.first_row <= id.0);
        match shard {
            Some(shard) => format!("{}, row {}", shard.path.display(), id.0 - shard.first_row),
            None => self.place(),
        }
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

impl Shard {
    fn rows(&self) -> Result<Rows<'static>> {
        let builder = parquet_file::open(&self.path)?;
        let columns = self.images.needed().chain(OPTIONAL).map(|name| {
            // The path beside the bytes of a Hugging Face image is not worth reading.
            match builder.schema().field_with_name(name).map(|f| f.data_type()) {
                Ok(DataType::Struct(_)) => format!("{name}.bytes"),
                _ => name.to_owned(),
            }
        });
        let columns: Vec<String> = columns.collect();
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().map(String::as_str));
        let (path, images) = (self.path.clone(), self.images);
        let reader = builder
            .with_projection(mask)
            .with_batch_size(ROWS_AT_ONCE)
            .build()
            .map_err(|e| parquet_file::unreadable(&path, &e))?;
        let mut next_id = self.first_row;
        Ok(Box::new(reader.flat_map(move |batch| {
            let rows: Vec<Result<Row>> = match batch {
                Ok(batch) => Columns::of(&batch, images).rows(next_id),
                Err(e) => vec![Err(parquet_file::unreadable(&path, &e))],
            };
            next_id += rows.len() as u64;
            rows
        })))
    }
}

fn check_columns(path: &Path, schema: &Schema, images: Images) -> Result<()> {
    let place = path.display().to_string();
    let remedy = match images {
        Images::Pairs => {
            "Pick-a-Pic v2 has caption, jpg_0, jpg_1 (the `no_images` variant lacks these) and label_0; \
             rename the columns, or get the variant with images."
        }
        Images::Single => "Rated images have caption, jpg_0 and label_0; rename the columns.",
    };
    let missing: Vec<&str> = images
        .needed()
        .filter(|name| schema.field_with_name(name).is_err())
        .collect();
    if !missing.is_empty() {
        return Err(Error::bad(
            place,
            format!("lacks the columns {}", missing.join(", ")),
            remedy,
        ));
    }
    for field in schema.fields() {
        let (kind, fits) = match field.name().as_str() {
            "caption" => ("a string", *field.data_type() == DataType::Utf8),
            "jpg_0" | "jpg_1" => (
                "binary, or a struct with binary bytes",
                parquet_file::is_image(field.data_type()),
            ),
            "label_0" | "score_0" | "score_1" => {
                ("a 64-bit integer or a float", is_number(field.data_type()))
            }
            "has_label" => ("a boolean", *field.data_type() == DataType::Boolean),
            _ => continue,
        };
        if !fits {
            let what = format!(
                "column {} is {}, but must be {kind}",
                field.name(),
                field.data_type()
            );
            return Err(Error::bad(place, what, remedy));
        }
    }
    Ok(())
}

fn is_number(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float32 | DataType::Float64 | DataType::Int64)
}

/// The columns of one batch, with the types that [`check_columns`] has seen to.
struct Columns<'a> {
    rows: usize,
    caption: &'a StringArray,
    first: Files<'a>,
    /// Absent where a row has one image.
    second: Option<Files<'a>>,
    label: &'a dyn Array,
    has_label: Option<&'a dyn Array>,
    scores: [Option<&'a dyn Array>; 2],
}

/// Image files, and for structs also which of them are null as a whole.
struct Files<'a> {
    bytes: &'a BinaryArray,
    structs: Option<&'a StructArray>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch, images: Images) -> Self {
        let optional = |name: &str| batch.column_by_name(name).map(|column| &**column);
        let needed = |name: &str| optional(name).expect("open() saw this column in the same file");
        let files = |name: &str| {
            let column = needed(name);
            let structs = column.as_struct_opt();
            let bytes = structs.map_or(column, |s| &**s.column(0));
            Files {
                bytes: bytes.as_binary(),
                structs,
            }
        };
        Self {
            rows: batch.num_rows(),
            caption: needed("caption").as_string(),
            first: files("jpg_0"),
            second: (images == Images::Pairs).then(|| files(SECOND_IMAGE)),
            label: needed("label_0"),
            has_label: optional("has_label"),
            scores: [optional("score_0"), optional("score_1")],
        }
    }

    fn rows(&self, first_id: u64) -> Vec<Result<Row>> {
        (0..self.rows)
            .map(|row| {
                let id = PairId(first_id + row as u64);
                Ok(self
                    .row(row, id)
                    .unwrap_or_else(|damage| Row::Damaged(id, damage)))
            })
            .collect()
    }

    fn row(&self, row: usize, id: PairId) -> Result<Row, String> {
        let labelled = |column: &dyn Array| column.is_valid(row) && column.as_boolean().value(row);
        if !self.has_label.is_none_or(labelled) {
            return Ok(Row::Unlabelled(id));
        }
        let label = number(self.label, row).ok_or("label_0 is null")?;
        let preference = match label {
            1.0 => Preference::First,
            0.0 => Preference::Second,
            0.5 if self.second.is_none() => return Ok(Row::Unlabelled(id)),
            0.5 => Preference::Tie,
            other => return Err(format!("label_0 is {other}, which is none of 0, 0.5 and 1")),
        };
        if self.caption.is_null(row) {
            return Err("caption is null".into());
        }
        let first = self.first.file(row, "jpg_0")?;
        let second = match &self.second {
            Some(files) => files.file(row, SECOND_IMAGE)?,
            None => first.clone(),
        };
        Ok(Row::Pair(Pair {
            id,
            caption: self.caption.value(row).to_owned(),
            images: [first, second],
            preference,
            scores: match self.scores.map(|column| column.and_then(|c| number(c, row))) {
                [Some(first), Some(second)] => Some([first as f32, second as f32]),
                _ => None,
            },
        }))
    }
}

impl Files<'_> {
    fn file(&self, row: usize, name: &str) -> Result<Vec<u8>, String> {
        let present = self.structs.is_none_or(|s| s.is_valid(row)) && self.bytes.is_valid(row);
        match present {
            true => Ok(self.bytes.value(row).to_vec()),
            false => Err(format!("{name} holds no image bytes")),
        }
    }
}

fn number(column: &dyn Array, row: usize) -> Option<f64> {
    if column.is_null(row) {
        return None;
    }
    let wide = column
        .as_primitive_opt::<types::Float64Type>()
        .map(|c| c.value(row));
    let single = || {
        column
            .as_primitive_opt::<types::Float32Type>()
            .map(|c| f64::from(c.value(row)))
    };
    let whole = || {
        column
            .as_primitive_opt::<types::Int64Type>()
            .map(|c| c.value(row) as f64)
    };
    wide.or_else(single).or_else(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/pairs")
            .join(name)
    }

    fn rows(name: &str, split: &str) -> Vec<Row> {
        let source = PickAPic::open(&fixture(name), split, Images::Pairs).unwrap();
        let rows: Vec<Row> = source.rows().unwrap().collect::<Result<_>>().unwrap();
        assert_eq!(source.len(), rows.len() as u64);
        rows
    }

    #[test]
    fn rows_come_in_the_order_of_files_with_all_that_is_needed() {
        let rows = rows("whole", "train");
        assert_eq!(rows.len(), 10);
        let (first, second, tie) = (Preference::First, Preference::Second, Preference::Tie);
        let expected = [
            (1.0, first),
            (0.0, second),
            (0.5, tie),
            (0.0, second),
            (1.0, first),
        ];
        for (number, row) in rows.iter().enumerate() {
            match row {
                Row::Pair(pair) => {
                    assert_eq!(pair.id, PairId(number as u64));
                    let (label, preference) = expected[number % 5];
                    assert_eq!(pair.preference, preference);
                    assert_eq!(pair.scores, Some([0.25 * label, -0.5 * label]));
                    assert!(super::super::image::decode(&pair.images[0]).is_ok());
                    assert!(
                        pair.images[0].starts_with(b"\x89PNG") && pair.images[1].starts_with(b"\xff\xd8")
                    );
                }
                Row::Unlabelled(id) => assert_eq!((number, id.0), (7, 7)),
                Row::Damaged(..) => panic!("{row:?}"),
            }
        }
        let Row::Pair(last) = &rows[9] else { panic!() };
        assert_eq!(last.caption, "a blue circle");
    }

    #[test]
    fn image_structs_give_the_same_rows_as_raw_binary() {
        assert_eq!(rows("struct", "train"), rows("whole", "train"));
    }

    #[test]
    fn a_row_without_an_image_is_damaged_and_the_rest_goes_on() {
        let rows = rows("broken", "train");
        let damaged: Vec<&Row> = rows
            .iter()
            .filter(|row| matches!(row, Row::Damaged(..)))
            .collect();
        assert_eq!(
            damaged,
            [&Row::Damaged(PairId(8), "jpg_0 holds no image bytes".into())]
        );
        assert_eq!(rows.len(), 20);
    }

    #[test]
    fn missing_columns_are_named_with_their_file() {
        let error = PickAPic::open(&fixture("missing"), "train", Images::Pairs)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("missing/train-00000-of-00001.parquet: lacks the columns jpg_1, label_0"),
            "{error}"
        );
    }

    #[test]
    fn a_split_that_is_not_there_lists_those_that_are() {
        let error = PickAPic::open(&fixture("whole"), "validation", Images::Pairs)
            .unwrap_err()
            .to_string();
        assert!(error.contains("heldout, train"), "{error}");
        let first = PickAPic::first_split(&fixture("whole"), &["validation", "heldout"]).unwrap();
        assert_eq!(first, Some("heldout"));
        assert!(PickAPic::open(&fixture("nowhere"), "train", Images::Pairs).is_err());
    }

    #[test]
    fn one_file_can_be_named_and_rows_are_located() {
        let file = fixture("whole/train-00001-of-00002.parquet");
        assert_eq!(PickAPic::open(&file, "any", Images::Pairs).unwrap().len(), 5);
        let place = PickAPic::open(&fixture("whole"), "train", Images::Pairs)
            .unwrap()
            .locate(PairId(7));
        assert!(place.ends_with("train-00001-of-00002.parquet, row 2"), "{place}");
    }

    #[test]
    fn a_truncated_file_is_one_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = fs::read(fixture("whole/train-00000-of-00002.parquet")).unwrap();
        fs::write(dir.path().join("train-0.parquet"), &whole[..whole.len() - 100]).unwrap();
        let error = PickAPic::open(dir.path(), "train", Images::Pairs).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("train-0.parquet: cannot be read as parquet"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 2);
        // Damage in a page, with the footer intact, shows while streaming.
        let mut damaged = whole;
        damaged[4..2000].fill(0x55);
        fs::write(dir.path().join("train-0.parquet"), damaged).unwrap();
        let source = PickAPic::open(dir.path(), "train", Images::Pairs).unwrap();
        assert!(source.rows().unwrap().any(|row| row.is_err()));
    }

    #[test]
    fn the_stamp_changes_with_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("train-0.parquet");
        fs::copy(fixture("struct/train-00000-of-00001.parquet"), &file).unwrap();
        let stamp = || {
            PickAPic::open(dir.path(), "train", Images::Pairs)
                .unwrap()
                .stamp()
                .unwrap()
        };
        let before = stamp();
        assert_eq!(before, stamp());
        fs::copy(fixture("broken/train-00000-of-00001.parquet"), &file).unwrap();
        assert_ne!(before, stamp());
    }
}
