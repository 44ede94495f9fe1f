//! Recomputation: the same gradients whatever is computed again, and the memory that it saves on the real architectures.

mod common;

use std::collections::BTreeMap;

use common::fixtures;
use common::structures::Structure;
use ortdpo::autodiff::{DeriveOptions, Recompute};
use ortdpo::objective::Dpo;
use ortdpo::onnx::{Constant, Graph, Model, halves, validate, write};
use ortdpo::pipeline::denoiser::{self, Geometry};
use ortdpo::runtime::{Session, SessionOptions};
use ortdpo::tensor::{DType, Tensor};
use ortdpo::traingraph::{Reference, StepGraph, StepShape, Trainables, attention};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The step of one pair of Diffusion-DPO with LoRA on attention.
fn step(denoiser: &Graph, recompute: Recompute) -> Graph {
    let targets = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned);
    let lora = Trainables::lora(denoiser, &targets, 8, 8.0).unwrap();
    let shape = StepShape {
        loss_scale: false,
        pairs: 1,
        guidance: None,
        whole_batch: true,
        derive: DeriveOptions {
            recompute,
            ..DeriveOptions::default()
        },
    };
    let dpo = Dpo {
        beta: 20.0,
        ..Dpo::default()
    };
    StepGraph::build(denoiser, &lora, &dpo, shape, Reference::Input)
        .unwrap()
        .graph
}

/// Outputs of a run on inputs that depend on their names alone.
fn outputs(graph: &Graph, folder: &std::path::Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = write::to_bytes(graph, None).unwrap();
    let options = SessionOptions {
        threads: 1,
        share_buffers: false,
        ..SessionOptions::default()
    };
    let mut session = Session::from_bytes(&bytes, Some(folder), &options).unwrap();
    let inputs: Vec<(String, Tensor)> = session
        .inputs()
        .iter()
        .map(|input| {
            let seed = input
                .name
                .bytes()
                .fold(7, |h: u64, b| h.wrapping_mul(31) + u64::from(b));
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let shape = input.static_shape().unwrap();
            let len = shape.iter().product();
            let tensor = match input.dtype {
                DType::F32 => Tensor::f32(&shape, (0..len).map(|_| random.random_range(-0.5..0.5)).collect()),
                _ => Tensor::i64(&shape, vec![500; len]),
            };
            (input.name.clone(), tensor)
        })
        .collect();
    let views: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut found = session.run(&views).unwrap();
    let names: Vec<String> = found.names().map(str::to_owned).collect();
    let mut values = |name: &String| found.take(name).unwrap().into_f32(name).unwrap();
    names
        .iter()
        .map(|name| (name.clone(), values(name).into_raw_vec_and_offset().0))
        .collect()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn gradients_do_not_depend_on_what_is_computed_again() {
    for name in ["unet_sd15-legacy17-batch.onnx", "unet_sd15-dynamo20-batch.onnx"] {
        let model = Model::read(fixtures().join("exports").join(name)).unwrap();
        let geometry = Geometry {
            samples: 2,
            latent: [4, 8, 8],
            text: [5, 6],
            added: None,
        };
        let denoiser = denoiser::load(&model, &geometry, false).unwrap();
        let wanted = outputs(&step(&denoiser, Recompute::None), model.folder());
        let chunked = attention::in_chunks_of(denoiser.clone(), 8 << 10).unwrap();
        validate(&chunked).unwrap();
        let splits = |g: &Graph| g.nodes.iter().filter(|n| n.op == "Split").count();
        assert!(splits(&chunked) > splits(&denoiser), "{name}");
        for denoiser in [&denoiser, &chunked] {
            for level in Recompute::ALL {
                let graph = step(denoiser, level);
                validate(&graph).unwrap();
                let found = outputs(&graph, model.folder());
                for (output, wanted) in &wanted {
                    let difference = found[output].iter().zip(wanted).map(|(a, b)| a - b);
                    let error = norm(difference) / norm(wanted.iter().copied()).max(1e-12);
                    assert!(error < 1e-3, "{name} {level}: {output} differs by {error:.1e}");
                }
            }
        }
    }
}

#[test]
fn weights_stored_in_half_precision_are_computed_with_in_single() {
    let model = Model::read(fixtures().join("exports/unet_sd15-legacy17-batch.onnx")).unwrap();
    let geometry = Geometry {
        samples: 2,
        latent: [4, 8, 8],
        text: [5, 6],
        added: None,
    };
    let mut stored = denoiser::load(&model, &geometry, false).unwrap();
    let mut rounded = stored.clone();
    for value in stored.parameters.clone() {
        let constant = &stored.constants[&value];
        // Scales of a `Resize` are settings.
        if constant.len() <= 8 {
            continue;
        }
        let values = constant.read_floats(&stored.name(value)).unwrap();
        let half = Constant::floats(DType::F16, &constant.shape, &values);
        let wide = Constant::floats(DType::F32, &half.shape, &half.to_floats().unwrap());
        rounded.constants.insert(value, wide);
        stored.constants.insert(value, half);
    }
    assert!(halves::has_half_weights(&stored));
    for level in Recompute::ALL {
        let wanted = outputs(&step(&rounded, level), model.folder());
        let mut graph = step(&stored, level);
        halves::cast_where_used(&mut graph).unwrap();
        validate(&graph).unwrap();
        let found = outputs(&graph, model.folder());
        for (output, wanted) in &wanted {
            let difference = found[output].iter().zip(wanted).map(|(a, b)| a - b);
            let error = norm(difference) / norm(wanted.iter().copied()).max(1e-12);
            assert!(error < 1e-4, "{level}: {output} differs by {error:.1e}");
        }
    }
}

#[test]
fn real_architectures_take_a_fraction_of_the_memory() {
    let cases = [
        ("sd15-legacy17", 64),
        ("sd15-dynamo20", 64),
        ("sdxl-legacy17", 128),
        ("sdxl-dynamo20", 128),
    ];
    for (export, side) in cases {
        let whole = Structure::unpack(export).specialize_at(side).unwrap();
        let chunked = attention::in_chunks(whole.clone()).unwrap();
        let peak = |denoiser: &Graph, level| step(denoiser, level).peak_bytes() >> 20;
        let [none, cheap, block] = [
            peak(&whole, Recompute::None),
            peak(&chunked, Recompute::NormAttention),
            peak(&chunked, Recompute::Block),
        ];
        println!("{export} {side}x{side}: none {none} MiB, norm-attention {cheap} MiB, block {block} MiB");
        assert!(3 * cheap < none && 3 * block < 2 * cheap, "{export}");
    }
}
