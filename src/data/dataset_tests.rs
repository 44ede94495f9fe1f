//! Tests of [`super::dataset`] and of filling the cache.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::image::{Prepared, Size, View, decode};
use super::testing::{FakeEncoders, OPTIONS, prepare, source};
use super::*;
use crate::Error;
use crate::config::data::{DataConfig, DataKind};
use crate::data::{Part, open};

/// Expected mean of the fake encoder for one image of a row, straight from the source.
fn mean_of(name: &str, row: usize, image: usize) -> Vec<f32> {
    let source = source(name);
    let rows: Vec<Row> = source.rows().unwrap().collect::<Result<_>>().unwrap();
    let Content::Pair(pair) = &rows[row].content else {
        panic!("row {row} is no pair")
    };
    let mut pixels = vec![0.0; 3 * 16 * 16];
    Prepared::new(
        decode(&pair.images[image].read().unwrap()).unwrap(),
        Size::square(16),
    )
    .write(View::CENTER, &mut pixels);
    let every_fourth = |i: usize| (i / 16 % 16).is_multiple_of(4) && i.is_multiple_of(4);
    (0..pixels.len())
        .filter(|&i| every_fourth(i))
        .map(|i| pixels[i])
        .collect()
}

#[test]
fn pairs_get_their_own_latents_and_captions_the_preferred_first() {
    let cache = tempfile::tempdir().unwrap();
    let encoders = FakeEncoders::new(1);
    let dataset = prepare("whole", &encoders, cache.path(), OPTIONS).unwrap();
    let ids: Vec<u64> = dataset.pairs().iter().map(|pair| pair.id.0).collect();
    assert_eq!(
        ids,
        [0, 1, 3, 4, 5, 6, 8, 9],
        "2 is a tie, 7 is unlabelled (and would be one)"
    );
    let expected = Counts {
        rows: 10,
        pairs: 8,
        ties: 1,
        unlabelled: 1,
        captions: 4,
        ..Default::default()
    };
    assert_eq!(
        dataset.counts(),
        &Counts {
            truncated_captions: 1,
            captions: 3,
            ..expected
        }
    );
    assert_eq!(
        (dataset.latent_shape(), dataset.text_shape()),
        ([3, 4, 4], [16, 2])
    );
    for (index, row) in ids.iter().map(|&id| id as usize).enumerate() {
        let moments = dataset.moments(index, View::CENTER).unwrap();
        let winner = usize::from(dataset.pairs()[index].preference == Preference::Second);
        for (side, image) in [winner, 1 - winner].into_iter().enumerate() {
            let mean: Vec<f32> = moments[side].mean.iter().copied().collect();
            assert_eq!(mean, mean_of("whole", row, image), "row {row}, side {side}");
        }
    }
    let embedding = dataset.embedding(dataset.caption(1)).unwrap().hidden;
    assert_eq!(
        (dataset.caption(1), embedding[(2, 0)]),
        ("a blue circle", f32::from(b'b'))
    );
    assert!(dataset.embedding("").unwrap().hidden.iter().all(|&v| v == 0.0));
    assert_eq!(dataset.index_of(crate::rng::PairId(3)), Some(2));
    assert_eq!(dataset.index_of(crate::rng::PairId(2)), None);
}

#[test]
fn a_second_run_encodes_nothing_and_gives_the_same() {
    let cache = tempfile::tempdir().unwrap();
    let encoders = FakeEncoders::new(1);
    let first = prepare("whole", &encoders, cache.path(), OPTIONS).unwrap();
    assert_eq!(
        encoders.counts(),
        (16, 4, 2),
        "eight pairs, three captions and the empty one, two sessions"
    );
    let second = prepare("whole", &encoders, cache.path(), OPTIONS).unwrap();
    assert_eq!(encoders.counts(), (0, 0, 0));
    assert_eq!(first.pairs(), second.pairs());
    assert_eq!(first.hash(), second.hash());
    // Another layout of the same rows needs a new table, but no encoding.
    let structs = prepare("struct", &encoders, cache.path(), OPTIONS).unwrap();
    assert_eq!(
        encoders.counts(),
        (0, 0, 1),
        "captions are tokenized again to count the cut ones"
    );
    assert_eq!((structs.pairs(), structs.hash()), (first.pairs(), first.hash()));
    // Another model or resolution does.
    prepare("whole", &FakeEncoders::new(2), cache.path(), OPTIONS).unwrap();
    let larger = EncodeOptions {
        resolution: 24,
        ..OPTIONS
    };
    let dataset = prepare("whole", &encoders, cache.path(), larger).unwrap();
    assert_eq!((encoders.counts().0, dataset.latent_shape()), (16, [3, 6, 6]));
}

#[test]
fn an_interrupted_fill_goes_on_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let encoders = FakeEncoders::new(1);
    let options = EncodeOptions {
        keep_ties: true,
        ..OPTIONS
    };
    let stop = &mut |progress: Progress| match progress.done {
        0..16 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let error = Dataset::prepare(&source("broken"), &encoders, cache.path(), options, stop).unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    let before = encoders.counts().0;
    assert!(
        (20..30).contains(&before),
        "{before} images of the first 16 rows, in full batches"
    );
    let dataset = prepare("broken", &encoders, cache.path(), options).unwrap();
    let after = encoders.counts().0;
    assert_eq!(
        before + after,
        35,
        "17 whole pairs and the sound image of a broken one"
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let straight = prepare("broken", &encoders, elsewhere.path(), options).unwrap();
    assert_eq!(
        (dataset.pairs(), dataset.hash()),
        (straight.pairs(), straight.hash())
    );
}

#[test]
fn broken_images_are_counted_and_too_many_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let encoders = FakeEncoders::new(1);
    let dataset = prepare("broken", &encoders, cache.path(), OPTIONS).unwrap();
    assert_eq!((dataset.counts().skipped, dataset.counts().rows), (2, 20));
    assert!(
        dataset
            .pairs()
            .iter()
            .all(|pair| pair.id.0 != 3 && pair.id.0 != 8)
    );
    let warnings = dataset.warnings().join("\n");
    assert!(
        warnings.contains("row 3: the second picture") && warnings.contains("row 8: jpg_0 holds no"),
        "{warnings}"
    );
    let strict = EncodeOptions {
        max_skipped_share: 0.05,
        ..OPTIONS
    };
    let error = prepare("broken", &encoders, cache.path(), strict).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("more than 5% of its 20 rows") && text.contains("data.max_skipped_share"),
        "{text}"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn damaged_entries_are_made_again_alone() {
    let cache = tempfile::tempdir().unwrap();
    let encoders = FakeEncoders::new(1);
    let whole = prepare("whole", &encoders, cache.path(), OPTIONS).unwrap();
    let moments = whole.moments(0, View::CENTER).unwrap();
    drop(whole);
    encoders.counts();
    for entry in fs::read_dir(cache.path()).unwrap() {
        let shard = entry.unwrap().path().join("shard-0000.bin");
        if shard.is_file() {
            let mut bytes = fs::read(&shard).unwrap();
            bytes[40] ^= 4;
            fs::write(&shard, bytes).unwrap();
        }
    }
    let unchecked = EncodeOptions {
        verify: false,
        ..OPTIONS
    };
    let error = prepare("whole", &encoders, cache.path(), unchecked)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("data.verify_cache") && error.contains("shard-0000.bin"),
        "{error}"
    );
    let mended = prepare("whole", &encoders, cache.path(), OPTIONS).unwrap();
    assert_eq!(encoders.counts(), (1, 1, 2));
    assert_eq!(mended.moments(0, View::CENTER).unwrap(), moments);
}

#[test]
fn each_view_is_encoded_and_kept() {
    let cache = tempfile::tempdir().unwrap();
    let encoders = FakeEncoders::new(1);
    let options = EncodeOptions {
        views: Views { crops: 2, flip: true },
        ..OPTIONS
    };
    let dataset = prepare("whole", &encoders, cache.path(), options).unwrap();
    assert_eq!(encoders.counts().0, 64);
    let mean = |view| dataset.moments(1, view).unwrap()[0].mean.clone();
    let views: Vec<View> = options.views.all().collect();
    for (i, a) in views.iter().enumerate() {
        for b in &views[..i] {
            assert_ne!(mean(*a), mean(*b), "{a:?} {b:?}");
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_one_clear_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = prepare(
        "whole",
        &FakeEncoders::new(1),
        &file.path().join("cache"),
        OPTIONS,
    )
    .unwrap_err();
    assert!(error.to_string().contains("cannot create the folder"), "{error}");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn a_split_without_usable_pairs_says_what_it_has() {
    let cache = tempfile::tempdir().unwrap();
    let path = testing::fixture("ties/train-00000-of-00001.parquet");
    let source = ParquetPairs::open(&path, "train", Images::Pairs).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    let error = Dataset::prepare(&source, &FakeEncoders::new(1), cache.path(), OPTIONS, go_on).unwrap_err();
    assert!(error.to_string().contains("of 2 rows 2 are ties"), "{error}");
}

/// Shards of a kind, of which the progress of encoding takes one away, by deleting it or cutting it off.
fn refused_without(kind: DataKind, shards: &[PathBuf], folder: &Path, cut: bool) -> String {
    let cache = tempfile::tempdir().unwrap();
    let config = DataConfig {
        kind,
        path: folder.to_path_buf(),
        ..DataConfig::default()
    };
    let source = open(&config, Part::Train).unwrap().unwrap();
    let (victim, whole) = (shards.last().unwrap(), fs::read(shards.last().unwrap()).unwrap());
    let mut harmed = false;
    let mut harm = |_: Progress| {
        match (std::mem::replace(&mut harmed, true), cut) {
            (false, true) => fs::write(victim, &whole[..whole.len() / 4]).unwrap(),
            (false, false) => fs::remove_file(victim).unwrap(),
            (true, _) => {}
        }
        ControlFlow::Continue(())
    };
    let encoders = FakeEncoders::new(1);
    let error = Dataset::prepare(source.as_ref(), &encoders, cache.path(), OPTIONS, &mut harm).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    // Back in its place, it is read as if nothing had happened.
    fs::write(victim, &whole).unwrap();
    let all = |cache: &Path| {
        let source = open(&config, Part::Train).unwrap().unwrap();
        let go_on = &mut |_: Progress| ControlFlow::Continue(());
        Dataset::prepare(source.as_ref(), &encoders, cache, OPTIONS, go_on).unwrap()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(all(cache.path()).hash(), all(elsewhere.path()).hash());
    error.to_string()
}

#[test]
fn a_shard_that_goes_while_it_is_read_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let whole = fs::read_dir(root.join("pairs/whole")).unwrap();
    let parquet = whole
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("train"))
        })
        .unwrap();
    for (kind, from, extension) in [
        (
            DataKind::Webdataset,
            root.join("datasets/webdataset/train-000000.tar"),
            "tar",
        ),
        (DataKind::Pickapic, parquet, "parquet"),
    ] {
        for cut in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let name = |number| folder.path().join(format!("train-{number:05}.{extension}"));
            let shards: Vec<PathBuf> = (0..60).map(name).collect();
            for shard in &shards {
                fs::copy(&from, shard).unwrap();
            }
            let text = refused_without(kind, &shards, folder.path(), cut);
            assert!(text.contains(&format!("train-00059.{extension}: ")), "{text}");
            assert!(
                text.contains("again") || text.contains("Check the path"),
                "{text}"
            );
        }
    }
}
