//! That whole training steps run on the GPU: ONNX Runtime's CUDA provider is asked for every session of a step and may leave
//! no operator to the CPU. It decides that when a session is made, for which no GPU is needed, only its libraries:
//!
//! ```text
//! make placement
//! ```

mod common;

use std::path::Path;

use common::fixtures;
use common::structures::Structure;
use ortdpo::autodiff::Recompute;
use ortdpo::config::runtime::{MixedPrecision, WeightCopies};
use ortdpo::device::{Kernel, graphs};
use ortdpo::objective::Dpo;
use ortdpo::onnx::{Model, SHAPE_ONLY};
use ortdpo::pipeline::denoiser::{Added, Geometry};
use ortdpo::runtime::{ExecutionProvider, Session, SessionOptions};
use ortdpo::train::engine::{Engine, EngineOptions};
use ortdpo::traingraph::{Reference, Trainables};

const TARGETS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// What an architecture takes.
#[derive(Clone, Copy)]
struct Inputs {
    latent: [usize; 3],
    text: [usize; 2],
    added: Option<Added>,
}

const TINY: Inputs = Inputs {
    latent: [4, 8, 8],
    text: [5, 6],
    added: None,
};

const TINY_XL: Inputs = Inputs {
    latent: [4, 8, 8],
    text: [5, 6],
    added: Some(Added {
        pooled: 10,
        size: [64, 64],
    }),
};

/// On the device and nowhere else.
fn on_cuda() -> SessionOptions {
    SessionOptions {
        ep: ExecutionProvider::Cuda,
        only_on_cpu: Some(SHAPE_ONLY),
        ..SessionOptions::default()
    }
}

/// Makes all sessions of a step that trains LoRA, or every weight.
fn place(file: &Path, inputs: Inputs, recompute: Recompute, mixed_precision: MixedPrecision, full: bool) {
    let model = Model::read(file).unwrap();
    let objective = Dpo::default();
    let options = EngineOptions {
        model: &model,
        geometry: Geometry {
            samples: 2,
            latent: inputs.latent,
            text: inputs.text,
            added: inputs.added,
        },
        other_sizes: &[],
        guidance: None,
        pairs: 1,
        whole_batch: true,
        objective: &objective,
        reference: Reference::Input,
        anchor_samples: Some(2),
        copies: WeightCopies::Auto,
        recompute,
        mixed_precision,
        gradients_on_device: full,
        session: on_cuda(),
    };
    let targets = TARGETS.map(str::to_owned);
    let built = Engine::build(&options, full, |graph| match full {
        true => Trainables::full(graph, &["*".into()]),
        false => Trainables::lora(graph, &targets, 4, 4.0),
    });
    if let Err(error) = built {
        panic!("{} {recompute:?} {mixed_precision:?}: {error}", file.display());
    }
}

#[test]
#[ignore = "needs ONNX Runtime with CUDA, on a GPU or on a pretended one"]
fn what_the_gpu_does_not_take_is_refused() {
    // As exported, with open sizes, which are worked out on the CPU.
    let file = fixtures().join("exports/unet_sd15-legacy17-batch.onnx");
    let error = Session::from_file(&file, &on_cuda()).unwrap_err();
    assert!(error.to_string().contains("leaves to the CPU"), "{error}");
}

#[test]
#[ignore = "needs ONNX Runtime with CUDA, on a GPU or on a pretended one"]
fn the_optimizer_is_wholly_on_the_gpu() {
    for graph in [
        graphs::copy,
        graphs::add,
        graphs::scale,
        graphs::square,
        graphs::blend,
        graphs::adamw,
    ] {
        Kernel::new(&graph(4096).unwrap(), &on_cuda()).unwrap();
    }
}

#[test]
#[ignore = "needs ONNX Runtime with CUDA, on a GPU or on a pretended one"]
fn steps_of_every_export_are_wholly_on_the_gpu() {
    let mut exports = 0;
    for entry in std::fs::read_dir(fixtures().join("exports")).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        let inputs = match name.split('-').next() {
            _ if !name.ends_with(".onnx") => continue,
            Some("unet_sd15") => TINY,
            Some("unet_sdxl") => TINY_XL,
            _ => continue,
        };
        for recompute in [Recompute::None, Recompute::NormAttention, Recompute::Block] {
            for full in [false, true] {
                place(&file, inputs, recompute, MixedPrecision::No, full);
            }
        }
        exports += 1;
    }
    assert!(exports > 8, "only {exports} exports");
}

#[test]
#[ignore = "needs ONNX Runtime with CUDA, on a GPU or on a pretended one"]
fn steps_in_half_precision_are_wholly_on_the_gpu() {
    for export in ["dynamo20.onnx", "legacy17.onnx"] {
        let file = fixtures().join("half").join(export);
        for recompute in [Recompute::None, Recompute::NormAttention, Recompute::Block] {
            for precision in [MixedPrecision::No, MixedPrecision::Fp16, MixedPrecision::Bf16] {
                for full in [false, true] {
                    place(&file, TINY, recompute, precision, full);
                }
            }
        }
    }
}

const SD15: Inputs = Inputs {
    latent: [4, 64, 64],
    text: [77, 768],
    added: None,
};

const SDXL: Inputs = Inputs {
    latent: [4, 128, 128],
    text: [77, 2048],
    added: Some(Added {
        pooled: 1280,
        size: [1024, 1024],
    }),
};

/// Steps of an export at full size.
fn place_full_size(export: &str, inputs: Inputs, precisions: &[MixedPrecision]) {
    let structure = Structure::unpack(export);
    for recompute in [Recompute::NormAttention, Recompute::Block] {
        for precision in precisions {
            eprintln!("{export}, {recompute:?}, {precision:?}");
            place(&structure.model(), inputs, recompute, *precision, false);
        }
    }
}

#[test]
#[ignore = "needs ONNX Runtime with CUDA, on a GPU or on a pretended one; 16 GB of memory"]
fn steps_of_the_real_architectures_are_wholly_on_the_gpu() {
    for (export, inputs) in [
        ("sd15-legacy17", SD15),
        ("sd15-dynamo20", SD15),
        ("sdxl-legacy17", SDXL),
        ("sdxl-dynamo20", SDXL),
    ] {
        place_full_size(export, inputs, &[MixedPrecision::No]);
    }
}

#[test]
#[ignore = "needs ONNX Runtime with CUDA, on a GPU or on a pretended one; 16 GB of memory"]
fn steps_of_the_real_architectures_in_half_precision_are_wholly_on_the_gpu() {
    for (export, inputs) in [("sd15-legacy17-half", SD15), ("sdxl-legacy17-half", SDXL)] {
        place_full_size(export, inputs, &[MixedPrecision::Fp16, MixedPrecision::Bf16]);
    }
}
