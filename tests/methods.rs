//! Every objective with a reference under every reference rule and every timestep rule: real trainings of a tiny pipeline,
//! in which each pair of (objective, reference rule), (objective, timestep rule) and (reference rule, timestep rule) occurs.
//! After every step the reference is where a plain re-computation from the saved policies says.

mod common;

use std::fs;
use std::path::Path;

use common::train::{Workspace, json, metrics};
use ndarray::{Array1, Zip};
use safetensors::SafeTensors;
use serde_json::Value;

/// Steps of a run; enough for two updates of every rule.
const STEPS: usize = 4;
const ALPHA: f64 = 0.3;
const STRENGTH: f64 = 0.25;

/// How the reference moves, with the keys that say so.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Frozen,
    /// A moving average at every step.
    Ema,
    /// A copy at every second step.
    Copy,
}

#[derive(Clone, Copy, PartialEq)]
enum Anchor {
    None,
    Kl,
    Pull,
    GateFreeze,
    GateReinit,
}

const RULES: [(Rule, Anchor, &str); 9] = [
    (Rule::Frozen, Anchor::None, "{update: frozen}"),
    (Rule::Ema, Anchor::None, "{update: ema, alpha: 0.3}"),
    (
        Rule::Ema,
        Anchor::Kl,
        "{update: ema, alpha: 0.3, anchor: {kind: kl, fraction: 0.5}}",
    ),
    (
        Rule::Ema,
        Anchor::Pull,
        "{update: ema, alpha: 0.3, anchor: {kind: pull, strength: 0.25}}",
    ),
    (
        Rule::Ema,
        Anchor::GateReinit,
        "{update: ema, alpha: 0.3, anchor: {kind: gate, delta: 1.0e-7, on_trip: reinit}}",
    ),
    (Rule::Copy, Anchor::None, "{update: copy, every: 2}"),
    (
        Rule::Copy,
        Anchor::Kl,
        "{update: copy, every: 2, anchor: {kind: kl}}",
    ),
    (
        Rule::Copy,
        Anchor::Pull,
        "{update: copy, every: 2, anchor: {kind: pull, strength: 0.25}}",
    ),
    (
        Rule::Copy,
        Anchor::GateFreeze,
        "{update: copy, every: 2, anchor: {kind: gate, delta: 1.0e-7, on_trip: freeze}}",
    ),
];

const TIMESTEPS: [&str; 6] = [
    "{}",
    "{bins: 4, weighting: {kind: variance, warmup: 2}}",
    "{sampling: {kind: geometric}, reward_scale: inverse_sqrt_snr}",
    "{weighting: {kind: min_snr}}",
    "{bins: 2, sampling: {kind: range, min: 100, max: 800}, weighting: {kind: table, weights: [1, 2]}}",
    "{bins: 4, weighting: {kind: variance, warmup: 2, power: 1}, replace: false, lambda: 0.5}",
];

/// The tensors of a file one behind the other, in the order of their names.
fn values(path: &Path) -> Array1<f64> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let numbers = |name: &&str| {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4)
            .map(|c| f64::from(f32::from_le_bytes(c.try_into().unwrap())))
            .collect::<Vec<_>>()
    };
    names.iter().flat_map(numbers).collect()
}

/// The reference after an accepted update.
fn moved(
    rule: Rule,
    anchor: Anchor,
    reference: &Array1<f64>,
    policy: &Array1<f64>,
    initial: &Array1<f64>,
) -> Array1<f64> {
    let alpha = if rule == Rule::Ema { ALPHA } else { 1.0 };
    let new = reference * (1.0 - alpha) + policy * alpha;
    match anchor {
        Anchor::Pull => {
            let lambda = alpha * STRENGTH / (1.0 - STRENGTH);
            (new + initial * lambda) / (1.0 + lambda)
        }
        _ => new,
    }
}

/// What the gate said after each step, as the last checkpoint has it.
fn gate(run: &Path) -> Vec<(u64, bool)> {
    let state = json(&run.join(format!("checkpoints/step-{STEPS}/state.json")));
    let record = |r: &Value| (r["step"].as_u64().unwrap(), r["accepted"].as_bool().unwrap());
    state["reference"]["gate"]
        .as_array()
        .unwrap()
        .iter()
        .map(record)
        .collect()
}

/// Follows the reference from checkpoint to checkpoint.
fn reference_is_as_computed(run: &Path, rule: Rule, anchor: Anchor, what: &str) {
    let at =
        |step: usize, name: &str| values(&run.join(format!("checkpoints/step-{step}/{name}.safetensors")));
    let initial = at(1, "initial");
    let decisions = gate(run);
    let mut reference = initial.clone();
    let mut is_frozen = rule == Rule::Frozen;
    for step in 1..=STEPS {
        let policy = at(step, "policy");
        // The first step of a warm-up has a learning rate of zero.
        assert!(step == 1 || policy != initial, "{what}: nothing was trained");
        let is_due = rule == Rule::Ema || step % 2 == 0;
        if is_due && !is_frozen {
            let decision = decisions.iter().find(|(at, _)| *at == step as u64);
            match (anchor, decision) {
                (Anchor::GateFreeze, Some((_, false))) => is_frozen = true,
                (Anchor::GateReinit, Some((_, false))) => reference.assign(&initial),
                (Anchor::GateFreeze | Anchor::GateReinit, None) => {
                    panic!("{what}: step {step} was not judged")
                }
                _ => reference = moved(rule, anchor, &reference, &policy, &initial),
            }
        }
        let found = at(step, "reference");
        let size = policy.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let mut worst = 0.0f64;
        Zip::from(&found)
            .and(&reference)
            .for_each(|a, b| worst = worst.max((a - b).abs() / size));
        assert!(
            worst < 1e-6,
            "{what}: the reference is {worst:e} off after step {step}"
        );
        // What was computed in 64 bits is rounded once a step, as the saved one is.
        reference.assign(&found);
    }
}

/// What online objectives make: enough for a step a round, with guidance in every second run.
fn rollouts(run: usize) -> [String; 2] {
    let reward = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-rewards/clip");
    [
        format!(
            "rollout={{steps: 3, images_per_prompt: 2, guidance: {}, reward: {}}}",
            1 + run % 2,
            reward.display()
        ),
        "buffer={prompts: 2, steps_per_image: 2}".to_owned(),
    ]
}

/// Trains `objective` under every reference rule, with another timestep rule each.
fn under_every_rule(index: usize, objective: &str) {
    let workspace = Workspace::new();
    for (j, (rule, anchor, reference)) in RULES.into_iter().enumerate() {
        let timestep = TIMESTEPS[(index + j) % TIMESTEPS.len()];
        // A batch in two parts gives the same result, and half of the runs take it that way.
        let train = format!(
            "train={{steps: {STEPS}, pairs_per_step: 4, accumulate: {}, eval_every: 0, eval_pairs: 1, eval_draws: 1, \
             checkpoint_every: 1, keep: {STEPS}}}",
            1 + j % 2
        );
        let set = [
            format!("objective={objective}"),
            format!("reference={reference}"),
            "reference.probe=4".to_owned(),
            format!("timestep={timestep}"),
            train,
        ];
        let rollouts = rollouts(j);
        let set: Vec<&str> = set.iter().chain(&rollouts).map(String::as_str).collect();
        let run = workspace.trained(&format!("run-{j}"), &set);
        let what = format!("{objective}, {reference}, {timestep}");
        reference_is_as_computed(&run, rule, anchor, &what);
        let lines = metrics(&run);
        assert_eq!(lines.len(), STEPS, "{what}");
        assert!(
            lines.iter().all(|l| l["loss"].is_f64() && l["ref_e_w"].is_f64()),
            "{what}"
        );
        fs::remove_dir_all(run).unwrap();
    }
}

#[test]
fn dpo() {
    under_every_rule(0, "{kind: dpo, label_smoothing: 0.1, robust: true}");
}

#[test]
fn dpo_with_the_safeguard() {
    under_every_rule(1, "{kind: dpo, safeguard: {mu: 0.9}}");
}

#[test]
fn ipo() {
    under_every_rule(2, "{kind: ipo}");
}

#[test]
fn hinge() {
    under_every_rule(3, "{kind: hinge, safeguard: {mu: 0.5}}");
}

#[test]
fn kto() {
    under_every_rule(4, "{kind: kto}");
}

#[test]
fn dspo() {
    under_every_rule(5, "{kind: dspo}");
}

#[test]
fn dspo_as_for_sdxl() {
    under_every_rule(6, "{kind: dspo, form: gap}");
}

#[test]
fn dmpo() {
    under_every_rule(7, "{kind: dmpo}");
}

#[test]
fn linear_dpo() {
    under_every_rule(8, "{kind: linear_dpo}");
}

#[test]
fn smpo() {
    under_every_rule(9, "{kind: smpo}");
}

#[test]
fn online_dpo() {
    under_every_rule(10, "{kind: online_dpo, safeguard: {mu: 0.9}}");
}

#[test]
fn ddpo() {
    under_every_rule(11, "{kind: ddpo, kl: 0.5, clip: 0.2}");
}

#[test]
fn d3po() {
    under_every_rule(12, "{kind: d3po}");
}

#[test]
fn dpok() {
    under_every_rule(13, "{kind: dpok, clip: 0.2}");
}

#[test]
fn spo() {
    under_every_rule(14, "{kind: spo, candidates: 2, skip: 1}");
}
