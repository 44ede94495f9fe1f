//! Normalisation, published constants and checkpoint state of the whole rule.

use super::*;
use crate::config::timestep::{SamplingConfig, VarianceConfig};
use crate::rng::{Purpose, Streams};

const SCALED_LINEAR: &str = r#"{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000}"#;
const ZERO_TERMINAL_V: &str = r#"{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}"#;

fn schedule(text: &str) -> NoiseSchedule {
    NoiseSchedule::from_json(text, "test").unwrap()
}

fn variance() -> WeightingConfig {
    WeightingConfig::Variance(VarianceConfig {
        warmup: 8,
        ..VarianceConfig::default()
    })
}

fn samplings(bins: usize) -> Vec<SamplingConfig> {
    let table = (0..bins).map(|bin| (bin % 3) as f64).collect();
    vec![
        SamplingConfig::Uniform {},
        SamplingConfig::Geometric { gamma: 0.9 },
        SamplingConfig::Range { min: 30, max: 749 },
        SamplingConfig::Table { weights: table },
    ]
}

fn weightings(bins: usize) -> Vec<WeightingConfig> {
    let table = (0..bins).map(|bin| 1.0 + bin as f64).collect();
    vec![
        WeightingConfig::None {},
        variance(),
        WeightingConfig::MinSnr { gamma: 5.0 },
        WeightingConfig::Table { weights: table },
    ]
}

/// Trains the variance weighting on rewards that vary more at noisy timesteps.
fn observe_steps(rule: &mut TimestepRule, steps: std::ops::Range<u64>) {
    for step in steps {
        let mut stream = Streams::new(1).named(Purpose::Timestep, &step.to_string());
        let observations: Vec<_> = (0..64)
            .map(|_| {
                let timestep = rule.sample(&mut stream);
                let reward = (stream.unit() - 0.4) * (0.1 + f64::from(timestep.0) / 250.0);
                Observation {
                    timestep,
                    weight: 1.0,
                    reward,
                }
            })
            .collect();
        rule.observe(&observations);
    }
}

#[test]
fn every_weighting_has_mean_one_under_every_sampling() {
    for text in [SCALED_LINEAR, ZERO_TERMINAL_V] {
        let schedule = schedule(text);
        for bins in [1, 7, 10, 50] {
            for sampling in samplings(bins)
                .into_iter()
                .filter(|s| bins > 1 || !matches!(s, SamplingConfig::Table { .. }))
            {
                for weighting in weightings(bins) {
                    let config = TimestepConfig {
                        bins,
                        sampling: sampling.clone(),
                        weighting: weighting.clone(),
                        ..TimestepConfig::default()
                    };
                    let mut rule = TimestepRule::new(&config, &schedule).unwrap();
                    observe_steps(&mut rule, 0..60);
                    let report = rule.bins_report(None);
                    let by_bin: f64 = report.iter().map(|bin| bin.p * bin.w).sum();
                    assert!(
                        (by_bin - 1.0).abs() < 1e-12,
                        "{sampling:?} {weighting:?}: {by_bin}"
                    );
                    let by_timestep: f64 = (0..1000)
                        .map(Timestep)
                        .map(|t| rule.sampling().probability(t) * rule.loss_weight(t))
                        .sum();
                    assert!(
                        (by_timestep - 1.0).abs() < 1e-12,
                        "{sampling:?} {weighting:?}: {by_timestep}"
                    );
                }
            }
        }
    }
}

#[test]
fn variance_weights_shrink_the_noisy_bins() {
    let config = TimestepConfig {
        weighting: variance(),
        ..TimestepConfig::default()
    };
    let mut rule = TimestepRule::new(&config, &schedule(SCALED_LINEAR)).unwrap();
    assert!((0..1000).all(|t| rule.loss_weight(Timestep(t)) == 1.0));
    observe_steps(&mut rule, 0..60);
    let report = rule.bins_report(None);
    assert!(
        report
            .windows(2)
            .all(|pair| pair[0].v > pair[1].v && pair[0].w < pair[1].w),
        "{report:?}"
    );
}

/// λ(t) and 1/√SNR of the SD1.5 schedule, from arXiv 2505.18736's definition.
#[test]
fn the_reward_scale_has_its_tabulated_values() {
    let config = TimestepConfig {
        reward_scale: RewardScaleConfig::InverseSqrtSnr,
        ..TimestepConfig::default()
    };
    let schedule = schedule(SCALED_LINEAR);
    let rule = TimestepRule::new(&config, &schedule).unwrap();
    for (t, expected) in [
        (0, 1.0),
        (250, 1.0457),
        (500, 1.1090),
        (600, 1.1546),
        (700, 1.2266),
        (750, 1.2790),
        (800, 1.3484),
        (900, 1.5703),
        (999, 2.0),
    ] {
        let scale = rule.reward_scale(Timestep(t));
        assert!((scale - expected).abs() < 5.1e-5, "t {t}: {scale}");
    }
    let mean = (0..1000).map(|t| rule.reward_scale(Timestep(t))).sum::<f64>() / 1000.0;
    assert!((mean - 1.205).abs() < 5.1e-4, "{mean}");
    let noise = |t| schedule.snr(Timestep(t)).sqrt().recip();
    assert!((noise(0) - 0.0292).abs() < 5.1e-5 && (noise(999) - 14.61).abs() < 5.1e-3);
}

#[test]
fn a_zero_terminal_snr_keeps_the_reward_scale_finite() {
    let config = TimestepConfig {
        reward_scale: RewardScaleConfig::InverseSqrtSnr,
        ..TimestepConfig::default()
    };
    let rule = TimestepRule::new(&config, &schedule(ZERO_TERMINAL_V)).unwrap();
    assert_eq!(rule.reward_scale(Timestep(999)), 2.0);
    assert!((0..1000).all(|t| (1.0..=2.0).contains(&rule.reward_scale(Timestep(t)))));
}

/// Ratios of Min-SNR weights at known SNR, by the formula of arXiv 2303.09556.
#[test]
fn min_snr_follows_its_formula_for_both_predictions() {
    for text in [SCALED_LINEAR, ZERO_TERMINAL_V] {
        let schedule = schedule(text);
        let config = TimestepConfig {
            weighting: WeightingConfig::MinSnr { gamma: 5.0 },
            ..TimestepConfig::default()
        };
        let rule = TimestepRule::new(&config, &schedule).unwrap();
        let expected = |t: u32| {
            let alpha = schedule.alpha_cumprod(Timestep(t));
            let snr = alpha / (1.0 - alpha);
            match schedule.prediction_type() {
                PredictionType::Epsilon => snr.min(5.0) / snr,
                PredictionType::VPrediction => snr.min(5.0) / (snr + 1.0),
            }
        };
        let scale = rule.loss_weight(Timestep(500)) / expected(500);
        for t in [0, 10, 100, 300, 700, 998] {
            assert!(
                (rule.loss_weight(Timestep(t)) / (scale * expected(t)) - 1.0).abs() < 1e-12,
                "t {t}"
            );
        }
    }
}

#[test]
fn without_replace_the_weight_joins_the_plain_loss() {
    let table = WeightingConfig::Table {
        weights: vec![0.5, 1.5],
    };
    let config = TimestepConfig {
        bins: 2,
        weighting: table,
        replace: false,
        lambda: 0.4,
        ..TimestepConfig::default()
    };
    let rule = TimestepRule::new(&config, &schedule(SCALED_LINEAR)).unwrap();
    assert!((rule.loss_weight(Timestep(999)) - 1.2).abs() < 1e-12);
    assert!((rule.loss_weight(Timestep(0)) - 1.6).abs() < 1e-12);
}

#[test]
fn a_checkpoint_goes_on_bit_for_bit() {
    let config = TimestepConfig {
        weighting: variance(),
        ..TimestepConfig::default()
    };
    let mut straight = TimestepRule::new(&config, &schedule(SCALED_LINEAR)).unwrap();
    observe_steps(&mut straight, 0..23);
    let saved = serde_json::to_string(&straight.state()).unwrap();
    let mut resumed = TimestepRule::new(&config, &schedule(SCALED_LINEAR)).unwrap();
    resumed.restore(serde_json::from_str(&saved).unwrap()).unwrap();
    observe_steps(&mut straight, 23..60);
    observe_steps(&mut resumed, 23..60);
    let bits = |rule: &TimestepRule| {
        (0..1000)
            .map(|t| rule.loss_weight(Timestep(t)).to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&straight), bits(&resumed));
    assert_eq!(straight.state(), resumed.state());
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused() {
    let rule = |bins, weighting| {
        let config = TimestepConfig {
            bins,
            weighting,
            ..TimestepConfig::default()
        };
        TimestepRule::new(&config, &schedule(SCALED_LINEAR)).unwrap()
    };
    let ten = rule(10, variance());
    assert!(rule(20, variance()).restore(ten.state()).is_err());
    assert!(rule(10, WeightingConfig::None {}).restore(ten.state()).is_err());
    assert!(
        rule(10, variance())
            .restore(TimestepState { variance: None })
            .is_err()
    );
}

#[test]
fn what_the_model_cannot_do_is_refused() {
    let schedule = schedule(SCALED_LINEAR);
    let outside = SamplingConfig::Range { min: 0, max: 1000 };
    let unsampled = WeightingConfig::Table {
        weights: vec![1.0, 0.0],
    };
    let clean_only = SamplingConfig::Table {
        weights: vec![0.0, 1.0],
    };
    for (config, key) in [
        (
            TimestepConfig {
                bins: 1001,
                ..TimestepConfig::default()
            },
            "timestep.bins: ",
        ),
        (
            TimestepConfig {
                sampling: outside,
                ..TimestepConfig::default()
            },
            "timestep.sampling.max: ",
        ),
        (
            TimestepConfig {
                bins: 2,
                sampling: clean_only,
                weighting: unsampled,
                ..TimestepConfig::default()
            },
            "timestep.weighting: ",
        ),
    ] {
        let error = TimestepRule::new(&config, &schedule).unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
}

#[test]
fn held_out_margins_appear_in_their_bins() {
    let rule = TimestepRule::new(&TimestepConfig::default(), &schedule(SCALED_LINEAR)).unwrap();
    let mut margins = BinMargins::new(rule.bins());
    margins.add(Timestep(950), 0.5);
    margins.add(Timestep(901), -0.25);
    let report = rule.bins_report(Some(&margins));
    assert_eq!((report[0].margin, report[0].acc), (Some(0.125), Some(0.5)));
    assert_eq!((report[1].margin, report[1].acc), (None, None));
    let line = serde_json::to_string(&report[1]).unwrap();
    assert_eq!(line, r#"{"p":0.1,"w":1.0,"v":null,"margin":null,"acc":null}"#);
}
