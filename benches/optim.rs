//! The optimizer's passes over memory beside a plain copy of as many bytes: how close they are to the
//! machine's memory bandwidth.
//!
//! A fused AdamW + EMA step reads gradient, weights, two moments and reference, and writes all but the
//! gradient: 36 bytes per parameter. The copy reads half as many bytes and writes the other half.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ortdpo::config::optimizer::OptimizerConfig;
use ortdpo::optim::{AdamW, Follow, Gradient, Term};
use ortdpo::params::{Layout, ParamSet};
use ortdpo::reference::Blend;
use rayon::prelude::*;

const TENSOR: usize = 1 << 20;

/// A full fine-tuning's worth of tensors, larger than any cache: 64 of 4 MiB.
fn large() -> ParamSet {
    set((0..64).map(|index| (format!("layer.{index:03}"), vec![1024, TENSOR / 1024])))
}

/// As many small tensors as a LoRA of rank 8 on SD1.5's attention has, and nearly as many values.
fn lora() -> ParamSet {
    set((0..256).map(|index| (format!("layer.{index:03}"), vec![8, 768])))
}

fn set(tensors: impl Iterator<Item = (String, Vec<usize>)>) -> ParamSet {
    let mut set = ParamSet::zeros(&Layout::new(tensors).expect("names differ"));
    for (index, value) in set.values_mut().iter_mut().enumerate() {
        *value = (index % 1000) as f32 / 500.0 - 1.0;
    }
    set
}

fn copy(source: &[u8], target: &mut [u8]) {
    let piece = source.len().div_ceil(rayon::current_num_threads());
    target
        .par_chunks_mut(piece)
        .zip(source.par_chunks(piece))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

fn bench(criterion: &mut Criterion, name: &str, initial: &ParamSet) {
    let parameters = initial.values().len() as u64;
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20);

    let (mut policy, mut reference, gradient) = (initial.clone(), initial.clone(), initial.clone());
    let mut adamw = AdamW::new(&OptimizerConfig::default(), initial.layout());
    let blend = Blend::new(0.01, 0.0);
    group.throughput(Throughput::Bytes(36 * parameters));
    group.bench_function("adamw + ema", |bencher| {
        bencher.iter(|| {
            let follow = Follow {
                reference: &mut reference,
                initial,
                blend,
            };
            let gradient = Gradient::of(Term::from_set(&gradient, 1.0));
            adamw.step(&mut policy, &gradient, 0.9, 1e-6, Some(follow));
        });
    });
    let source = vec![1u8; 18 * parameters as usize];
    let mut target = vec![0u8; source.len()];
    group.bench_function("copy of as many bytes", |bencher| {
        bencher.iter(|| copy(black_box(&source), black_box(&mut target)));
    });

    group.throughput(Throughput::Bytes(4 * parameters));
    group.bench_function("gradient norm", |bencher| {
        bencher.iter(|| Gradient::of(Term::from_set(black_box(&gradient), 1.0)).norms());
    });
    group.finish();
}

fn optimizer(criterion: &mut Criterion) {
    bench(criterion, "full, 67 M parameters", &large());
    bench(criterion, "lora, 1.6 M parameters", &lora());
}

criterion_group!(benches, optimizer);
criterion_main!(benches);
