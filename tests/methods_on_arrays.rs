//! The full cross product of objectives with a reference, reference rules and timestep rules, on plain arrays: the "model"
//! is a linear map of a few weights, so that everything around the objective can be computed again by hand.

mod common;

use ndarray::{Array1, Array2};
use ortdpo::autodiff::gradients;
use ortdpo::config::objective::ObjectiveConfig;
use ortdpo::config::optimizer::OptimizerConfig;
use ortdpo::config::reference::ReferenceConfig;
use ortdpo::config::timestep::{TimestepConfig, WeightingConfig};
use ortdpo::diffusion::{NoiseSchedule, Timestep};
use ortdpo::objective::{Sampled, Trajectory};
use ortdpo::onnx::{Graph, TensorType, write};
use ortdpo::optim::{AdamW, Follow, Gradient, Term};
use ortdpo::params::{Layout, ParamSet};
use ortdpo::reference::{Action, Blend, ReferenceRule, Verdict};
use ortdpo::rng::{Purpose, Stream, Streams};
use ortdpo::runtime::{Session, SessionOptions, TensorView};
use ortdpo::tensor::DType;
use ortdpo::timestep::{Observation, TimestepRule};
use ortdpo::traingraph::head::{HeadInputs, head};

const PAIRS: usize = 3;
/// Values of a sample: (C,H,W) = (2,1,3).
const SIZE: usize = 6;
const WEIGHTS: usize = 5;
const STEPS: u64 = 4;

const OBJECTIVES: [&str; 15] = [
    "{kind: dpo, beta: 20}",
    "{kind: dpo, beta: 20, label_smoothing: 0.2, robust: true}",
    "{kind: dpo, beta: 20, safeguard: {mu: 0.5}}",
    "{kind: ipo, beta: 10}",
    "{kind: hinge, beta: 10}",
    "{kind: kto, beta: 10}",
    "{kind: dspo, beta: 0.5}",
    "{kind: dspo, form: gap, beta: 10}",
    "{kind: dmpo, beta: 20}",
    "{kind: linear_dpo, beta: 20}",
    "{kind: smpo, beta: 5, score_range: 1}",
    "{kind: d3po, beta: 5}",
    "{kind: spo}",
    "{kind: ddpo, clip: 0.5, kl: 0.5}",
    "{kind: dpok, clip: 0.5, reward_weight: 10}",
];
const REFERENCES: [&str; 9] = [
    "{}",
    "{update: ema, alpha: 0.3}",
    "{update: ema, alpha: 0.3, anchor: {kind: kl}}",
    "{update: ema, alpha: 0.3, anchor: {kind: pull, strength: 0.25}}",
    "{update: ema, alpha: 0.3, every: 2, anchor: {kind: gate, delta: 1.0e-6, on_trip: reinit}}",
    "{update: copy, every: 2}",
    "{update: copy, every: 2, anchor: {kind: kl}}",
    "{update: copy, every: 2, anchor: {kind: pull, strength: 0.25}}",
    "{update: copy, every: 2, anchor: {kind: gate, delta: 1.0e-6, on_trip: freeze}}",
];
const TIMESTEPS: [&str; 7] = [
    "{}",
    "{bins: 3, weighting: {kind: variance, warmup: 2}}",
    "{bins: 3, weighting: {kind: variance, warmup: 2, power: 1}, sampling: {kind: geometric, gamma: 0.5}}",
    "{sampling: {kind: geometric}, reward_scale: inverse_sqrt_snr}",
    "{weighting: {kind: min_snr}}",
    "{bins: 2, sampling: {kind: range, min: 100, max: 800}, weighting: {kind: table, weights: [1, 2]}}",
    "{bins: 2, weighting: {kind: table, weights: [3, 1]}, replace: false, lambda: 0.5}",
];

/// The head of an objective as a session, with its gradient for the prediction.
struct Head(Session);

/// What a run of the head is given; `[2P]` samples, preferred first.
#[derive(Clone)]
struct Given {
    prediction: Array1<f32>,
    reference: Array1<f32>,
    target: Array1<f32>,
    weight: Vec<f32>,
    reward_scale: Vec<f32>,
}

impl Head {
    fn new(objective: &ObjectiveConfig) -> Self {
        let mut g = Graph::new("head", 18);
        let samples = TensorType::new(DType::F32, [2 * PAIRS, 2, 1, 3]);
        let [prediction, target, reference] =
            ["prediction", "target", "reference"].map(|name| g.add_input(name, samples.clone()));
        let errors = g.add_input("errors", TensorType::new(DType::F32, [2 * PAIRS]));
        let [gap, weight, reward_scale, label] = ["gap", "weight", "scale", "label"]
            .map(|name| g.add_input(name, TensorType::new(DType::F32, [PAIRS])));
        // As denoising steps: precisions, errors of the policy that took them, advantages.
        let mut numbers = |values: [f64; PAIRS]| g.float_tensor(DType::F32, &[PAIRS], &values);
        let trajectory = Trajectory {
            precision: numbers([0.25, 0.3, 0.2]),
            sampled: Some(Sampled {
                errors: numbers([0.1, 0.08, 0.12]),
                advantage: numbers([1.2, -0.7, 0.3]),
            }),
        };
        let inputs = HeadInputs {
            prediction,
            target,
            reference_errors: Some(errors),
            reference_prediction: Some(reference),
            score_gap: Some(gap),
            weight,
            reward_scale,
            label,
            trajectory: Some(trajectory),
            batch_means: None,
        };
        let head = head(&mut g, objective.objective(), PAIRS, &inputs).unwrap();
        let one = g.scalar_like(head.loss, 1.0);
        let gradient = gradients(&mut g, &[(head.loss, one)], &[prediction]).unwrap()[0].unwrap();
        let signal = head.reward_signal.unwrap();
        for (value, name) in [(head.loss, "loss"), (gradient, "gradient"), (signal, "signal")] {
            let value = g.as_output(value, name).unwrap();
            g.outputs.push(value);
        }
        let bytes = write::to_bytes(&g, None).unwrap();
        Self(Session::from_bytes(&bytes, None, &SessionOptions::default()).unwrap())
    }

    /// Loss, gradient and reward signal.
    fn run(&mut self, given: &Given) -> (f32, Vec<f32>, Vec<f32>) {
        let shape = [2 * PAIRS, 2, 1, 3];
        let slice = |a: &Array1<f32>| a.to_vec();
        let samples = [&given.prediction, &given.target, &given.reference].map(slice);
        let errors = errors(&given.reference, &given.target);
        let (gap, label) = ([0.4, -0.1, 0.8], [1.0; PAIRS]);
        let inputs = [
            ("prediction", TensorView::f32(&shape, &samples[0])),
            ("target", TensorView::f32(&shape, &samples[1])),
            ("reference", TensorView::f32(&shape, &samples[2])),
            ("errors", TensorView::f32(&[2 * PAIRS], &errors)),
            ("gap", TensorView::f32(&[PAIRS], &gap)),
            ("weight", TensorView::f32(&[PAIRS], &given.weight)),
            ("scale", TensorView::f32(&[PAIRS], &given.reward_scale)),
            ("label", TensorView::f32(&[PAIRS], &label)),
        ];
        let mut found = self.0.run(&inputs).unwrap();
        let mut take = |name: &str| {
            let values = found.take(name).unwrap().into_f32(name).unwrap();
            values.into_raw_vec_and_offset().0
        };
        (take("loss")[0], take("gradient"), take("signal"))
    }
}

/// Mean squared error of each sample.
fn errors(prediction: &Array1<f32>, target: &Array1<f32>) -> Vec<f32> {
    let difference = prediction - target;
    let all = difference.to_vec();
    all.chunks(SIZE)
        .map(|c| c.iter().map(|d| d * d).sum::<f32>() / SIZE as f32)
        .collect()
}

/// A run on arrays: `prediction = base + map·θ`.
struct Toy {
    base: Array1<f32>,
    map: Array2<f32>,
    target: Array1<f32>,
    initial: ParamSet,
}

impl Toy {
    fn new() -> Self {
        let streams = Streams::new(5);
        let normal = |name: &str, len: usize| {
            let mut values = vec![0.0; len];
            streams.named(Purpose::Noise, name).fill_normal(&mut values);
            Array1::from(values)
        };
        let layout = Layout::new([("w".to_owned(), vec![WEIGHTS])]).unwrap();
        let mut initial = ParamSet::zeros(&layout);
        initial
            .values_mut()
            .copy_from_slice(normal("initial", WEIGHTS).as_slice().unwrap());
        let samples = 2 * PAIRS * SIZE;
        let map = normal("map", samples * WEIGHTS) * 0.3;
        let base = normal("base", samples);
        Self {
            target: &base + &(normal("target", samples) * 0.3),
            map: map.into_shape_with_order((samples, WEIGHTS)).unwrap(),
            base,
            initial,
        }
    }

    fn predict(&self, weights: &ParamSet) -> Array1<f32> {
        &self.base + &self.map.dot(&Array1::from(weights.values().to_vec()))
    }
}

/// Where the reference has to be after an update, in 64 bits.
fn moved(blend: (f64, f64), reference: &ParamSet, policy: &ParamSet, initial: &ParamSet) -> Vec<f64> {
    let (alpha, strength) = blend;
    let lambda = alpha * strength / (1.0 - strength);
    let values = reference
        .values()
        .iter()
        .zip(policy.values())
        .zip(initial.values());
    values
        .map(|((r, p), i)| {
            let [r, p, i] = [*r, *p, *i].map(f64::from);
            ((1.0 - alpha) * r + alpha * p + lambda * i) / (1.0 + lambda)
        })
        .collect()
}

fn near(found: &[f32], wanted: &[f64]) -> bool {
    let pairs = found.iter().zip(wanted);
    found.len() == wanted.len()
        && pairs
            .into_iter()
            .all(|(f, w)| (f64::from(*f) - w).abs() <= 1e-5 * (1.0 + w.abs()))
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_yaml::from_str(text).unwrap()
}

struct Combination<'a> {
    toy: &'a Toy,
    head: &'a mut Head,
    reference: &'a str,
    timestep: &'a str,
    what: String,
}

impl Combination<'_> {
    /// Weights of the bins average to one under the sampling, or to 1 + λ₂ where the weighted loss is added.
    fn weights_are_normalised(&self, config: &TimestepConfig, rule: &TimestepRule) {
        let mean: f64 = rule.bins_report(None).iter().map(|b| b.p * b.w).sum();
        let wanted = if config.replace { 1.0 } else { 1.0 + config.lambda };
        assert!(
            (mean - wanted).abs() < 1e-9,
            "{}: weights average to {mean}",
            self.what
        );
    }

    /// Weights multiply the loss, reward scales the reward signal.
    fn factors_act_where_they_belong(&mut self, given: &Given, found: &(f32, Vec<f32>, Vec<f32>)) {
        let alone = |k: usize| {
            let mut weight = vec![0.0; PAIRS];
            weight[k] = given.weight[k];
            Given {
                weight,
                ..given.clone()
            }
        };
        let sum: f32 = (0..PAIRS).map(|k| self.head.run(&alone(k)).0).sum();
        assert!(
            near(&[sum], &[f64::from(found.0)]),
            "{}: loss {} of parts {sum}",
            self.what,
            found.0
        );
        let plain = Given {
            reward_scale: vec![1.0; PAIRS],
            ..given.clone()
        };
        let signal = self.head.run(&plain).2;
        let scaled = signal
            .iter()
            .enumerate()
            .map(|(i, s)| f64::from(s * given.reward_scale[i % PAIRS]));
        assert!(
            near(&found.2, &scaled.collect::<Vec<_>>()),
            "{}: reward signal",
            self.what
        );
    }

    fn run(&mut self, schedule: &NoiseSchedule) {
        let config: TimestepConfig = read(self.timestep);
        let reference_config: ReferenceConfig = read(self.reference);
        let mut rule = TimestepRule::new(&config, schedule).unwrap();
        let mut reference_rule = ReferenceRule::new(&reference_config).unwrap();
        let (mut policy, mut reference) = (self.toy.initial.clone(), self.toy.initial.clone());
        let mut adamw = AdamW::new(&OptimizerConfig::default(), policy.layout());
        let mut stream = Streams::new(9).named(Purpose::Timestep, &self.what);
        let mut gradient = ParamSet::zeros(policy.layout());
        for step in 1..=STEPS {
            self.weights_are_normalised(&config, &rule);
            let timesteps: Vec<Timestep> = (0..PAIRS).map(|_| rule.sample(&mut stream)).collect();
            let given = self.given(&rule, &timesteps, &policy, &reference, &mut stream);
            let found = self.head.run(&given);
            assert!(
                found.0.is_finite() && found.1.iter().all(|g| g.is_finite()),
                "{}",
                self.what
            );
            self.factors_act_where_they_belong(&given, &found);
            let slope = self.toy.map.t().dot(&Array1::from(found.1.clone()));
            assert!(slope.iter().any(|s| *s != 0.0), "{}: no gradient", self.what);
            gradient.values_mut().copy_from_slice(slope.as_slice().unwrap());
            self.one_step(
                step,
                &mut adamw,
                &gradient,
                &mut policy,
                &mut reference,
                &mut reference_rule,
                &reference_config,
            );
            let observed = found.2.iter().enumerate().map(|(i, reward)| Observation {
                timestep: timesteps[i % PAIRS],
                weight: 1.0,
                reward: f64::from(*reward),
            });
            rule.observe(&observed.collect::<Vec<_>>());
        }
        self.weights_are_normalised(&config, &rule);
        let learns_weights = matches!(config.weighting, WeightingConfig::Variance(_));
        assert!(
            !learns_weights || rule.state().variance.is_some(),
            "{}",
            self.what
        );
    }

    fn given(
        &self,
        rule: &TimestepRule,
        timesteps: &[Timestep],
        policy: &ParamSet,
        reference: &ParamSet,
        stream: &mut Stream,
    ) -> Given {
        let mut noise = vec![0.0; self.toy.target.len()];
        stream.fill_normal(&mut noise);
        Given {
            prediction: self.toy.predict(policy),
            reference: self.toy.predict(reference),
            target: &self.toy.target + &(Array1::from(noise) * 0.1),
            weight: timesteps.iter().map(|t| rule.loss_weight(*t) as f32).collect(),
            reward_scale: timesteps.iter().map(|t| rule.reward_scale(*t) as f32).collect(),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn one_step(
        &self,
        step: u64,
        adamw: &mut AdamW,
        gradient: &ParamSet,
        policy: &mut ParamSet,
        reference: &mut ParamSet,
        rule: &mut ReferenceRule,
        config: &ReferenceConfig,
    ) {
        let before = reference.clone();
        let term = Gradient::of(Term::from_set(gradient, 1.0));
        let action = rule.action(step);
        let follow = match action {
            Action::Move(blend) => Some(Follow {
                reference,
                initial: &self.toy.initial,
                blend,
            }),
            _ => None,
        };
        adamw.step(policy, &term, 1.0, 0.05, follow);
        let alpha = if self.reference.contains("copy") {
            1.0
        } else {
            config.alpha
        };
        let strength = if self.reference.contains("pull") {
            0.25
        } else {
            0.0
        };
        let wanted = moved((alpha, strength), &before, policy, &self.toy.initial);
        let still: Vec<f64> = before.values().iter().map(|v| f64::from(*v)).collect();
        match action {
            Action::Keep => assert!(
                near(reference.values(), &still),
                "{}: moved at step {step}",
                self.what
            ),
            Action::Move(_) => assert!(near(reference.values(), &wanted), "{}: step {step}", self.what),
            Action::Probe(blend) => self.judged(step, blend, &wanted, policy, reference, rule),
        }
    }

    /// Takes or refuses a candidate by the growth of its error on the samples, as a run does by its probe.
    fn judged(
        &self,
        step: u64,
        blend: Blend,
        wanted: &[f64],
        policy: &ParamSet,
        reference: &mut ParamSet,
        rule: &mut ReferenceRule,
    ) {
        let mut candidate = reference.clone();
        blend.candidate(reference, policy, &self.toy.initial, &mut candidate);
        assert!(
            near(candidate.values(), wanted),
            "{}: candidate of step {step}",
            self.what
        );
        let mean = |set: &ParamSet| {
            let errors = errors(&self.toy.predict(set), &self.toy.target);
            errors.iter().map(|e| f64::from(*e)).sum::<f64>() / errors.len() as f64
        };
        match rule
            .judge(step, mean(&candidate) - mean(&self.toy.initial))
            .unwrap()
        {
            Verdict::Accept => reference.copy_from(&candidate),
            Verdict::Reinit => reference.copy_from(&self.toy.initial),
            Verdict::Freeze => assert!(matches!(rule.action(step + 2), Action::Keep), "{}", self.what),
        }
    }
}

#[test]
fn every_objective_under_every_reference_and_timestep_rule() {
    let toy = Toy::new();
    let schedule =
        NoiseSchedule::from_file(&common::fixtures().join("optimum-sd/scheduler/scheduler_config.json"))
            .unwrap();
    let mut count = 0;
    for objective in OBJECTIVES {
        let mut head = Head::new(&read(objective));
        for reference in REFERENCES {
            for timestep in TIMESTEPS {
                let what = format!("{objective}, {reference}, {timestep}");
                let mut combination = Combination {
                    toy: &toy,
                    head: &mut head,
                    reference,
                    timestep,
                    what,
                };
                combination.run(&schedule);
                count += 1;
            }
        }
    }
    assert_eq!(count, OBJECTIVES.len() * REFERENCES.len() * TIMESTEPS.len());
}
