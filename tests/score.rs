//! Scoring many pictures: sources, broken pictures, the cache, and what bad input is told.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use ortdpo::data::{PairSource, PickAPic, Row};
use ortdpo::reward::RewardModel;
use ortdpo::runtime::SessionOptions;
use ortdpo::score::source::{self, Source};
use ortdpo::score::{Scored, Scorer};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn scorer(names: &[&str], cache: Option<&Path>) -> Scorer {
    let open = |name: &&str| {
        let folder = repository().join("models/tiny-rewards").join(name);
        RewardModel::open_folder(&folder, &SessionOptions::default()).unwrap()
    };
    Scorer::new(names.iter().map(open).collect(), cache).unwrap()
}

/// Files and captions of different held-out pictures.
fn pictures(count: usize) -> Vec<(Vec<u8>, String)> {
    let source = PickAPic::open(&repository().join("models/tiny-sd/pairs"), "heldout").unwrap();
    let rows = source.rows().unwrap().step_by(3).take(count);
    rows.map(|row| match row.unwrap() {
        Row::Pair(pair) => (pair.images[0].clone(), pair.caption),
        other => panic!("{other:?}"),
    })
    .collect()
}

/// A folder with pictures, a list of them, and one file that is no picture.
fn folder(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut list = String::new();
    for (index, (bytes, caption)) in pictures(count).into_iter().enumerate() {
        let name = format!("{index:05}.jpg");
        fs::write(folder.path().join(&name), bytes).unwrap();
        let style = ["a", "b"][index % 2];
        let line = serde_json::json!({"file": name, "prompt": caption, "seed": index, "style": style});
        list += &format!("{line}\n");
    }
    fs::write(folder.path().join("broken.jpg"), b"<html>404</html>").unwrap();
    list += "{\"file\": \"broken.jpg\", \"prompt\": \"a cat on a red background\", \"seed\": 99, \"style\": \"b\"}\n";
    fs::write(folder.path().join("images.jsonl"), list).unwrap();
    folder
}

fn score(scorer: &mut Scorer, source: Source) -> Result<Vec<Scored>, ortdpo::Error> {
    let mut rows = Vec::new();
    let stop = AtomicBool::new(false);
    scorer.score_records(source.records, &stop, |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

#[test]
fn a_list_is_scored_in_order_and_a_broken_picture_is_a_problem_of_its_own() {
    let folder = folder(70);
    let mut both = scorer(&["clip", "judge"], None);
    assert_eq!(both.names(), ["clip", "judge"]);
    let source = source::open(folder.path().to_str().unwrap()).unwrap();
    assert_eq!(source.len, Some(71));
    let rows = score(&mut both, source).unwrap();
    let (sound, broken) = rows.split_at(70);
    assert!(
        broken[0]
            .problem
            .as_deref()
            .unwrap()
            .contains("cannot be decoded")
    );
    assert_eq!(broken[0].scores, [None, None]);
    let mut clip = scorer(&["clip"], None);
    for (index, row) in sound.iter().enumerate() {
        assert_eq!(row.record.fields["seed"], index);
        let bytes = fs::read(folder.path().join(&row.record.file)).unwrap();
        let image = ortdpo::data::image::decode(&bytes).unwrap();
        let alone = clip
            .score_images(&[image], &[row.record.prompt.as_deref().unwrap()])
            .unwrap()[0][0];
        assert!((alone - row.scores[0].unwrap()).abs() < 1e-4, "{row:?}");
        assert!((0.0..=1.0).contains(&row.scores[1].unwrap()));
    }
}

#[test]
fn the_cache_gives_the_same_scores_and_survives_damage() {
    let folder = folder(40);
    let cache = folder.path().join("cache");
    let run = || {
        let source = source::open(folder.path().join("images.jsonl").to_str().unwrap()).unwrap();
        score(&mut scorer(&["clip", "judge"], Some(&cache)), source).unwrap()
    };
    let first = run();
    let shard = cache.join("shard-0000.bin");
    let bytes = fs::metadata(&shard).unwrap().len();
    // 96 embedded values and 59 logits, with their shapes.
    assert_eq!(bytes, 40 * 4 * (96 + 59 + 2 * 3));
    assert_eq!(run(), first);
    assert_eq!(
        fs::metadata(&shard).unwrap().len(),
        bytes,
        "nothing was embedded twice"
    );
    let mut damaged = fs::read(&shard).unwrap();
    damaged[100] ^= 1;
    fs::write(&shard, damaged).unwrap();
    for (again, before) in run().iter().zip(&first) {
        for (a, b) in again.scores.iter().zip(&before.scores) {
            assert!(
                a.zip(*b).is_none_or(|(a, b)| (a - b).abs() < 1e-4),
                "{again:?} {before:?}"
            );
        }
    }
    let whole = fs::metadata(&shard).unwrap().len();
    assert!(
        whole > bytes && whole < bytes + 2000,
        "one row was made again: {bytes} {whole}"
    );
}

#[test]
fn folders_globs_and_parquet_files_give_the_same_scores() {
    let folder = folder(9);
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let rows = pictures(9);
    let columns: [(&str, ArrayRef); 3] = [
        (
            "caption",
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.1))),
        ),
        (
            "image",
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.0))),
        ),
        ("seed", Arc::new(Int64Array::from_iter_values(0..9))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = fs::File::create(place("all.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    let mut clip = scorer(&["clip"], None);
    let listed = score(&mut clip, source::open(&place("")).unwrap()).unwrap();
    let parquet = score(&mut clip, source::open(&place("all.parquet")).unwrap()).unwrap();
    assert_eq!(parquet.len(), 9);
    assert_eq!(parquet[3].record.file, format!("{}#3", place("all.parquet")));
    assert_eq!(parquet[3].record.fields["seed"], 3);
    for (a, b) in listed.iter().zip(&parquet) {
        assert_eq!((&a.scores, &a.record.prompt), (&b.scores, &b.record.prompt));
    }

    fs::remove_file(place("images.jsonl")).unwrap();
    fs::create_dir(place("style")).unwrap();
    fs::rename(place("00008.jpg"), place("style/00000.JPEG")).unwrap();
    let files: Vec<_> = source::open(&place(""))
        .unwrap()
        .records
        .map(|r| r.unwrap())
        .collect();
    assert_eq!(files.len(), 10);
    assert_eq!(files[9].fields["folder"], "style");
    let globbed = source::open(&place("0000[0-3].jpg")).unwrap();
    assert_eq!(globbed.len, Some(4));
}

#[test]
fn a_prompt_that_a_reward_cannot_read_is_a_problem_of_its_row() {
    let folder = folder(2);
    let list = "{\"file\": \"00000.jpg\", \"prompt\": \"a zebra\"}\n{\"file\": \"00001.jpg\", \"prompt\": \"a cat on a red background\"}\n";
    fs::write(folder.path().join("images.jsonl"), list).unwrap();
    let source = source::open(folder.path().to_str().unwrap()).unwrap();
    let rows = score(&mut scorer(&["clip", "judge"], None), source).unwrap();
    assert!(rows[0].scores[0].is_some() && rows[0].scores[1].is_none());
    assert!(rows[0].problem.as_deref().unwrap().contains("a zebra"));
    assert!(rows[1].scores.iter().all(Option::is_some) && rows[1].problem.is_none());
}

#[test]
fn bad_input_is_told_what_to_do() {
    let folder = folder(1);
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let error = |name: &str| {
        source::open(&place(name))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    fs::create_dir(place("empty")).unwrap();
    assert!(error("empty").contains("holds no pictures"));
    assert!(error("missing").contains("does not exist"));
    assert!(error("*.gif").contains("holds no pictures"));
    let lines = |text: &str| {
        fs::write(place("list.jsonl"), text).unwrap();
        let found = score(
            &mut scorer(&["clip"], None),
            source::open(&place("list.jsonl")).unwrap(),
        );
        found.unwrap_err().to_string()
    };
    assert!(lines("{\"file\": \"00000.jpg\"}").contains("00000.jpg: comes without a prompt"));
    assert!(lines("{\"prompt\": \"a cat\"}").contains("list.jsonl:1: names no \"file\""));
    assert!(lines("\n[1]\n").contains("list.jsonl:2: is not a JSON object"));
    let stopped = scorer(&["clip"], None).score_records(
        source::open(&place("")).unwrap().records,
        &AtomicBool::new(true),
        |_| Ok(()),
    );
    assert_eq!(stopped.unwrap_err().exit_code(), 130);
}
