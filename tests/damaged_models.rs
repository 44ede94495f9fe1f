//! Whatever bytes a model file holds, reading, making static and deriving end in a result or an error, never in a panic.

use std::path::Path;

use ortdpo::autodiff::{Wrt, derive};
use ortdpo::onnx::{self, Dims, Graph, Model, SpecializeOptions, specialize, validate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod common;

/// Small models that between them hold most operators, and the dimensions that make them static.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    [
        "unet_sd15-legacy17-static.onnx",
        "unet_sd15-dynamo23-open.onnx",
        "unet_sd15-unoptimized20-batch.onnx",
        "clip-legacy17-batch.onnx",
    ]
    .into_iter()
    .map(|name| {
        (
            name,
            std::fs::read(common::fixtures().join("exports").join(name)).unwrap(),
        )
    })
    .collect()
}

/// The way of a model file to a derived one; open dimensions become 2 where a name allows it.
fn whole_way(bytes: Vec<u8>) -> ortdpo::Result<()> {
    let model = Model::parse(bytes.into(), Path::new("damaged.onnx"))?;
    let mut dims = Dims::default();
    for input in model.inputs()? {
        for dim in input.dims.into_iter().flatten() {
            if let onnx::Dim::Named(name) = dim {
                dims.named.insert(name, 2);
            }
        }
    }
    let graph = specialize(
        &model,
        &SpecializeOptions {
            dims,
            ..Default::default()
        },
    )?;
    let graph = differentiated(graph)?;
    onnx::write::to_bytes(&graph, None).map(drop)
}

fn differentiated(graph: Graph) -> ortdpo::Result<Graph> {
    validate(&graph)?;
    let derived = derive(graph, &Wrt::Parameters)?.graph;
    validate(&derived).expect("derived graphs are sound");
    Ok(derived)
}

#[test]
fn truncated_models_are_refused() {
    for (name, bytes) in samples() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..40 {
            let length = rng.random_range(0..bytes.len());
            // Some cuts leave a valid message without its tail; then the graph is incomplete, which is an error too.
            assert!(
                whole_way(bytes[..length].to_vec()).is_err(),
                "{name} cut to {length} bytes"
            );
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let (mut refused, mut tried) = (0, 0);
    for (seed, (_, bytes)) in samples().into_iter().enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        // Weights are most of a file and cannot break anything; the structure is where the names are.
        let structure: Vec<usize> = (0..bytes.len()).filter(|i| is_structure(&bytes, *i)).collect();
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..rng.random_range(1..=3) {
                let at = structure[rng.random_range(0..structure.len())];
                damaged[at] ^= 1 << rng.random_range(0..8_u32);
            }
            tried += 1;
            refused += usize::from(whole_way(damaged).is_err());
        }
    }
    assert!(
        refused > tried / 10,
        "only {refused} of {tried} damaged models were noticed"
    );
}

/// Whether byte `i` lies near readable text, as names and attributes do.
fn is_structure(bytes: &[u8], i: usize) -> bool {
    let around = &bytes[i.saturating_sub(6)..(i + 6).min(bytes.len())];
    around
        .iter()
        .filter(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/' | b'.'))
        .count()
        >= 4
}
