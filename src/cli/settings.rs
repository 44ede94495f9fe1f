//! What the commands on training runs set over the configuration file.

use std::path::PathBuf;

use clap::Args;
use ortdpo::config::Sources;
use ortdpo::config::bytes::ByteSize;
use ortdpo::runtime::ExecutionProvider;

/// Options over the file.
#[derive(Args)]
pub struct Settings {
    /// A combination of reference and timestep rules, instead of the file's: diffusion-dpo, stable-ema,
    /// stable-ema-pull or rethinking-dpo
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Set one key, over the file; the value is YAML. Can be given many times: --set optimizer.lr=1e-4
    #[arg(long, value_name = "PATH.TO.KEY=VALUE")]
    set: Vec<String>,
    /// Where to compute, instead of the file's runtime.ep
    #[arg(long, value_name = "NAME")]
    ep: Option<ExecutionProvider>,
    /// Memory that the process may take, such as 12GiB, instead of the file's runtime.memory_budget: the fastest level of
    /// recomputation within it is taken
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<ByteSize>,
    /// Compute the VAE in single precision, also where it was exported in half precision, which may overflow
    #[arg(long)]
    vae_fp32: bool,
}

impl Settings {
    /// With `file` below them. Of an option and a `--set` of the same key the option holds.
    pub fn over(self, file: Option<PathBuf>) -> Sources {
        let ep = self.ep.map(|ep| format!("runtime.ep={ep}"));
        let budget = self
            .memory_budget
            .map(|size| format!("runtime.memory_budget={size}"));
        let vae = self.vae_fp32.then(|| "runtime.vae_fp32=true".to_owned());
        Sources {
            file,
            preset: self.preset,
            set: self.set.into_iter().chain(ep).chain(budget).chain(vae).collect(),
        }
    }
}
