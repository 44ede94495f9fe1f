//! `ortdpo train`: which configuration, where the run goes, and what is printed instead of training.

use std::path::PathBuf;

use clap::Args;
use ortdpo::Result;
use ortdpo::config::{self, Sources, TrainPlan};

use super::output;

/// Train a model on preference pairs
#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    configuration: Configuration,
    #[command(flatten)]
    print: Print,
}

#[derive(Args)]
struct Configuration {
    /// The run's configuration in YAML; examples/ holds whole files
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A combination of reference and timestep rules, instead of the file's: diffusion-dpo, stable-ema,
    /// stable-ema-pull or rethinking-dpo
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Set one key, over the file; the value is YAML. Can be given many times: --set optimizer.lr=1e-4
    #[arg(long, value_name = "PATH.TO.KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Print {
    /// Print the configuration with every default, preset and option resolved, and end
    #[arg(long)]
    print_config: bool,
    /// Print the JSON Schema of configuration files, for editors, and end
    #[arg(long)]
    print_schema: bool,
}

impl Train {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        if self.print.print_schema {
            return output::line(config::json_schema().trim_end());
        }
        let plan = TrainPlan::resolve(&self.configuration.into_sources())?;
        output::line(plan.to_yaml().trim_end())
    }
}

impl Configuration {
    fn into_sources(self) -> Sources {
        Sources {
            file: self.config,
            preset: self.preset,
            set: self.set,
        }
    }
}
