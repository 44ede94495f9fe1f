//! The backward pass of attention on the CPU: one operator of our own beside standard operators over chunks of the queries, and
//! beside the forward pass, which has two products where a backward pass has five. In turns; what is printed are medians, and
//! medians of ratios within a turn.
//!
//! Sizes are those of Stable Diffusion 1.5 and XL for two samples; keys are the queries' own, or 77 tokens of text.

use std::path::Path;
use std::time::Instant;

use ortdpo::autodiff::{AttentionGradient, DeriveOptions, gradients_with};
use ortdpo::onnx::{Attrs, Graph, MICROSOFT, Node, TensorType, write};
use ortdpo::runtime::{self, RuntimeOptions, Session, SessionOptions, TensorView};
use ortdpo::tensor::DType;

const TURNS: usize = 7;

/// Queries, keys, heads and width of a head.
const SIZES: [(&str, [usize; 4]); 5] = [
    ("SD1.5, 64x64", [4096, 4096, 8, 40]),
    ("SD1.5, 32x32", [1024, 1024, 8, 80]),
    ("SD1.5, 64x64, text", [4096, 77, 8, 40]),
    ("XL, 64x64", [4096, 4096, 10, 64]),
    ("XL, 32x32", [1024, 1024, 20, 64]),
];

/// `MultiHeadAttention` alone, or with its gradients in a form.
fn graph([queries, keys, heads, width]: [usize; 4], form: Option<AttentionGradient>) -> Graph {
    let mut g = Graph::new("attention", 17);
    g.other_opsets.insert(MICROSOFT.to_owned(), 1);
    let ty = |rows| TensorType::new(DType::F32, [2, rows, heads * width]);
    let [q, k, v, dy] = [("q", queries), ("k", keys), ("v", keys), ("dy", queries)]
        .map(|(name, rows)| g.add_input(name, ty(rows)));
    let node = Node {
        op: "MultiHeadAttention".to_owned(),
        domain: MICROSOFT.to_owned(),
        name: String::new(),
        inputs: vec![Some(q), Some(k), Some(v)],
        outputs: Vec::new(),
        attrs: Attrs::new()
            .int("num_heads", heads as i64)
            .float("scale", 1.0 / (width as f32).sqrt()),
        metadata: Vec::new(),
    };
    let y = g.add_node(node, &[Some("y")]).expect("the operator is known")[0].expect("it has a result");
    let Some(attention) = form else {
        g.outputs.push(y);
        return g;
    };
    let options = DeriveOptions {
        attention,
        ..DeriveOptions::default()
    };
    let found = gradients_with(&mut g, &[(y, dy)], &[q, k, v], options).expect("the operator has a gradient");
    for (gradient, name) in found.into_iter().zip(["dq", "dk", "dv"]) {
        let gradient = gradient.expect("every operand has a gradient");
        let gradient = g.as_output(gradient, name).expect("names differ");
        g.outputs.push(gradient);
    }
    g
}

fn session(graph: &Graph) -> Session {
    let bytes = write::to_bytes(graph, None).expect("the graph is small");
    let options = SessionOptions {
        share_buffers: false,
        ..SessionOptions::default()
    };
    Session::from_bytes(&bytes, Some(Path::new(".")), &options).expect("ONNX Runtime takes the graph")
}

fn seconds(session: &mut Session, given: &[(&str, TensorView)]) -> f64 {
    let names: Vec<String> = session.inputs().iter().map(|i| i.name.clone()).collect();
    let given: Vec<_> = given
        .iter()
        .filter(|(name, _)| names.iter().any(|n| n == name))
        .cloned()
        .collect();
    let started = Instant::now();
    session.run(&given).expect("the graph runs");
    started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    runtime::init(&RuntimeOptions::default()).expect("scripts/setup puts ONNX Runtime into .ort/");
    println!(
        "{:20} {:>9} {:>11} {:>11} {:>8} {:>18}",
        "", "forward", "chunks", "operator", "ratio", "operator/forward"
    );
    for (name, sizes) in SIZES {
        let [queries, keys, heads, width] = sizes;
        let values = |rows: usize, seed: f32| -> Vec<f32> {
            (0..2 * rows * heads * width)
                .map(|i| (i as f32 * seed).sin())
                .collect()
        };
        let (q, k) = (values(queries, 0.7), values(keys, 1.3));
        let (v, dy) = (values(keys, 2.1), values(queries, 0.37));
        let shape = |rows| [2, rows, heads * width];
        let given = [
            ("q", TensorView::f32(&shape(queries), &q)),
            ("k", TensorView::f32(&shape(keys), &k)),
            ("v", TensorView::f32(&shape(keys), &v)),
            ("dy", TensorView::f32(&shape(queries), &dy)),
        ];
        let forms = [
            None,
            Some(AttentionGradient::Chunks),
            Some(AttentionGradient::Fused),
        ];
        let mut sessions = forms.map(|form| session(&graph(sizes, form)));
        let mut turns = Vec::with_capacity(TURNS);
        for turn in 0..=TURNS {
            let [forward, chunks, fused] = [0, 1, 2].map(|i| seconds(&mut sessions[i], &given));
            if turn > 0 {
                // The graphs with gradients have the forward pass, too.
                turns.push([forward, chunks - forward, fused - forward]);
            }
        }
        let of = |f: &dyn Fn(&[f64; 3]) -> f64| median(turns.iter().map(f).collect());
        println!(
            "{name:20} {:>7.0}ms {:>9.0}ms {:>9.0}ms {:>8.2} {:>18.2}",
            1e3 * of(&|t| t[0]),
            1e3 * of(&|t| t[1]),
            1e3 * of(&|t| t[2]),
            of(&|t| t[2] / t[1]),
            of(&|t| t[2] / t[0]),
        );
    }
}
