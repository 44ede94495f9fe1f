//! Every objective against PyTorch: loss, reward signal and gradient on recorded predictions, in 64-bit arithmetic, so that
//! only the formulas can differ; and the same from batches computed in parts.

mod common;

use common::fixtures;
use ndarray::ArrayD;
use ortdpo::autodiff::gradients;
use ortdpo::config::objective::ObjectiveConfig;
use ortdpo::objective::{Sampled, Trajectory};
use ortdpo::onnx::{Graph, TensorType, ValueId, write};
use ortdpo::runtime::{Session, SessionOptions};
use ortdpo::tensor::{DType, Tensor};
use ortdpo::traingraph::head::{HeadInputs, head, quantities};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    shape: [usize; 4],
    prediction: Vec<f64>,
    reference: Vec<f64>,
    target: Vec<f64>,
    weight: Vec<f64>,
    reward_scale: Vec<f64>,
    score_gap: Vec<f64>,
    precision: Vec<f64>,
    old_errors: Vec<f64>,
    advantage: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    objective: serde_json::Value,
    label: Vec<f64>,
    prediction: Option<Vec<f64>>,
    loss: f64,
    gradient: Vec<f64>,
    reward_signal: Option<Vec<f64>>,
}

fn recorded() -> Recorded {
    let text = std::fs::read_to_string(fixtures().join("objectives.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn f64_tensor(shape: &[usize], values: Vec<f64>) -> Tensor {
    Tensor::F64(ArrayD::from_shape_vec(shape, values).unwrap())
}

fn f64_values(tensor: Tensor) -> Vec<f64> {
    match tensor {
        Tensor::F64(array) => array.into_raw_vec_and_offset().0,
        other => panic!("{:?} instead of f64", other.dtype()),
    }
}

/// Inputs of the head for `pairs` of the recorded pairs.
struct Batch<'a> {
    all: &'a Recorded,
    case: &'a Case,
    pairs: std::ops::Range<usize>,
}

impl Batch<'_> {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn vector(&self, values: &[f64]) -> Tensor {
        f64_tensor(&[self.len()], values[self.pairs.clone()].to_vec())
    }

    /// The chosen pairs' samples: preferred first.
    fn samples(&self, values: &[f64]) -> Tensor {
        let [pairs, c, h, w] = self.all.shape;
        let size = c * h * w;
        let side = |start: usize| {
            values[(start + self.pairs.start) * size..(start + self.pairs.end) * size].to_vec()
        };
        f64_tensor(&[2 * self.len(), c, h, w], [side(0), side(pairs)].concat())
    }

    /// Errors of the reference for the chosen pairs' samples.
    fn reference_errors(&self) -> Tensor {
        let [_, c, h, w] = self.all.shape;
        let size = c * h * w;
        let both = [&self.all.reference, &self.all.target].map(|v| f64_values(self.samples(v)));
        let errors = both[0]
            .chunks(size)
            .zip(both[1].chunks(size))
            .map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / size as f64);
        f64_tensor(&[2 * self.len()], errors.collect())
    }

    fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let prediction = self.case.prediction.as_ref().unwrap_or(&self.all.prediction);
        vec![
            ("prediction", self.samples(prediction)),
            ("target", self.samples(&self.all.target)),
            ("reference_errors", self.reference_errors()),
            ("reference_prediction", self.samples(&self.all.reference)),
            ("score_gap", self.vector(&self.all.score_gap)),
            ("weight", self.vector(&self.all.weight)),
            ("reward_scale", self.vector(&self.all.reward_scale)),
            ("label", self.vector(&self.case.label)),
            ("precision", self.vector(&self.all.precision)),
            ("old_errors", self.vector(&self.all.old_errors)),
            ("advantage", self.vector(&self.all.advantage)),
        ]
    }

    fn head_inputs(&self, graph: &mut Graph) -> HeadInputs {
        let ids: Vec<ValueId> = self
            .tensors()
            .iter()
            .map(|(name, t)| graph.add_input(name, TensorType::new(DType::F64, t.shape())))
            .collect();
        let [
            prediction,
            target,
            errors,
            reference,
            gap,
            weight,
            scale,
            label,
            steps @ ..,
        ] = &ids[..]
        else {
            unreachable!()
        };
        let trajectory = Trajectory {
            precision: steps[0],
            sampled: Some(Sampled {
                errors: steps[1],
                advantage: steps[2],
            }),
        };
        HeadInputs {
            prediction: *prediction,
            target: *target,
            reference_errors: Some(*errors),
            reference_prediction: Some(*reference),
            score_gap: Some(*gap),
            weight: *weight,
            reward_scale: *scale,
            label: *label,
            trajectory: Some(trajectory),
            batch_means: None,
        }
    }

    fn run(&self, graph: &Graph, means: &[f64], outputs: &[&str]) -> Vec<Vec<f64>> {
        let bytes = write::to_bytes(graph, None).unwrap();
        let mut session = Session::from_bytes(&bytes, None, &SessionOptions::default()).unwrap();
        let mut given = self.tensors();
        if !means.is_empty() {
            given.push(("batch_means", f64_tensor(&[means.len()], means.to_vec())));
        }
        let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, t)| (*name, t)).collect();
        let mut found = session.run(&given).unwrap();
        outputs
            .iter()
            .map(|name| f64_values(found.take(name).unwrap()))
            .collect()
    }

    /// Means of the batch quantities over these pairs; empty if the loss uses none.
    fn means(&self, objective: &ObjectiveConfig) -> Vec<f64> {
        let mut graph = Graph::new("means", 18);
        let inputs = self.head_inputs(&mut graph);
        let found = quantities(&mut graph, objective.objective(), self.len(), &inputs).unwrap();
        let Some(means) = found else { return Vec::new() };
        let means = graph.as_output(means, "means").unwrap();
        graph.outputs.push(means);
        self.run(&graph, &[], &["means"]).remove(0)
    }

    /// Loss, gradient and reward signal; `means` are those of the whole batch, if these pairs are a part of it.
    fn step(&self, objective: &ObjectiveConfig, means: &[f64]) -> (f64, Vec<f64>, Option<Vec<f64>>) {
        let mut graph = Graph::new("head", 18);
        let mut inputs = self.head_inputs(&mut graph);
        if !means.is_empty() {
            let ty = TensorType::new(DType::F64, [means.len()]);
            inputs.batch_means = Some(graph.add_input("batch_means", ty));
        }
        let head = head(&mut graph, objective.objective(), self.len(), &inputs).unwrap();
        let one = graph.scalar_like(head.loss, 1.0);
        let found = gradients(&mut graph, &[(head.loss, one)], &[inputs.prediction]).unwrap();
        let gradient = found[0].expect("the loss depends on the prediction");
        let mut names = vec!["loss", "gradient"];
        for (value, name) in [(head.loss, "loss"), (gradient, "gradient")] {
            let value = graph.as_output(value, name).unwrap();
            graph.outputs.push(value);
        }
        if let Some(signal) = head.reward_signal {
            let signal = graph.as_output(signal, "reward_signal").unwrap();
            graph.outputs.push(signal);
            names.push("reward_signal");
        }
        let mut found = self.run(&graph, means, &names).into_iter();
        let loss = found.next().unwrap()[0];
        (loss, found.next().unwrap(), found.next())
    }
}

/// Largest difference, as a share of the largest recorded value.
fn difference(found: &[f64], recorded: &[f64]) -> f64 {
    assert_eq!(found.len(), recorded.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |m: f64, v| m.max(v.abs()));
    let size = largest(&mut recorded.iter().copied());
    assert!(size > 0.0, "nothing was recorded");
    largest(&mut found.iter().zip(recorded).map(|(f, r)| f - r)) / size
}

fn objective(case: &Case) -> ObjectiveConfig {
    let mut keys = case.objective.clone();
    let unpaired = keys.as_object_mut().unwrap().remove("unpaired").is_some();
    let mut objective: ObjectiveConfig = serde_json::from_value(keys).unwrap();
    if let ObjectiveConfig::Kto(kto) = &mut objective {
        kto.unpaired = unpaired;
    }
    objective.objective().check().unwrap();
    objective
}

#[test]
fn loss_gradient_and_reward_signal_equal_pytorch() {
    let all = recorded();
    for case in &all.cases {
        let objective = objective(case);
        let batch = Batch {
            all: &all,
            case,
            pairs: 0..all.shape[0],
        };
        let (loss, gradient, signal) = batch.step(&objective, &[]);
        let mut worst = [
            difference(&[loss], &[case.loss]),
            difference(&gradient, &case.gradient),
        ]
        .to_vec();
        assert_eq!(
            signal.is_some(),
            case.reward_signal.is_some(),
            "{}",
            case.objective
        );
        if let (Some(found), Some(recorded)) = (signal, &case.reward_signal) {
            worst.push(difference(&found, recorded));
        }
        println!("{} {worst:?}", case.objective);
        assert!(worst.iter().all(|w| *w < 1e-9), "{}: {worst:?}", case.objective);
    }
}

#[test]
fn a_batch_in_two_parts_gives_what_the_whole_gives() {
    let all = recorded();
    let pairs = all.shape[0];
    let mut with_means = 0;
    for case in &all.cases {
        let objective = objective(case);
        let part = |range| Batch {
            all: &all,
            case,
            pairs: range,
        };
        let parts = [part(0..pairs / 2), part(pairs / 2..pairs)];
        let [first, second] = [&parts[0], &parts[1]].map(|p| p.means(&objective));
        let means: Vec<f64> = first.iter().zip(&second).map(|(a, b)| (a + b) / 2.0).collect();
        with_means += usize::from(!means.is_empty());
        let found = [&parts[0], &parts[1]].map(|p| p.step(&objective, &means));
        let loss = (found[0].0 + found[1].0) / 2.0;
        assert!(difference(&[loss], &[case.loss]) < 1e-9, "{}", case.objective);
        // Each part has its preferred samples first.
        let half = |k: usize, side: usize| {
            let gradient = &found[k].1;
            let (start, end) = (side * gradient.len() / 2, (side + 1) * gradient.len() / 2);
            gradient[start..end].iter().map(|g| g / 2.0).collect::<Vec<_>>()
        };
        let gradient = [half(0, 0), half(1, 0), half(0, 1), half(1, 1)].concat();
        assert!(difference(&gradient, &case.gradient) < 1e-9, "{}", case.objective);
    }
    assert!(with_means >= 8, "only {with_means} cases use means of the batch");
}
