//! Where networks run, and where what they said of pictures is kept: options that several commands share.

use std::path::{Path, PathBuf};

use clap::Args;
use ortdpo::runtime::{ExecutionProvider, SessionOptions};

/// Where networks run.
#[derive(Args)]
pub struct Compute {
    /// Where to compute
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    ep: ExecutionProvider,
    /// Threads; 0 for all
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

impl Compute {
    /// For sessions.
    pub fn session(&self) -> SessionOptions {
        SessionOptions {
            ep: self.ep,
            threads: self.threads,
            ..SessionOptions::default()
        }
    }
}

/// Where features are kept.
#[derive(Args)]
pub struct FeatureCache {
    /// Folder in which what networks said of pictures is kept, by the pictures' content
    #[arg(long, value_name = "DIR", default_value = ".cache/features")]
    cache: PathBuf,
    /// Keep nothing
    #[arg(long)]
    no_cache: bool,
}

impl FeatureCache {
    /// The folder, unless nothing is to be kept.
    pub fn folder(&self) -> Option<&Path> {
        (!self.no_cache).then_some(self.cache.as_path())
    }
}
