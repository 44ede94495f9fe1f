//! Images and captions per second on their way into the encoding cache, without the models.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ortdpo::data::image::{Prepared, Size, View, decode};
use ortdpo::text::Tokenizer;
use std::hint::black_box;
use std::path::Path;

/// A 512×512 picture with edges, gradients and noise, as most of Pick-a-Pic's images are in size.
fn picture(format: image::ImageFormat) -> Vec<u8> {
    let mut noise = 1u32;
    let pixels = image::RgbImage::from_fn(512, 512, |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let edge = if (x / 40 + y / 60) % 2 == 0 { 90 } else { 0 };
        image::Rgb([x / 4 + edge, y / 4 + edge, (x + y) / 8 + (noise >> 28)].map(|v| v as u8))
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels
        .write_to(&mut bytes, format)
        .expect("an RGB image can be written in either format");
    bytes.into_inner()
}

fn images(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("image to VAE input");
    group.throughput(Throughput::Elements(1));
    for (name, format) in [
        ("jpeg", image::ImageFormat::Jpeg),
        ("png", image::ImageFormat::Png),
    ] {
        let bytes = picture(format);
        for resolution in [64, 256, 512] {
            let mut out = vec![0.0; 3 * (resolution as usize).pow(2)];
            group.bench_function(format!("{name} 512 to {resolution}"), |bencher| {
                bencher.iter(|| {
                    let image = decode(black_box(&bytes)).expect("the picture was just written");
                    Prepared::new(image, Size::square(resolution)).write(View::CENTER, &mut out);
                    out[0]
                });
            });
        }
    }
}

fn captions(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/full");
    let tokenizer = Tokenizer::from_folder(&folder, None).expect("the fixture is a tokenizer");
    let captions: Vec<String> = (0..1000)
        .map(|n| format!("a portrait of astronaut {n} riding a horse, soft light, sharp focus"))
        .collect();
    let mut group = criterion.benchmark_group("caption to token ids");
    group.throughput(Throughput::Elements(captions.len() as u64));
    group.sample_size(20);
    group.bench_function("14 words", |bencher| {
        bencher.iter(|| {
            let used = captions
                .iter()
                .map(|c| tokenizer.encode(c).expect("the vocabulary has every byte").used);
            used.sum::<usize>()
        });
    });
}

criterion_group!(benches, images, captions);
criterion_main!(benches);
