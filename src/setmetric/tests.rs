use std::path::{Path, PathBuf};

use image::RgbImage;
use ndarray::{Array2, Array4, Ix3, Ix4, OwnedRepr, s};
use ndarray_npy::NpzReader;
use serde::Deserialize;

use super::*;
use crate::reward::manifest::Step;
use crate::reward::{Preprocessor, RewardModel};
use crate::runtime::{self, RuntimeOptions, SessionOptions};

/// What the reference implementations say; scripts/fixtures/set_metrics.py writes it.
#[derive(Deserialize)]
struct Expected {
    fid_pytorch: f64,
    fid_clean: f64,
    fid_below_full_rank: f64,
    subsets: Vec<(Vec<usize>, Vec<usize>)>,
    kid_mean: f64,
    kid_std: f64,
    kid_clean_of_80: f64,
    vendi_x: f64,
    vendi_x_dual: f64,
    vendi_z: f64,
    mean_cosine_distance_z: f64,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/set_metrics")
        .join(name)
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("../../tests/fixtures/set_metrics/expected.json")).unwrap()
}

fn open(name: &str) -> NpzReader<std::fs::File> {
    NpzReader::new(std::fs::File::open(fixture(name)).unwrap()).unwrap()
}

fn features(name: &str) -> Array2<f32> {
    open("features.npz").by_name(name).unwrap()
}

fn assert_relative(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found / expected - 1.0).abs() <= tolerance,
        "{found} is not {expected} within {tolerance:e}"
    );
}

#[test]
fn fid_is_that_of_pytorch_fid_and_clean_fid() {
    let expected = expected();
    let statistics = |name| Statistics::of(features(name).view()).unwrap();
    let (x, y, z) = (statistics("x"), statistics("y"), statistics("z"));
    let fid = frechet_distance(&x, &y).unwrap();
    assert_relative(fid, expected.fid_pytorch, 1e-9);
    assert_relative(fid, expected.fid_clean, 1e-9);
    assert_relative(frechet_distance(&y, &x).unwrap(), fid, 1e-9);
    assert!(frechet_distance(&x, &x).unwrap().abs() < 1e-9 * x.covariance.diag().sum());
    assert_eq!(x.rank_warning(), None);
    // Below full rank the reference takes the root of a singular product, which costs digits.
    assert_relative(
        frechet_distance(&z, &y).unwrap(),
        expected.fid_below_full_rank,
        1e-4,
    );
    assert!(z.rank_warning().unwrap().contains("10 pictures"));
}

#[test]
fn statistics_do_not_depend_on_batches() {
    let x = features("x");
    let whole = Statistics::of(x.view()).unwrap();
    let mut moments = Moments::default();
    for rows in [0..1, 1..38, 38..38, 38..90] {
        moments.add(x.slice(s![rows, ..])).unwrap();
    }
    let batched = moments.statistics().unwrap();
    assert_eq!(batched.n, Some(90));
    let scale = whole.covariance.diag().sum();
    assert!((&batched.mean - &whole.mean).iter().all(|d| d.abs() < 1e-12));
    assert!(
        (&batched.covariance - &whole.covariance)
            .iter()
            .all(|d| d.abs() < 1e-13 * scale)
    );
    assert!(moments.add(x.slice(s![.., ..5])).is_err());
    assert!(Statistics::of(x.slice(s![..1, ..])).is_err());
}

#[test]
fn kid_is_that_of_torch_fidelity_and_clean_fid() {
    let (x, y, expected) = (features("x"), features("y"), expected());
    let found = kid_on_subsets(x.view(), y.view(), &expected.subsets).unwrap();
    assert_relative(found.mean, expected.kid_mean, 1e-9);
    assert_relative(found.std, expected.kid_std, 1e-9);
    let all = KidOptions {
        subsets: 1,
        ..KidOptions::default()
    };
    let found = kid(x.slice(s![..80, ..]), y.view(), &all).unwrap();
    assert_relative(found.mean, expected.kid_clean_of_80, 1e-9);
}

#[test]
fn subsets_of_kid_depend_on_the_seed_alone() {
    let (x, y) = (features("x"), features("y"));
    let with_seed = |seed| {
        let options = KidOptions {
            subsets: 20,
            subset_size: 30,
            seed,
        };
        kid(x.view(), y.view(), &options).unwrap()
    };
    assert_eq!(with_seed(1), with_seed(1));
    assert_ne!(with_seed(1), with_seed(2));
    assert!(kid(x.slice(s![..1, ..]), y.view(), &KidOptions::default()).is_err());
}

#[test]
fn vendi_scores_are_those_of_the_package() {
    let (x, z, expected) = (features("x"), features("z"), expected());
    assert_relative(vendi_score(x.view()).unwrap(), expected.vendi_x, 1e-9);
    assert_relative(vendi_score(x.view()).unwrap(), expected.vendi_x_dual, 1e-9);
    assert_relative(vendi_score(z.view()).unwrap(), expected.vendi_z, 1e-9);
    let same = Array2::from_elem((5, 3), 0.7f32);
    assert_relative(vendi_score(same.view()).unwrap(), 1.0, 1e-9);
    assert_relative(vendi_score(Array2::<f32>::eye(4).view()).unwrap(), 4.0, 1e-9);
}

#[test]
fn mean_distances_are_over_all_pairs() {
    let z = features("z");
    let found = mean_pairwise(z.view(), Distance::Cosine).unwrap();
    assert_relative(found, expected().mean_cosine_distance_z, 1e-9);
    assert_eq!(mean_pairwise(z.slice(s![..1, ..]), Distance::Cosine), None);
}

#[test]
fn features_that_are_no_numbers_are_refused() {
    let mut x = features("x");
    x[[3, 4]] = f32::NAN;
    assert!(
        Statistics::of(x.view())
            .unwrap_err()
            .to_string()
            .contains("finite")
    );
    assert!(vendi_score(x.view()).unwrap_err().to_string().contains("finite"));
    assert!(
        kid(x.view(), x.view(), &KidOptions::default())
            .unwrap_err()
            .to_string()
            .contains("finite")
    );
}

#[test]
fn references_of_other_programs_are_read() {
    let whole = Statistics::of(features("y").view()).unwrap();
    for name in ["clean_fid.npz", "pytorch_fid.npz"] {
        let reference = Reference::read(&fixture(name)).unwrap();
        assert_eq!((reference.features, reference.extractor), (None, None));
        assert!(
            (&reference.statistics.mean - &whole.mean)
                .iter()
                .all(|d| d.abs() < 1e-12)
        );
        let difference = &reference.statistics.covariance - &whole.covariance;
        assert!(difference.iter().all(|d| d.abs() < 1e-10), "{name}");
    }
    let kid_file = Reference::read(&fixture("clean_fid_kid.npz")).unwrap();
    assert_eq!(kid_file.features, Some(features("y")));
    assert_eq!(kid_file.statistics, whole);
    let error = Reference::read(&fixture("features.npz")).unwrap_err().to_string();
    assert!(
        error.contains("features.npz: cannot be read: it holds x, y, z"),
        "{error}"
    );
    assert!(Reference::read(&fixture("expected.json")).is_err());
}

#[test]
fn a_reference_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.npz");
    let features = features("x");
    let reference = Reference {
        statistics: Statistics::of(features.view()).unwrap(),
        features: Some(features),
        extractor: Some(crate::model_folder::ContentHash([7; 32])),
    };
    reference.write(&path).unwrap();
    assert_eq!(Reference::read(&path).unwrap(), reference);
}

#[test]
fn resizing_is_that_of_clean_fid_and_pytorch_fid() {
    let mut npz = open("resized.npz");
    let picture: ndarray::Array3<u8> = npz.by_name::<OwnedRepr<u8>, Ix3>("picture").unwrap();
    let image = RgbImage::from_raw(31, 23, picture.into_raw_vec_and_offset().0).unwrap();
    for (name, height, width) in [("small", 9, 14), ("large", 40, 47)] {
        let half = |half, whole| Step::NormalizeV1 {
            mean: [half; 3],
            std: [whole; 3],
        };
        let clean = vec![Step::CleanFidResizeV1 { height, width }, half(128.0, 128.0)];
        let pytorch = vec![
            Step::ToUnitFloatV1 {},
            Step::TorchResizeBilinearV1 { height, width },
            half(0.5, 0.5),
        ];
        for (program, steps) in [("clean", clean), ("pytorch", pytorch)] {
            let preprocessor = Preprocessor::new(&steps).unwrap();
            let mut found = vec![0.0; preprocessor.len()];
            preprocessor.apply(&image, &mut found);
            let expected = npz
                .by_name::<OwnedRepr<f32>, Ix3>(&format!("{program}_{name}"))
                .unwrap();
            assert_eq!(expected.shape(), preprocessor.shape());
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 2e-6, "{program} {name}: {worst}");
        }
    }
}

#[test]
fn squared_distances_of_perceptual_features_are_those_of_the_lpips_package() {
    runtime::init(&RuntimeOptions::default()).unwrap();
    let mut npz = open("pictures.npz");
    let pictures: Array4<u8> = npz.by_name::<OwnedRepr<u8>, Ix4>("pictures").unwrap();
    let images: Vec<RgbImage> = pictures
        .outer_iter()
        .map(|picture| RgbImage::from_raw(32, 32, picture.iter().copied().collect()).unwrap())
        .collect();
    let expected: Array2<f64> = npz.by_name("distances").unwrap();
    let mut model = RewardModel::open_folder(&fixture("perceptual"), &SessionOptions::default()).unwrap();
    let features = model.embed_images(&images).unwrap();
    for ((i, j), &expected) in expected.indexed_iter() {
        let found = Distance::SquaredEuclidean.between(features.row(i), features.row(j));
        assert!(
            (found - expected).abs() <= 1e-6 * expected.max(0.1),
            "{i} {j}: {found} {expected}"
        );
    }
    assert!(expected[[2, 3]] < 0.5 * expected[[0, 1]], "a near copy is nearer");
    let error = model.score(&images[..1], &[""]).unwrap_err();
    assert!(error.to_string().contains("not a score"), "{error}");
}
