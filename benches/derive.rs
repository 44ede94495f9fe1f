//! From the exported file to the graph of a training step: the LoRA step of Diffusion-DPO on the real architectures,
//! one pair at 32×32 latents, policy and reference in one graph.

#[allow(dead_code)] // shared with the tests, which use more of it
#[path = "../tests/common/structures.rs"]
mod structures;

use criterion::{Criterion, criterion_group, criterion_main};
use ortdpo::objective::Dpo;
use ortdpo::onnx::write;
use ortdpo::traingraph::{Reference, StepGraph, StepShape, Trainables};
use structures::Structure;

fn derivation(criterion: &mut Criterion) {
    let targets = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned);
    let dpo = Dpo::default();
    for export in ["sd15-legacy17", "sd15-dynamo20", "sdxl-legacy17", "sdxl-dynamo20"] {
        let structure = Structure::unpack(export);
        let read = || structure.specialize().expect("the export becomes static");
        let derive = |denoiser: &_| {
            let lora = Trainables::lora(denoiser, &targets, 8, 8.0).expect("the targets match layers");
            let shape = StepShape {
                loss_scale: false,
                pairs: 1,
                guidance: None,
                whole_batch: true,
                derive: Default::default(),
            };
            StepGraph::build(denoiser, &lora, &dpo, shape, Reference::Branch)
                .expect("every operator has a rule")
        };
        let mut group = criterion.benchmark_group(export);
        group.sample_size(10);
        group.bench_function("read and specialise", |bencher| bencher.iter(read));
        let denoiser = read();
        group.bench_function("derive the step", |bencher| bencher.iter(|| derive(&denoiser)));
        group.bench_function("both, and write the model", |bencher| {
            bencher.iter(|| write::to_bytes(&derive(&read()).graph, None).expect("weights are external"));
        });
        group.finish();
    }
}

criterion_group!(benches, derivation);
criterion_main!(benches);
