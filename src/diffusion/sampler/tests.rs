//! Samplers beside trajectories of diffusers' schedulers, recorded by `scripts/fixtures/samplers.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{SamplerConfig, SamplerKind, sampler};
use crate::Error;
use crate::diffusion::NoiseSchedule;

/// Largest difference after a step, as a share of the largest latent before it.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Case {
    kind: String,
    config: Value,
    steps: usize,
    #[serde(default)]
    eta: f64,
    initial_sigma: f64,
    /// Timestep, then the latents after the call.
    calls: Vec<Vec<f64>>,
}

fn numbers(seed: usize) -> Vec<f32> {
    (0..3)
        .map(|i| (1.5 * (12.9898 * f64::from(i + 1) + 78.233 * (seed as f64 + 1.0)).sin()) as f32)
        .collect()
}

fn denoiser(x: &[f32], t: f64) -> Vec<f32> {
    let output = |(i, x): (usize, &f32)| 0.6 * f64::from(*x).tanh() + 0.4 * (0.01 * t + i as f64).sin();
    x.iter().enumerate().map(output).map(|m| m as f32).collect()
}

/// The largest error of a case's steps, each begun where diffusers began it.
fn largest_error(case: &Case) -> f64 {
    let text = case.config.to_string();
    let config = SamplerConfig::from_json(&text, "test")
        .unwrap()
        .with_kind(case.kind.parse().unwrap())
        .with_eta(case.eta);
    let schedule = NoiseSchedule::from_json(&text, "test").unwrap();
    let mut sampler = sampler(&config, &schedule, case.steps).unwrap();
    let place = format!("{} {} {text}", case.kind, case.steps);
    let recorded: Vec<f64> = case.calls.iter().map(|call| call[0]).collect();
    assert_eq!(sampler.timesteps().len(), recorded.len(), "{place}");
    for (t, recorded) in sampler.timesteps().iter().zip(recorded) {
        assert!(
            (t - recorded).abs() < 0.01,
            "{place}: timestep {t} for {recorded}"
        );
    }
    let initial = sampler.initial_sigma();
    let mut largest = (initial - case.initial_sigma).abs() / initial.max(1.0);
    let mut x: Vec<f32> = numbers(0).iter().map(|n| n * case.initial_sigma as f32).collect();
    for (call, recorded) in case.calls.iter().enumerate() {
        let mut input = x.clone();
        sampler.scale_input(call, &mut input);
        let output = denoiser(&input, recorded[0]);
        let scale = x.iter().fold(1.0, |scale, x| f64::from(x.abs()).max(scale));
        let noise = sampler.needs_noise(call).then(|| numbers(call + 1));
        sampler.step(call, &output, &mut x, noise.as_deref()).unwrap();
        for (x, recorded) in x.iter_mut().zip(&recorded[1..]) {
            largest = largest.max((f64::from(*x) - recorded).abs() / scale);
            // diffusers' own rounding does not add up over the steps.
            *x = *recorded as f32;
        }
    }
    largest
}

#[test]
fn every_step_equals_diffusers() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../tests/fixtures/samplers.json")).unwrap();
    assert!(cases.len() > 90);
    let errors: Vec<f64> = cases.iter().map(largest_error).collect();
    let largest = errors.iter().copied().fold(0.0, f64::max);
    assert!(largest <= TOLERANCE, "{largest:e}");
}

/// SD1.5's file, with changes.
fn config(changes: Value) -> (SamplerConfig, NoiseSchedule) {
    let mut keys = json!({"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "skip_prk_steps": true, "steps_offset": 1,
        "trained_betas": null, "set_alpha_to_one": false, "clip_sample": false});
    for (key, value) in changes.as_object().unwrap() {
        keys[key] = value.clone();
    }
    let text = keys.to_string();
    (
        SamplerConfig::from_json(&text, "scheduler_config.json").unwrap(),
        NoiseSchedule::from_json(&text, "scheduler_config.json").unwrap(),
    )
}

fn refusal(changes: Value, kind: Option<SamplerKind>, steps: usize) -> String {
    let (mut config, schedule) = config(changes);
    if let Some(kind) = kind {
        config = config.with_kind(kind);
    }
    match sampler(&config, &schedule, steps) {
        Ok(_) => "accepted".into(),
        Err(error) => {
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        }
    }
}

#[test]
fn the_class_of_the_file_is_the_sampler_and_can_be_replaced() {
    for kind in SamplerKind::ALL {
        let (config, schedule) = config(json!({"_class_name": kind.class_name()}));
        assert_eq!(config.kind().unwrap(), kind);
        assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
        let other = SamplerKind::ALL[(kind as usize + 1) % 6];
        let replaced = sampler(&config.with_kind(other), &schedule, 10).unwrap();
        assert_eq!(
            replaced.timesteps().len(),
            if other == SamplerKind::Pndm { 11 } else { 10 }
        );
    }
    let error = "dpm".parse::<SamplerKind>().unwrap_err().to_string();
    assert!(
        error.contains("ddim, ddpm, euler, euler-a, dpm++2m, pndm"),
        "{error}"
    );
    let unknown = json!({"_class_name": "UniPCMultistepScheduler"});
    assert!(
        refusal(unknown.clone(), None, 10).contains("class \"UniPCMultistepScheduler\" is not supported")
    );
    assert_eq!(refusal(unknown, Some(SamplerKind::Ddim), 10), "accepted");
}

#[test]
fn what_would_change_the_result_is_refused_by_the_samplers_that_heed_it() {
    use SamplerKind::{Ddim, DpmSolverPp2M, Euler, EulerAncestral, Pndm};
    for (changes, refusing, accepting, named) in [
        (json!({"thresholding": true}), Ddim, Euler, "thresholding"),
        (json!({"solver_type": "heun"}), DpmSolverPp2M, Ddim, "solver_type"),
        (
            json!({"algorithm_type": "sde-dpmsolver++"}),
            DpmSolverPp2M,
            Ddim,
            "algorithm_type",
        ),
        (json!({"solver_order": 3}), DpmSolverPp2M, Pndm, "solver_order"),
        (
            json!({"use_exponential_sigmas": true}),
            Euler,
            EulerAncestral,
            "use_exponential_sigmas",
        ),
        (
            json!({"use_beta_sigmas": true}),
            DpmSolverPp2M,
            Ddim,
            "use_beta_sigmas",
        ),
        (
            json!({"variance_type": "learned_range"}),
            SamplerKind::Ddpm,
            Euler,
            "variance_type",
        ),
        (json!({"skip_prk_steps": false}), Pndm, Ddim, "skip_prk_steps"),
        (
            json!({"timestep_type": "continuous"}),
            Euler,
            Ddim,
            "timestep_type",
        ),
    ] {
        let error = refusal(changes.clone(), Some(refusing), 10);
        assert!(
            error.contains(named) && error.contains(refusing.name()),
            "{error}"
        );
        assert_eq!(refusal(changes, Some(accepting), 10), "accepted");
    }
}

#[test]
fn steps_and_schedules_that_do_not_fit_are_refused() {
    use SamplerKind::{Ddim, Pndm};
    assert!(refusal(json!({}), None, 0).contains("from 1 to 1000"));
    assert!(refusal(json!({}), None, 1001).contains("from 1 to 1000"));
    assert!(refusal(json!({}), None, 1000).contains("steps_offset leads to timestep 1000"));
    assert!(refusal(json!({}), Some(SamplerKind::DpmSolverPp2M), 1000) == "accepted");
    let zero = json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"});
    assert!(refusal(zero.clone(), Some(Ddim), 10).contains("predicts noise says nothing"));
    assert!(refusal(zero, Some(Pndm), 10).contains("pndm cannot start"));
    let (config, schedule) = config(json!({}));
    let error = sampler(&config.with_eta(0.5), &schedule, 10)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("pndm has no eta"), "{error}");
}

#[test]
fn trailing_timesteps_are_as_many_as_asked_for() {
    let (config, schedule) = config(json!({"timestep_spacing": "trailing"}));
    // numpy's arange has 62 counts up to 1,000 with one timestep too many, at −1; 61 is the first.
    for steps in [1, 3, 61, 103, 487, 1000] {
        let sampler = sampler(&config.clone().with_kind(SamplerKind::Ddim), &schedule, steps).unwrap();
        assert_eq!(sampler.timesteps().len(), steps);
        assert_eq!(sampler.timesteps()[0], 999.0);
    }
}

#[test]
fn defaults_are_those_of_the_class_in_use() {
    // As diffusers writes them: infinity has no word in JSON, and keys that were left at their default are listed.
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "timestep_spacing": "trailing",
        "lambda_min_clipped": -Infinity, "_use_default_values": ["timestep_spacing"]}"#;
    let schedule = NoiseSchedule::from_json(text, "test").unwrap();
    let config = SamplerConfig::from_json(text, "test").unwrap();
    let first = |config: &SamplerConfig| sampler(config, &schedule, 10).unwrap().timesteps()[0];
    assert_eq!(first(&config), 999.0);
    assert_eq!(first(&config.with_kind(SamplerKind::Ddim)), 900.0);
}

#[test]
fn a_denoiser_that_breaks_is_named() {
    let (config, schedule) = config(json!({}));
    let mut sampler = sampler(&config, &schedule, 4).unwrap();
    let error = sampler
        .step(0, &[1.0, f32::NAN], &mut [0.0, 0.0], None)
        .unwrap_err();
    assert!(
        matches!(&error, Error::BadInput { what, .. } if what.contains("timestep 751")),
        "{error}"
    );
}
