//! What `scheduler_config.json` says about sampling, and which of it a kind of sampler heeds.
//!
//! The file is read like diffusers' `from_config` does: keys that a class does not know are ignored, keys that are
//! absent, `null` or listed in `_use_default_values` have the default *of the class in use*. So the kind can be
//! replaced and the shared keys stay. What would change the result and is not supported is refused.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::SamplerKind;
use crate::diffusion::schedule::json_of_scheduler;
use crate::{Error, Result};

/// How timesteps are spread over the training timesteps (arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Spacing {
    /// Multiples of a whole step, from `steps_offset` up; the noisiest timestep is not reached.
    Leading,
    /// From the noisiest timestep down by a whole or broken step.
    Trailing,
    /// From the noisiest timestep to 0, both included.
    Linspace,
}

/// Where the noise levels of Euler's method and DPM-Solver++ end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinalSigma {
    /// No noise.
    Zero,
    /// The noise of training timestep 0.
    SigmaMin,
}

/// The variance of the noise that DDPM adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variance {
    /// The posterior's variance, which is right if there is one image only; `fixed_small` and `fixed_small_log`.
    Small,
    /// β of the step, right if images are unit noise; `fixed_large`.
    Large,
}

/// Sampling settings of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    place: String,
    class_name: String,
    chosen: Option<SamplerKind>,
    eta: f64,
    options: Options,
}

/// The keys that change sampling; absent ones have the class's default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
struct Options {
    beta_schedule: Option<String>,
    timestep_spacing: Option<Spacing>,
    steps_offset: Option<usize>,
    set_alpha_to_one: Option<bool>,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
    thresholding: Option<bool>,
    variance_type: Option<String>,
    skip_prk_steps: Option<bool>,
    interpolation_type: Option<String>,
    timestep_type: Option<String>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_lu_lambdas: Option<bool>,
    use_flow_sigmas: Option<bool>,
    use_dynamic_shifting: Option<bool>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    final_sigmas_type: Option<FinalSigma>,
    algorithm_type: Option<String>,
    solver_type: Option<String>,
    solver_order: Option<usize>,
    lower_order_final: Option<bool>,
    euler_at_final: Option<bool>,
    lambda_min_clipped: Option<f64>,
}

impl SamplerConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON, or a value has the wrong type. A class or an option that is not
    /// supported shows when a sampler is made: it does not matter to another kind.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Reads the text of a `scheduler_config.json`; errors name it as `place`.
    ///
    /// # Errors
    /// As [`SamplerConfig::from_file`].
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let unreadable = |error: serde_json::Error| {
            Error::bad(
                place,
                error.to_string(),
                "Export the scheduler again with diffusers' save_pretrained.",
            )
        };
        let mut keys: Map<String, Value> =
            serde_json::from_str(&json_of_scheduler(text)).map_err(unreadable)?;
        if let Some(Value::Array(defaults)) = keys.remove("_use_default_values") {
            for key in defaults.iter().filter_map(Value::as_str) {
                keys.remove(key);
            }
        }
        let class_name = match keys.get("_class_name") {
            Some(Value::String(name)) => name.clone(),
            _ => String::new(),
        };
        Ok(Self {
            place: place.to_string(),
            class_name,
            chosen: None,
            eta: 0.0,
            options: serde_json::from_value(Value::Object(keys)).map_err(unreadable)?,
        })
    }

    /// The same settings for another kind of sampler.
    pub fn with_kind(mut self, kind: SamplerKind) -> Self {
        self.chosen = Some(kind);
        self
    }

    /// Sets DDIM's share of fresh noise: 0 is deterministic, 1 is as much as DDPM adds.
    pub fn with_eta(mut self, eta: f64) -> Self {
        self.eta = eta;
        self
    }

    /// The kind in use: the chosen one, or that of the file's class.
    ///
    /// # Errors
    /// None was chosen and the file's class is not known.
    pub fn kind(&self) -> Result<SamplerKind> {
        let of_class = || {
            SamplerKind::ALL
                .into_iter()
                .find(|kind| kind.class_name() == self.class_name)
        };
        self.chosen.or_else(of_class).ok_or_else(|| {
            self.bad(
                format!("the scheduler class {:?} is not supported", self.class_name),
                format!("Choose a sampler: {}.", SamplerKind::names()),
            )
        })
    }

    /// DDIM's share of fresh noise.
    pub fn eta(&self) -> f64 {
        self.eta
    }

    /// Refuses what `kind` would heed and this program does not know.
    pub(super) fn check(&self, kind: SamplerKind) -> Result<()> {
        use SamplerKind::{Ddim, Ddpm, DpmSolverPp2M, Euler, Pndm};
        let o = &self.options;
        let is = |option: Option<bool>| option == Some(true);
        let other = |option: &Option<String>, known: &[&str]| {
            option.as_deref().is_some_and(|value| !known.contains(&value))
        };
        // The chosen kind replaces Runge-Kutta warm-up too: only a PNDM pipeline's own file asks for it.
        let warm_up = self.class_name == Pndm.class_name() && !is(o.skip_prk_steps);
        let cosine = o.beta_schedule.as_deref() == Some("squaredcos_cap_v2");
        let unsupported: [(&str, &[SamplerKind], bool); 15] = [
            (
                "use_karras_sigmas with squaredcos_cap_v2",
                &[DpmSolverPp2M],
                self.karras() && cosine,
            ),
            ("thresholding", &[Ddim, Ddpm, DpmSolverPp2M], is(o.thresholding)),
            (
                "variance_type",
                &[Ddpm],
                other(
                    &o.variance_type,
                    &["fixed_small", "fixed_small_log", "fixed_large"],
                ),
            ),
            (
                "variance_type",
                &[DpmSolverPp2M],
                o.variance_type
                    .as_deref()
                    .is_some_and(|v| v.starts_with("learned")),
            ),
            ("skip_prk_steps: false", &[Pndm], warm_up),
            (
                "interpolation_type",
                &[Euler],
                other(&o.interpolation_type, &["linear"]),
            ),
            ("timestep_type", &[Euler], other(&o.timestep_type, &["discrete"])),
            (
                "sigma_min or sigma_max",
                &[Euler],
                o.sigma_min.or(o.sigma_max).is_some(),
            ),
            (
                "use_exponential_sigmas",
                &[Euler, DpmSolverPp2M],
                is(o.use_exponential_sigmas),
            ),
            ("use_beta_sigmas", &[Euler, DpmSolverPp2M], is(o.use_beta_sigmas)),
            ("use_lu_lambdas", &[DpmSolverPp2M], is(o.use_lu_lambdas)),
            (
                "use_flow_sigmas",
                &[DpmSolverPp2M],
                is(o.use_flow_sigmas) || is(o.use_dynamic_shifting),
            ),
            (
                "algorithm_type",
                &[DpmSolverPp2M],
                other(&o.algorithm_type, &["dpmsolver++", "deis"]),
            ),
            (
                "solver_type",
                &[DpmSolverPp2M],
                other(&o.solver_type, &["midpoint", "logrho", "bh1", "bh2"]),
            ),
            (
                "solver_order",
                &[DpmSolverPp2M],
                o.solver_order.is_some_and(|order| order != 2),
            ),
        ];
        if let Some((key, ..)) = unsupported
            .iter()
            .find(|(_, kinds, present)| *present && kinds.contains(&kind))
        {
            return Err(self.bad(
                format!("sets {key} in a way that the sampler {kind} does not support"),
                format!(
                    "Choose a sampler that ignores it ({}), or edit a copy of the file.",
                    SamplerKind::names()
                ),
            ));
        }
        if self.eta != 0.0 && kind != Ddim {
            return Err(Error::bad(
                "eta",
                format!("is {}, and the sampler {kind} has no eta", self.eta),
                "Leave it out, or sample with ddim.",
            ));
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::bad(
                "eta",
                format!("is {}", self.eta),
                "Give a number from 0 to 1.",
            ));
        }
        Ok(())
    }

    /// An error at the file.
    pub(super) fn bad(&self, what: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::bad(&self.place, what, remedy)
    }

    /// How timesteps are spread, by the default of `kind`'s class if the file does not say.
    pub(super) fn spacing(&self, kind: SamplerKind) -> Spacing {
        use SamplerKind::{Ddim, Ddpm, DpmSolverPp2M, Euler, EulerAncestral, Pndm};
        self.options.timestep_spacing.unwrap_or(match kind {
            Ddim | Ddpm | Pndm => Spacing::Leading,
            Euler | EulerAncestral | DpmSolverPp2M => Spacing::Linspace,
        })
    }

    /// What is added to the timesteps of leading spacing.
    pub(super) fn steps_offset(&self) -> usize {
        self.options.steps_offset.unwrap_or(0)
    }

    /// Whether the step after the last ends without noise (`ᾱ = 1`), else at `ᾱ_0`.
    pub(super) fn set_alpha_to_one(&self, kind: SamplerKind) -> bool {
        self.options.set_alpha_to_one.unwrap_or(kind == SamplerKind::Ddim)
    }

    /// Bound of the estimated clean latents' absolute values, in DDIM and DDPM.
    pub(super) fn clip_range(&self) -> f64 {
        if self.options.clip_sample.unwrap_or(true) {
            self.options.clip_sample_range.unwrap_or(1.0)
        } else {
            f64::INFINITY
        }
    }

    pub(super) fn variance(&self) -> Variance {
        match self.options.variance_type.as_deref() {
            Some("fixed_large") => Variance::Large,
            _ => Variance::Small,
        }
    }

    pub(super) fn karras(&self) -> bool {
        self.options.use_karras_sigmas == Some(true)
    }

    pub(super) fn final_sigma(&self) -> FinalSigma {
        self.options.final_sigmas_type.unwrap_or(FinalSigma::Zero)
    }

    pub(super) fn lower_order_final(&self) -> bool {
        self.options.lower_order_final.unwrap_or(true)
    }

    pub(super) fn euler_at_final(&self) -> bool {
        self.options.euler_at_final == Some(true)
    }

    pub(super) fn lambda_min_clipped(&self) -> f64 {
        self.options.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY)
    }
}
