//! Sessions over the same weights hold them in memory once. A test program of its own: it measures the process.
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;

use ortdpo::runtime::{Arena, OptLevel, Session, SessionOptions, SharedWeights, WeightSource};
use ortdpo::tensor::{DType, Tensor};

/// Side of the weight matrix in `shared.onnx`.
const SIDE: usize = 2048;
/// Its size.
const MIB: f64 = (SIDE * SIDE * 4) as f64 / (1 << 20) as f64;

/// Anonymous and file-backed memory of this process, MiB.
fn resident() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.
    };
    (field("RssAnon"), field("RssFile"))
}

#[test]
fn three_sessions_hold_one_copy_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shared.data");
    // Row i of the matrix is all i, so that ones·W is the sum of the rows in every column.
    let rows = (0..SIDE).flat_map(|row| std::iter::repeat_n((row as f32).to_le_bytes(), SIDE));
    let bytes: Vec<u8> = rows.flatten().collect();
    std::fs::File::create(&file).unwrap().write_all(&bytes).unwrap();
    drop(bytes);
    let model = std::fs::read(common::fixtures().join("runtime/shared.onnx")).unwrap();
    let options = SessionOptions {
        optimization: OptLevel::Basic,
        prepack: false,
        arena: Arena::Shared,
        ..Default::default()
    };

    let source = WeightSource {
        name: "weight".into(),
        dtype: DType::F32,
        dims: vec![SIDE, SIDE],
        file,
        offset: 0,
    };
    let weights = SharedWeights::map([source]).unwrap();
    let x = Tensor::f32(&[1, SIDE], vec![1.; SIDE]);
    let run = |session: &mut Session| {
        let y = session
            .run(&[("x", &x)])
            .unwrap()
            .take("y")
            .unwrap()
            .into_f32("y")
            .unwrap();
        assert!(y.iter().all(|v| *v == (SIDE * (SIDE - 1) / 2) as f32), "{y}");
    };
    let build = || Session::with_weights(&model, Some(folder.path()), &weights, &options).unwrap();

    let mut first = build();
    run(&mut first);
    let (anonymous, mapped) = resident();
    let mut others = [build(), build()];
    others.iter_mut().for_each(run);
    let (anonymous_after, mapped_after) = resident();

    let grown = (anonymous_after - anonymous, mapped_after - mapped);
    assert!(
        mapped >= MIB,
        "the weights are read from the mapping: {mapped} MiB"
    );
    assert!(
        grown.0 < 0.25 * MIB,
        "two more sessions added {} MiB of anonymous memory",
        grown.0
    );
    assert!(
        grown.1 < 0.25 * MIB,
        "two more sessions added {} MiB of mapped memory",
        grown.1
    );
}
