//! Single images that people liked or not: what KTO learns from them.

mod common;

use std::fs::File;
use std::path::Path;

use common::fixtures;
use common::train::{Workspace, metrics, refused};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A copy of `from` with three of its columns, as a data set of single images has them.
fn single_images(from: &Path, to: &Path) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(from).unwrap()).unwrap();
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    let schema = batches[0].schema();
    let columns = ["caption", "jpg_0", "label_0"].map(|name| schema.index_of(name).unwrap());
    let single = |batch: &arrow_array::RecordBatch| batch.project(&columns).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(to).unwrap(), single(&batches[0]).schema(), None).unwrap();
    for batch in &batches {
        writer.write(&single(batch)).unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn kto_learns_from_single_images() {
    let workspace = Workspace::new();
    let data = workspace.path("rated");
    std::fs::create_dir(&data).unwrap();
    for entry in std::fs::read_dir(fixtures().join("pairs/whole")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "parquet") {
            single_images(&path, &data.join(path.file_name().unwrap()));
        }
    }
    let data = format!("data={{kind: rated, path: {}}}", data.display());
    let kto = [
        "objective={kind: kto, desirable: 1.5}",
        "train={steps: 6, pairs_per_step: 4, accumulate: 2, eval_every: 3}",
        "reference={update: ema, alpha: 0.3, anchor: {kind: kl}}",
        "timestep={bins: 2, weighting: {kind: variance, warmup: 2}}",
        &data,
    ];
    let log = metrics(&workspace.trained("kto", &kto));
    assert_eq!(log.len(), 6);
    // Policy and reference are alike at first: the loss is w·(1 − σ(0)), w being 1.5 for liked images and 1 for others.
    let first = log[0]["loss"].as_f64().unwrap();
    let liked = (first / 0.5 - 1.0) / 0.5 * 4.0;
    assert!(
        (liked - liked.round()).abs() < 1e-3 && (0.0..=4.0).contains(&liked),
        "{first}"
    );
    assert!(
        log.iter()
            .all(|line| line["e_l"].is_null() && line["ref_e_w"].is_f64())
    );
    assert!(log.iter().all(|line| line.get("acc_init").is_none()));
    // Over some steps there are images of both kinds.
    let losses: Vec<f64> = log.iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    assert!(
        losses.iter().any(|loss| (loss - losses[0]).abs() > 0.05),
        "{losses:?}"
    );

    let text = refused(&workspace.train("dpo", &[&data]).output().unwrap());
    assert!(
        text.contains("data.kind: is rated, but objective dpo learns from pairs"),
        "{text}"
    );
    let pairs_from_single = data.replace("kind: rated, ", "");
    let text = refused(&workspace.train("pairs", &[&pairs_from_single]).output().unwrap());
    assert!(text.contains("lacks the columns jpg_1"), "{text}");
}
