//! Tests of [`super::parquet_pairs`].

use std::fs;
use std::path::{Path, PathBuf};

use super::{Images, ParquetPairs};
use crate::Result;
use crate::data::shards::{PARQUET, splits};
use crate::data::{Content, PairSource, Preference, Row, image};
use crate::rng::PairId;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pairs")
        .join(name)
}

fn rows(name: &str, split: &str) -> Vec<Row> {
    let source = ParquetPairs::open(&fixture(name), split, Images::Pairs).unwrap();
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
        assert_eq!(row.id, PairId(number as u64));
        match &row.content {
            Content::Pair(pair) => {
                let (label, preference) = expected[number % 5];
                assert_eq!(pair.preference, preference);
                assert_eq!(pair.scores, Some([0.25 * label, -0.5 * label]));
                let files = [0, 1].map(|i| pair.images[i].read().unwrap());
                assert!(image::decode(&files[0]).is_ok());
                assert!(files[0].starts_with(b"\x89PNG") && files[1].starts_with(b"\xff\xd8"));
            }
            Content::Unlabelled(_) => assert_eq!(number, 7),
            Content::Damaged(_) => panic!("{row:?}"),
        }
    }
    let Content::Pair(last) = &rows[9].content else {
        panic!()
    };
    assert_eq!(last.caption, "a blue circle");
}

#[test]
fn image_structs_give_the_same_rows_as_raw_binary() {
    let contents =
        |name| -> Vec<Content> { rows(name, "train").into_iter().map(|row| row.content).collect() };
    assert_eq!(contents("struct"), contents("whole"));
}

#[test]
fn a_row_without_an_image_is_damaged_and_the_rest_goes_on() {
    let rows = rows("broken", "train");
    let damaged: Vec<&Row> = rows
        .iter()
        .filter(|row| matches!(row.content, Content::Damaged(_)))
        .collect();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].id, PairId(8));
    assert_eq!(
        damaged[0].content,
        Content::Damaged("jpg_0 holds no image bytes".into())
    );
    assert_eq!(rows.len(), 20);
}

#[test]
fn missing_columns_are_named_with_their_file() {
    let error = ParquetPairs::open(&fixture("missing"), "train", Images::Pairs)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("missing/train-00000-of-00001.parquet: lacks the columns jpg_1, label_0"),
        "{error}"
    );
}

#[test]
fn a_split_that_is_not_there_lists_those_that_are() {
    let error = ParquetPairs::open(&fixture("whole"), "validation", Images::Pairs)
        .unwrap_err()
        .to_string();
    assert!(error.contains("heldout, train"), "{error}");
    assert_eq!(splits(&fixture("whole"), &PARQUET).unwrap(), ["heldout", "train"]);
    assert!(ParquetPairs::open(&fixture("nowhere"), "train", Images::Pairs).is_err());
}

#[test]
fn one_file_can_be_named_and_rows_are_located() {
    let file = fixture("whole/train-00001-of-00002.parquet");
    assert_eq!(ParquetPairs::open(&file, "any", Images::Pairs).unwrap().len(), 5);
    let place = rows("whole", "train")[7].place.to_string();
    assert!(place.ends_with("train-00001-of-00002.parquet, row 2"), "{place}");
}

#[test]
fn a_truncated_file_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("whole/train-00000-of-00002.parquet")).unwrap();
    fs::write(dir.path().join("train-0.parquet"), &whole[..whole.len() - 100]).unwrap();
    let error = ParquetPairs::open(dir.path(), "train", Images::Pairs).unwrap_err();
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
    let source = ParquetPairs::open(dir.path(), "train", Images::Pairs).unwrap();
    assert!(source.rows().unwrap().any(|row| row.is_err()));
}

#[test]
fn the_stamp_changes_with_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train-0.parquet");
    fs::copy(fixture("struct/train-00000-of-00001.parquet"), &file).unwrap();
    let stamp = || {
        ParquetPairs::open(dir.path(), "train", Images::Pairs)
            .unwrap()
            .stamp()
            .unwrap()
    };
    let before = stamp();
    assert_eq!(before, stamp());
    fs::copy(fixture("broken/train-00000-of-00001.parquet"), &file).unwrap();
    assert_ne!(before, stamp());
}
