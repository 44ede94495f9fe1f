//! Tests of [`super::loader`].

use std::collections::{HashMap, HashSet};

use ndarray::Axis;

use super::image::View;
use super::testing::{FakeEncoders, OPTIONS, prepare};
use super::*;
use crate::rng::{Purpose, Streams};

fn dataset(options: EncodeOptions) -> (tempfile::TempDir, Dataset) {
    let cache = tempfile::tempdir().unwrap();
    let dataset = prepare("whole", &FakeEncoders::new(1), cache.path(), options).unwrap();
    (cache, dataset)
}

fn loader(dataset: &Dataset, ties: Ties, dropout: f64) -> Loader<'_> {
    Loader::new(dataset, Streams::new(5), ties, dropout)
}

/// A batch's pairs one by one: description, latents and text.
fn singles(batch: &PairBatch) -> Vec<(String, Vec<f32>)> {
    let values = |i: usize| {
        let latents = &batch.latents[i];
        let text = batch.text.index_axis(Axis(0), i).to_owned();
        latents.iter().flatten().chain(&text).copied().collect()
    };
    batch
        .pairs
        .iter()
        .enumerate()
        .map(|(i, pair)| (format!("{pair:?}"), values(i)))
        .collect()
}

#[test]
fn every_epoch_visits_each_pair_once_in_another_order() {
    let (_cache, dataset) = dataset(OPTIONS);
    let mut loader = loader(&dataset, Ties::Drop, 0.0);
    let orders: Vec<Vec<u64>> = (0..4)
        .map(|epoch| {
            let batch = loader.next_batch(8).unwrap();
            assert!(batch.pairs.iter().all(|pair| pair.visit.0 == epoch));
            batch.pairs.iter().map(|pair| pair.id.0).collect()
        })
        .collect();
    for order in &orders {
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), 8);
    }
    assert_eq!(orders.iter().collect::<HashSet<_>>().len(), 4, "{orders:?}");
}

#[test]
fn neither_batch_size_nor_resuming_changes_what_a_pair_gets() {
    let (_cache, dataset) = dataset(EncodeOptions {
        views: Views { crops: 2, flip: true },
        keep_ties: true,
        ..OPTIONS
    });
    let run = |sizes: &[usize]| {
        let mut loader = loader(&dataset, Ties::Half, 0.3);
        sizes
            .iter()
            .flat_map(|&n| singles(&loader.next_batch(n).unwrap()))
            .collect::<Vec<_>>()
    };
    let whole = run(&[30]);
    assert_eq!(whole, run(&[1; 30]));
    assert_eq!(whole, run(&[7, 7, 7, 7, 2]));
    let mut first = loader(&dataset, Ties::Half, 0.3);
    let mut resumed = singles(&first.next_batch(13).unwrap());
    let state = serde_json::to_string(&first.state()).unwrap();
    let mut second = loader(&dataset, Ties::Half, 0.3);
    second.resume(serde_json::from_str(&state).unwrap()).unwrap();
    resumed.extend(singles(&second.next_batch(17).unwrap()));
    assert_eq!(whole, resumed);
    assert!(second.resume(LoaderState { epoch: 0, cursor: 99 }).is_err());
}

#[test]
fn latents_are_drawn_from_their_moments_anew_at_each_visit() {
    let (_cache, dataset) = dataset(OPTIONS);
    let mut loader = loader(&dataset, Ties::Drop, 0.0);
    let mut seen: HashMap<u64, Vec<f32>> = HashMap::new();
    for _ in 0..2 {
        let batch = loader.next_batch(8).unwrap();
        for (i, pair) in batch.pairs.iter().enumerate() {
            let [preferred, rejected] = dataset.moments(pair.index, View::CENTER).unwrap();
            let mut stream = Streams::new(5).pair(Purpose::Latent, pair.id, pair.visit);
            for (moments, drawn) in [preferred, rejected].iter().zip(&batch.latents[i]) {
                assert_eq!(drawn, moments.sample(dataset.scaling(), &mut stream));
            }
            let drawn: Vec<f32> = batch.latents[i][0].iter().copied().collect();
            let before = seen.insert(pair.id.0, drawn.clone());
            assert!(before.is_none_or(|before| before != drawn));
        }
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn dropped_prompts_are_empty_and_as_frequent_as_asked() {
    let (_cache, dataset) = dataset(OPTIONS);
    let mut loader = loader(&dataset, Ties::Drop, 0.25);
    let batch = loader.next_batch(800).unwrap();
    let dropped = batch.pairs.iter().filter(|pair| pair.prompt_dropped).count();
    // 200 expected, standard deviation 12.
    assert!((140..260).contains(&dropped), "{dropped}");
    for (i, pair) in batch.pairs.iter().enumerate() {
        let caption = if pair.prompt_dropped {
            ""
        } else {
            dataset.caption(pair.index)
        };
        assert_eq!(
            batch.text.index_axis(Axis(0), i),
            dataset.embedding(caption).unwrap().hidden
        );
    }
}

#[test]
fn ties_are_dropped_or_labelled_or_weighted_as_configured() {
    let (_cache, without) = dataset(OPTIONS);
    let (_cache, with) = dataset(EncodeOptions {
        keep_ties: true,
        ..OPTIONS
    });
    assert_eq!((without.pairs().len(), with.pairs().len()), (8, 9));
    for (ties, expected) in [(Ties::Soft, (0.5, 1.0)), (Ties::Half, (1.0, 0.5))] {
        let batch = loader(&with, ties, 0.0).next_batch(9).unwrap();
        for pair in batch.pairs {
            let tie = pair.id.0 == 2;
            assert_eq!((pair.label, pair.weight), if tie { expected } else { (1.0, 1.0) });
        }
    }
    let batch = loader(&with, Ties::Half, 0.0).next_batch(9 * 200).unwrap();
    let index = with.index_of(crate::rng::PairId(2)).unwrap();
    let first = &with.moments(index, View::CENTER).unwrap()[0].mean * 0.5;
    let near = |i: usize| (&batch.latents[i][0] - &first).mapv(f32::abs).mean().unwrap() < 0.1;
    let tied = || (0..batch.pairs.len()).filter(|&i| batch.pairs[i].index == index);
    let wins = tied().filter(|&i| near(i)).count();
    assert_eq!(tied().count(), 200);
    assert!(
        (60..140).contains(&wins),
        "each image of a tie wins about half of the visits: {wins}"
    );
}
