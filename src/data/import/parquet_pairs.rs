//! Parquet files with the pictures inside: pairs, single pictures that people liked or not, and pairs with a column for the
//! preferred one.
//!
//! Pairs have the schema of Pick-a-Pic v1 and v2 (`yuvalkirstain/pickapic_v2`), which many later sets reuse. Needed columns:
//! `caption` (string), `jpg_0` and `jpg_1` (image files as binary, or the `{bytes, path}` structs of Hugging Face's datasets),
//! `label_0` (1: the first image is preferred, 0: the second, 0.5: tie). Read where present: `has_label`, and a scorer's `score_0`
//! and `score_1`. Other columns are never touched.
//!
//! Sets in the form of TRL's preference data (open-image-preferences-v1-binarized and others) have `prompt` or `caption`,
//! `chosen` and `rejected`, and nothing else that is read but `score_chosen` and `score_rejected`.
//!
//! Sets of single images that people liked or not have `jpg_0` and `label_0` (1 or 0) alone; such an image is delivered as a pair
//! with itself, and counts as preferred where it was liked.
//!
//! Files are `SPLIT-*.parquet` or `SPLIT.parquet` in the folder, in its `data/`, or in its `SPLIT/`, taken in
//! the order of their names. They are streamed: memory holds a few dozen rows, however large a row group is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, BinaryArray, RecordBatch, StringArray, StructArray, cast::AsArray, types};
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;

use crate::data::pair::{At, Content, Pair, PairSource, Pictures, Place, Preference, Row, Rows};
use crate::data::parquet_file;
use crate::data::picture::Picture;
use crate::data::shards::{self, PARQUET, stamp};
use crate::model_folder::ContentHash;
use crate::rng::PairId;
use crate::{Error, Result};

/// Rows held in memory at once; at Pick-a-Pic's 0.2 MB an image, some 13 MB.
const ROWS_AT_ONCE: usize = 32;

/// What the columns hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// Two images and which is better.
    Pairs,
    /// One image and whether it is good.
    Single,
    /// Two images, the better one in a column of its own.
    Chosen,
}

/// Names of the columns; several stand for the first that is there.
struct Names {
    caption: &'static [&'static str],
    images: &'static [&'static str],
    label: Option<&'static str>,
    scores: [&'static str; 2],
}

const HAS_LABEL: &str = "has_label";

impl Images {
    fn names(self) -> Names {
        match self {
            Self::Pairs => Names {
                caption: &["caption"],
                images: &["jpg_0", "jpg_1"],
                label: Some("label_0"),
                scores: ["score_0", "score_1"],
            },
            Self::Single => Names {
                images: &["jpg_0"],
                ..Self::Pairs.names()
            },
            Self::Chosen => Names {
                caption: &["prompt", "caption"],
                images: &["chosen", "rejected"],
                label: None,
                scores: ["score_chosen", "score_rejected"],
            },
        }
    }

    /// What to tell who gave other columns.
    fn remedy(self) -> &'static str {
        match self {
            Self::Pairs => {
                "Pick-a-Pic v2 has caption, jpg_0, jpg_1 (the `no_images` variant lacks these) and label_0; \
                 rename the columns, get the variant with images, or set data.kind to what the files are."
            }
            Self::Single => "Rated images have caption, jpg_0 and label_0; rename the columns.",
            Self::Chosen => {
                "Such a set has prompt, and the images chosen and rejected; rename the columns, or set data.kind to what the \
                 files are."
            }
        }
    }
}

impl Names {
    fn caption_in(&self, schema: &Schema) -> &'static str {
        let present = |name: &&&str| schema.field_with_name(name).is_ok();
        self.caption.iter().find(present).unwrap_or(&self.caption[0])
    }

    /// Columns that cannot be missing.
    fn needed(&self, schema: &Schema) -> impl Iterator<Item = &'static str> {
        let caption = std::iter::once(self.caption_in(schema));
        caption.chain(self.images.iter().copied()).chain(self.label)
    }
}

/// One split of a data set with the Pick-a-Pic columns.
#[derive(Debug)]
pub struct ParquetPairs {
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

impl ParquetPairs {
    /// Finds the files of `split` and checks the columns of every one of them.
    ///
    /// `path` may also be a single parquet file, whose name then does not matter.
    ///
    /// # Errors
    /// No such files, or one that is not parquet or lacks a needed column.
    pub fn open(path: &Path, split: &str, images: Images) -> Result<Self> {
        let files = match path.is_file() {
            true => vec![path.to_path_buf()],
            false => shards::find(path, split, &PARQUET)?,
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
}

impl PairSource for ParquetPairs {
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
        let files = self.shards.iter().map(|shard| shard.path.as_path());
        stamp("", files)
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn files(&self) -> Vec<&Path> {
        self.shards.iter().map(|shard| shard.path.as_path()).collect()
    }
}

impl Shard {
    fn rows(&self) -> Result<Rows<'static>> {
        let builder = parquet_file::open(&self.path)?;
        let names = self.images.names();
        let needed = names.needed(builder.schema());
        let columns = needed.chain([HAS_LABEL]).chain(names.scores).map(|name| {
            // The path beside the bytes of a Hugging Face image is not worth reading.
            match builder.schema().field_with_name(name).map(|f| f.data_type()) {
                Ok(DataType::Struct(_)) => format!("{name}.bytes"),
                _ => name.to_owned(),
            }
        });
        let columns: Vec<String> = columns.collect();
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().map(String::as_str));
        let (path, images): (Arc<Path>, _) = (self.path.as_path().into(), self.images);
        let reader = builder
            .with_projection(mask)
            .with_batch_size(ROWS_AT_ONCE)
            .build()
            .map_err(|e| parquet_file::unreadable(&path, &e))?;
        let (first_id, mut next) = (self.first_row, 0);
        Ok(Box::new(reader.flat_map(move |batch| {
            let rows: Vec<Result<Row>> = match batch {
                Ok(batch) => Columns::of(&batch, images).rows(&path, first_id, next),
                Err(e) => vec![Err(parquet_file::unreadable(&path, &e))],
            };
            next += rows.len() as u64;
            rows
        })))
    }
}

fn check_columns(path: &Path, schema: &Schema, images: Images) -> Result<()> {
    let (names, place) = (images.names(), path.display().to_string());
    let missing: Vec<&str> = names
        .needed(schema)
        .filter(|name| schema.field_with_name(name).is_err())
        .collect();
    if !missing.is_empty() {
        let what = format!("lacks the columns {}", missing.join(", "));
        return Err(Error::bad(place, what, images.remedy()));
    }
    for field in schema.fields() {
        let (name, found) = (field.name().as_str(), field.data_type());
        let (kind, fits) = if name == names.caption_in(schema) {
            ("a string", *found == DataType::Utf8)
        } else if names.images.contains(&name) {
            (
                "binary, or a struct with binary bytes",
                parquet_file::is_image(found),
            )
        } else if names.label == Some(name) || names.scores.contains(&name) {
            ("a 64-bit integer or a float", is_number(found))
        } else if name == HAS_LABEL {
            ("a boolean", *found == DataType::Boolean)
        } else {
            continue;
        };
        if !fits {
            let what = format!("column {name} is {found}, but must be {kind}");
            return Err(Error::bad(place, what, images.remedy()));
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
    /// Absent where the first image is always the better one.
    label: Option<&'a dyn Array>,
    has_label: Option<&'a dyn Array>,
    scores: [Option<&'a dyn Array>; 2],
}

/// Image files, and for structs also which of them are null as a whole.
struct Files<'a> {
    name: &'static str,
    bytes: &'a BinaryArray,
    structs: Option<&'a StructArray>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch, images: Images) -> Self {
        let optional = |name: &str| batch.column_by_name(name).map(|column| &**column);
        let needed = |name: &str| optional(name).expect("open() saw this column in the same file");
        let files = |name: &&'static str| {
            let column = needed(name);
            let structs = column.as_struct_opt();
            let bytes = structs.map_or(column, |s| &**s.column(0));
            Files {
                name,
                bytes: bytes.as_binary(),
                structs,
            }
        };
        let names = images.names();
        Self {
            rows: batch.num_rows(),
            caption: needed(names.caption_in(batch.schema_ref())).as_string(),
            first: files(&names.images[0]),
            second: names.images.get(1).map(files),
            label: names.label.map(needed),
            has_label: names.label.and_then(|_| optional(HAS_LABEL)),
            scores: names.scores.map(optional),
        }
    }

    /// All rows: their ids count from `first_id`, the first of them being row `first_row` of its file.
    fn rows(&self, file: &Arc<Path>, first_id: u64, first_row: u64) -> Vec<Result<Row>> {
        let row = |row: usize| {
            let number = first_row + row as u64;
            Ok(Row {
                id: PairId(first_id + number),
                place: Place {
                    file: file.clone(),
                    at: At::Row(number),
                },
                content: self.row(row).unwrap_or_else(Content::Damaged),
            })
        };
        (0..self.rows).map(row).collect()
    }

    fn row(&self, row: usize) -> Result<Content, String> {
        let labelled = |column: &dyn Array| column.is_valid(row) && column.as_boolean().value(row);
        if !self.has_label.is_none_or(labelled) {
            return Ok(Content::Unlabelled(self.pictures(row).ok()));
        }
        let preference = match self.label {
            None => Preference::First,
            Some(column) => {
                let label = number(column, row).ok_or("label_0 is null")?;
                Preference::of_label(label)
                    .ok_or_else(|| format!("label_0 is {label}, which is none of 0, 0.5 and 1"))?
            }
        };
        if preference == Preference::Tie && self.second.is_none() {
            return Ok(Content::Unlabelled(None));
        }
        let Pictures { caption, images } = self.pictures(row)?;
        Ok(Content::Pair(Pair {
            caption,
            images,
            preference,
            scores: match self.scores.map(|column| column.and_then(|c| number(c, row))) {
                [Some(first), Some(second)] => Some([first as f32, second as f32]),
                _ => None,
            },
        }))
    }
}

impl Columns<'_> {
    /// Caption and images; a single image twice.
    fn pictures(&self, row: usize) -> Result<Pictures, String> {
        if self.caption.is_null(row) {
            return Err("caption is null".into());
        }
        let first = self.first.file(row)?;
        let second = match &self.second {
            Some(files) => files.file(row)?,
            None => first.clone(),
        };
        Ok(Pictures {
            caption: self.caption.value(row).to_owned(),
            images: [first, second],
        })
    }
}

impl Files<'_> {
    fn file(&self, row: usize) -> Result<Picture, String> {
        let present = self.structs.is_none_or(|s| s.is_valid(row)) && self.bytes.is_valid(row);
        match present {
            true => Ok(Picture::Bytes(self.bytes.value(row).to_vec())),
            false => Err(format!("{} holds no image bytes", self.name)),
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
