//! Whole training steps on tiny-sd: reference, policy, gradients, AdamW with clipping, EMA reference; 16 pairs.

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ortdpo::autodiff::Recompute;
use ortdpo::config::runtime::WeightCopies;
use ortdpo::onnx::Model;
use ortdpo::pipeline::denoiser::Geometry;
use ortdpo::runtime::{self, Arena, SessionOptions};
use ortdpo::train::bench::{BenchOptions, run};
use ortdpo::traingraph::Reference;

const PAIRS: usize = 16;
/// The first steps of a session are slower than the rest.
const WARM_UP: usize = 2;

fn steps(c: &mut Criterion) {
    runtime::init(&Default::default()).expect("scripts/setup puts ONNX Runtime into .ort/");
    let unet = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd/unet/model.onnx");
    let model = Model::read(unet).expect("tiny-sd is part of the repository");
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for (name, reference) in [
        ("one graph", Reference::Branch),
        ("two sessions", Reference::Input),
    ] {
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let options = BenchOptions {
                    mixed_precision: Default::default(),
                    geometry: Geometry {
                        samples: 2 * PAIRS,
                        latent: [4, 16, 16],
                        text: [16, 96],
                        added: None,
                    },
                    pairs: PAIRS,
                    rank: 8,
                    targets: ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).to_vec(),
                    steps: WARM_UP + iterations as usize,
                    reference,
                    copies: WeightCopies::Auto,
                    recompute: Recompute::None,
                    session: SessionOptions {
                        arena: Arena::Shared,
                        ..SessionOptions::default()
                    },
                };
                let report = run(&model, &options).expect("tiny-sd trains");
                Duration::from_secs_f64(report.step_seconds[WARM_UP..].iter().sum())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
