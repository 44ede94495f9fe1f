//! Pictures scored per second, and how much of that speed the bare network alone would reach.
//!
//! `cargo bench --bench score -- REWARD_FOLDER PICTURES [ROUNDS]` prints one JSON object, for `scripts/bench_score.py`;
//! without arguments the tiny CLIP scores 512×512 pictures made here.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use ndarray::Array4;
use ortdpo::reward::RewardModel;
use ortdpo::reward::manifest::Scorer as Kind;
use ortdpo::runtime::{Session, SessionOptions, TensorView};
use ortdpo::score::{Scorer, source};

/// Pictures in a run of the bare network; what the scorer takes.
const BATCH: usize = 16;

fn main() -> ortdpo::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let made = tempfile::tempdir().map_err(ortdpo::Error::io("a temporary folder", "create"))?;
    let (reward, pictures) = match &arguments[..] {
        [reward, pictures, ..] => (PathBuf::from(reward), pictures.clone()),
        _ => {
            make_pictures(made.path(), 256);
            let reward = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-rewards/clip");
            (reward, made.path().display().to_string())
        }
    };
    let rounds: usize = arguments.get(2).and_then(|n| n.parse().ok()).unwrap_or(2);
    let (mut scored, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(bare_rate(&reward)?);
        scored.push(score_rate(&reward, &pictures)?);
    }
    println!(
        "{}",
        serde_json::json!({"scored_per_second": scored, "bare_per_second": bare})
    );
    Ok(())
}

/// Everything that `ortdpo score` does without a cache, from files to scores, after the models are loaded.
fn score_rate(reward: &Path, pictures: &str) -> ortdpo::Result<f64> {
    let model = RewardModel::open_folder(reward, &SessionOptions::default())?;
    let mut scorer = Scorer::new(vec![model], None)?;
    let records = source::open(pictures)?
        .records
        .enumerate()
        .map(|(index, record)| {
            let prompt = format!("a photo of {} cats on a red background", index % 20);
            record.map(|record| source::Record {
                prompt: record.prompt.or(Some(prompt)),
                ..record
            })
        });
    let (mut count, started) = (0, Instant::now());
    scorer.score_records(Box::new(records), &AtomicBool::new(false), |_| {
        count += 1;
        Ok(())
    })?;
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

/// The image network alone, on pixels that are there already.
fn bare_rate(reward: &Path) -> ortdpo::Result<f64> {
    let model = RewardModel::open_folder(reward, &SessionOptions::default())?;
    let Kind::DualTower { image, .. } = &model.manifest().scorer else {
        panic!("the bench takes a reward of two towers")
    };
    let mut session = Session::from_file(&reward.join(&image.model), &SessionOptions::default())?;
    let [channels, height, width] = model.preprocessor().shape();
    let pixels = Array4::from_elem((BATCH, channels, height, width), 0.1f32);
    // Where one file holds both towers, the other gets one row of zeros, as in scoring.
    let idle = session.inputs().iter().filter(|input| input.name != image.input);
    let idle: Vec<(String, ndarray::Array2<i64>)> = idle
        .map(|input| {
            (
                input.name.clone(),
                ndarray::Array2::zeros((1, input.dims[1].unwrap_or(1))),
            )
        })
        .collect();
    let mut run = || {
        let mut inputs: Vec<(&str, TensorView)> = vec![(&image.input, (&pixels).into())];
        inputs.extend(
            idle.iter()
                .map(|(name, zeros)| (name.as_str(), TensorView::from(zeros))),
        );
        session.run(&inputs).map(drop)
    };
    run()?;
    let (mut count, started) = (0, Instant::now());
    while started.elapsed().as_secs_f64() < 5.0 {
        run()?;
        count += BATCH;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// JPEG files with edges, gradients and a little noise.
fn make_pictures(folder: &Path, count: u32) {
    for index in 0..count {
        let mut noise = index + 1;
        let picture = image::RgbImage::from_fn(512, 512, |x, y| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let edge = if (x / 40 + y / 60 + index) % 2 == 0 { 90 } else { 0 };
            image::Rgb([x / 4 + edge, y / 4 + edge, (x + y) / 8 + (noise >> 28)].map(|v| v as u8))
        });
        let path = folder.join(format!("{index:05}.jpg"));
        picture.save(path).expect("a temporary folder takes pictures");
    }
}
