//! Every kind of data set says the same about the same comparisons (`scripts/fixtures/datasets.py` wrote them).

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::data::pair::{Content, Row};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/datasets")
        .join(name)
}

fn rows_of(source: &dyn PairSource) -> Vec<Row> {
    let rows: Vec<Row> = source.rows().unwrap().collect::<Result<_>>().unwrap();
    assert_eq!(source.len(), rows.len() as u64);
    let ids: Vec<u64> = rows.iter().map(|row| row.id.0).collect();
    assert!(ids.iter().copied().eq(0..rows.len() as u64), "{ids:?}");
    rows
}

fn rows(kind: DataKind, name: &str, split: &str, choose: Choose) -> Vec<Row> {
    rows_of(&*open(kind, &fixture(name), split, choose).unwrap())
}

/// Prompt, label, and the colours of the two pictures' squares.
fn said(rows: &[Row]) -> Vec<(String, f64, [String; 2])> {
    let pair = |row: &Row| match &row.content {
        Content::Pair(pair) => (
            pair.caption.clone(),
            pair.preference.label(),
            [0, 1].map(|i| colour(&pair.images[i].read().unwrap())),
        ),
        other => panic!("{}: {other:?}", row.place),
    };
    rows.iter().map(pair).collect()
}

fn colour(file: &[u8]) -> String {
    let picture = crate::data::image::decode(file).unwrap();
    let colour = match picture.get_pixel(8, 8).0 {
        [220, 30, 30] => "red",
        [128, 128, 128] => "grey",
        [30, 30, 220] => "blue",
        [20, 20, 24] => "dark",
        [30, 160, 30] => "green",
        [120, 220, 60] => "lime",
        other => panic!("{other:?}"),
    };
    colour.to_owned()
}

type Said<'a> = (&'a str, f64, [&'a str; 2]);

fn assert_said(rows: &[Row], expected: &[Said]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(caption, label, images)| ((*caption).to_owned(), *label, images.map(str::to_owned)))
        .collect();
    assert_eq!(said(rows), expected);
}

const RED: Said = ("a red square", 1.0, ["red", "grey"]);
const BLUE: Said = ("a blue square", 1.0, ["blue", "dark"]);
/// The same with the preferred picture behind the other.
const BLUE_SECOND: Said = ("a blue square", 0.0, ["dark", "blue"]);
const TIE: Said = ("a green square", 0.5, ["green", "lime"]);

#[test]
fn every_kind_says_the_same_of_the_same_pairs() {
    use DataKind::*;
    let cases: [(DataKind, &str, &[Said]); 11] = [
        (Hpdv2, "hpdv2", &[RED, BLUE_SECOND, TIE]),
        (Hpdv3, "hpdv3", &[RED, BLUE]),
        (Imagereward, "imagereward", &[RED, BLUE, TIE]),
        (Imagereward, "imagereward-table", &[RED, BLUE, TIE]),
        (Jsonl, "jsonl", &[RED, BLUE_SECOND, TIE]),
        (Imagefolder, "imagefolder", &[RED, BLUE]),
        (Imagefolder, "imagefolder-scores", &[RED, BLUE, TIE]),
        (Folders, "folders", &[RED, BLUE]),
        (Folders, "folders-suffixes", &[RED, BLUE]),
        (Webdataset, "webdataset", &[RED, BLUE_SECOND, TIE]),
        (ChosenRejected, "chosen-rejected", &[RED, BLUE]),
    ];
    for (kind, name, expected) in cases {
        assert_said(&rows(kind, name, "train", Choose::All), expected);
        assert_eq!(detect(&fixture(name)).unwrap(), kind, "{name}");
    }
    assert_eq!(detect(&fixture("rated-csv")).unwrap(), Rated);
    assert_eq!(detect(&fixture("../pairs/whole")).unwrap(), Pickapic);
}

#[test]
fn rated_lists_pair_each_picture_with_itself() {
    let rows = rows(DataKind::Rated, "rated-csv", "train", Choose::All);
    assert_said(
        &rows[..2],
        &[
            ("a red square, bright", 1.0, ["red", "red"]),
            ("a red square, bright", 0.0, ["grey", "grey"]),
        ],
    );
    assert_eq!(rows.len(), 6);
    assert!(
        rows[1].place.to_string().ends_with("rated-csv/train.csv, row 1"),
        "{}",
        rows[1].place
    );
}

#[test]
fn ranks_become_the_pairs_that_are_asked_for() {
    let squares = |label, images| ("squares", label, images);
    let of = |choose| rows(DataKind::Hpdv2, "hpdv2", "test", choose);
    assert_said(&of(Choose::BestWorst), &[squares(1.0, ["red", "grey"])]);
    assert_said(
        &of(Choose::Adjacent),
        &[
            squares(1.0, ["red", "blue"]),
            squares(1.0, ["blue", "green"]),
            squares(1.0, ["green", "grey"]),
        ],
    );
    assert_said(
        &of(Choose::All),
        &[
            squares(0.0, ["grey", "red"]),
            squares(0.0, ["grey", "blue"]),
            squares(0.0, ["grey", "green"]),
            squares(1.0, ["red", "blue"]),
            squares(1.0, ["red", "green"]),
            squares(1.0, ["blue", "green"]),
        ],
    );
}

#[test]
fn json_lines_have_scores_several_rejected_ranks_and_rows_without_a_label() {
    let train = rows(DataKind::Jsonl, "jsonl", "train", Choose::All);
    let Content::Pair(first) = &train[0].content else {
        panic!()
    };
    assert_eq!(first.scores, Some([0.5, 0.25]));
    let heldout = rows(DataKind::Jsonl, "jsonl", "heldout", Choose::BestWorst);
    assert!(matches!(heldout[3].content, Content::Unlabelled(Some(_))));
    let expected = [
        RED,
        ("a red square", 1.0, ["red", "dark"]),
        ("squares", 1.0, ["red", "grey"]),
    ];
    assert_said(&heldout[..3], &expected);
}

#[test]
fn damaged_rows_say_where_and_what_and_the_rest_goes_on() {
    let rows = rows(DataKind::Jsonl, "broken-jsonl", "train", Choose::All);
    let damage = |row: usize| match &rows[row].content {
        Content::Damaged(reason) => format!("{}: {reason}", rows[row].place),
        other => panic!("{other:?}"),
    };
    assert_eq!(rows.len(), 8);
    assert!(
        damage(4).ends_with("train.jsonl, line 5: lacks prompt or caption or text"),
        "{}",
        damage(4)
    );
    assert!(
        damage(6).contains("train.jsonl, line 7: is no JSON object"),
        "{}",
        damage(6)
    );
    assert!(
        damage(7).ends_with("line 8: holds 0.7 as label of chosen, which is neither 1 nor 0.5"),
        "{}",
        damage(7)
    );
    let Content::Pair(pair) = &rows[3].content else {
        panic!()
    };
    let missing = pair.images[1].read().unwrap_err();
    assert!(
        missing.starts_with("is missing") && missing.ends_with("broken-jsonl/nowhere.png"),
        "{missing}"
    );
}

#[test]
fn another_format_is_refused_with_what_this_one_has() {
    let refused = |kind, name: &str, split: &str| match open(kind, &fixture(name), split, Choose::All) {
        Ok(_) => panic!("{name} was taken"),
        Err(error) => error.to_string(),
    };
    let cases = [
        (
            DataKind::Hpdv2,
            "hpdv3",
            "train",
            "train.json, line 2: lacks file_path or image_path. HPDv2 has",
        ),
        (
            DataKind::Hpdv3,
            "hpdv2",
            "train",
            "line 1: lacks path1. HPDv3 has",
        ),
        (DataKind::Jsonl, "hpdv3", "train", "lacks chosen and rejected"),
        (
            DataKind::Hpdv2,
            "hpdv2",
            "validation",
            "holds no validation-*.json or jsonl or ndjson or csv; it has these splits: test, train",
        ),
        (DataKind::Folders, "hpdv3", "train", "holds neither w/ and l/"),
        (
            DataKind::Imagefolder,
            "folders",
            "train",
            "holds no metadata.jsonl",
        ),
        (
            DataKind::Imagereward,
            "folders",
            "train",
            "holds neither metadata-train.parquet nor",
        ),
        (DataKind::Webdataset, "hpdv2", "train", "no tar files at all"),
        (
            DataKind::Pickapic,
            "chosen-rejected",
            "train",
            "lacks the columns caption, jpg_0, jpg_1, label_0",
        ),
        (
            DataKind::ChosenRejected,
            "../pairs/whole",
            "train",
            "lacks the columns chosen, rejected",
        ),
        (DataKind::Rated, "hpdv3", "train", "lacks file_path or file_name"),
    ];
    for (kind, name, split, expected) in cases {
        let text = refused(kind, name, split);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn splits_are_listed() {
    let of = |kind, name: &str| splits(kind, &fixture(name)).unwrap().names;
    assert_eq!(of(DataKind::Hpdv2, "hpdv2"), ["test", "train"]);
    assert_eq!(of(DataKind::Jsonl, "jsonl"), ["heldout", "train"]);
    assert_eq!(of(DataKind::Imagereward, "imagereward"), ["train"]);
    assert_eq!(of(DataKind::Imagefolder, "imagefolder-scores"), ["train"]);
    assert_eq!(of(DataKind::Imagefolder, "imagefolder"), [""; 0]);
    assert_eq!(of(DataKind::Folders, "folders"), [""; 0]);
    assert_eq!(of(DataKind::Webdataset, "webdataset"), ["train"]);
}

#[test]
fn a_picture_that_changes_changes_the_stamp() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["train.jsonl", "pictures/red.png", "pictures/grey.png"] {
        let to = folder.path().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture("jsonl").join(file), to).unwrap();
    }
    let stamp = |choose| {
        let source = open(DataKind::Jsonl, folder.path(), "train", choose).unwrap();
        source.stamp().unwrap()
    };
    let before = stamp(Choose::All);
    assert_eq!(before, stamp(Choose::All));
    assert_ne!(before, stamp(Choose::Adjacent));
    fs::copy(
        fixture("broken-jsonl/half.png"),
        folder.path().join("pictures/red.png"),
    )
    .unwrap();
    assert_ne!(before, stamp(Choose::All));
}

#[test]
fn a_caption_that_changes_changes_the_stamp() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["w/0000.png", "w/0000.txt", "l/0000.png"] {
        let to = folder.path().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture("folders").join(file), to).unwrap();
    }
    let stamp = || {
        let source = open(DataKind::Folders, folder.path(), "train", Choose::All).unwrap();
        source.stamp().unwrap()
    };
    let before = stamp();
    assert_eq!(before, stamp());
    fs::write(folder.path().join("w/0000.txt"), "another prompt").unwrap();
    assert_ne!(before, stamp());
}

#[test]
fn an_archive_that_is_cut_off_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("webdataset/train-000000.tar")).unwrap();
    // Within a file, between two, within the head of one.
    for length in [560, 1024, 3000, 0] {
        fs::write(folder.path().join("train-0.tar"), &whole[..length]).unwrap();
        let Err(error) = open(DataKind::Webdataset, folder.path(), "train", Choose::All) else {
            panic!("{length}")
        };
        let text = error.to_string();
        assert!(
            text.contains("train-0.tar: cannot be read as a tar archive"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 2);
    }
}

fn copy(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(fixture(from), to).unwrap();
}

/// HPDv2 as it is published: lists of prompts for benchmarks lie beside those of comparisons, and in the folder itself.
#[test]
fn lists_of_other_things_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for file in ["train.json", "test.json", "train/red.png", "train/grey.png"] {
        copy(&format!("hpdv2/{file}"), &at(file));
    }
    fs::create_dir(at("benchmark")).unwrap();
    for file in ["benchmark/anime.json", "anime.json"] {
        fs::write(at(file), r#"["a cat", "a dog"]"#).unwrap();
    }
    fs::write(at("notes.json"), r#"[{"text": "about"}]"#).unwrap();
    assert_eq!(detect(folder.path()).unwrap(), DataKind::Hpdv2);
    let found = splits(DataKind::Hpdv2, folder.path()).unwrap();
    assert_eq!(found.names, ["test", "train"]);
    let expected = ["anime.json", "benchmark/anime.json", "notes.json"];
    assert_eq!(found.passed_over, expected.map(at));
    assert_eq!(
        rows_of(&*open(DataKind::Hpdv2, folder.path(), "train", Choose::All).unwrap()).len(),
        3
    );
}

#[test]
fn rated_lists_may_be_json_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.json");
    fs::write(
        &path,
        r#"[{"file_path": "a.png", "caption": "a cat", "label": "exclusive_win"}]"#,
    )
    .unwrap();
    for place in [path.as_path(), folder.path()] {
        assert_eq!(detect(place).unwrap(), DataKind::Rated);
        let source = open(DataKind::Rated, place, "train", Choose::All).unwrap();
        assert_eq!(source.len(), 1);
    }
}

/// What cannot be compared is counted and named like any other broken row.
#[test]
fn rows_that_cannot_be_compared_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("train.jsonl");
    let text = r#"{"prompt": "a", "chosen": "a.png", "rejected": "b.png"}
{"prompt": "a", "chosen": [], "rejected": "b.png"}
{"prompt": "a", "chosen": "a.png", "rejec
{"prompt": "a", "chosen": "a.png", "rejected": []}
{"prompt": "a", "image_0": "a.png", "image_1": "b.png", "label": null}
{"prompt": "a", "images": ["a.png"], "scores": [1]}
"#;
    fs::write(&list, text).unwrap();
    let problems = |kind, path: &Path| -> Vec<Option<String>> {
        let rows = rows_of(&*open(kind, path, "train", Choose::All).unwrap());
        let problem = |row: &Row| match &row.content {
            Content::Damaged(reason) => Some(format!("{}: {reason}", row.place)),
            _ => None,
        };
        rows.iter().map(problem).collect()
    };
    let found = problems(DataKind::Jsonl, &list);
    let expected = [
        None,
        Some("line 2: has no picture in chosen"),
        Some("line 3: is no JSON object"),
        Some("line 4: has no picture in rejected"),
        None,
        Some("line 6: has 1 pictures and 1 scores"),
    ];
    for (found, expected) in found.iter().zip(expected) {
        match (found, expected) {
            (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => assert!(found.is_none() && expected.is_none(), "{found:?} {expected:?}"),
        }
    }
    assert_eq!(found.len(), 6);
    let scored = folder.path().join("metadata.jsonl");
    let text = r#"{"prompt": "a", "file_name": "a.png", "score": 1}
{"prompt": "b", "file_name": "b.png", "score": 1}
{"prompt": "a", "file_name": "c.png", "score": 2}
"#;
    fs::write(&scored, text).unwrap();
    let found = problems(DataKind::Imagefolder, folder.path());
    assert!(
        found.len() == 2
            && found[1]
                .as_ref()
                .unwrap()
                .contains("b.png is the only picture of its prompt"),
        "{found:?}"
    );
}
