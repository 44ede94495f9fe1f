//! `ortdpo doctor`: what this machine can do, and whether a model folder is complete.

use std::path::{Path, PathBuf};

use clap::Args;
use ortdpo::model_folder::{Component, ComponentReport, ModelFolder};
use ortdpo::runtime::{
    self, ExecutionProvider, OptLevel, RuntimeOptions, Session, SessionOptions, Usability,
};
use ortdpo::{Error, Result};
use serde::Serialize;

use super::output::{self, Format};

/// Say what this machine can do, and whether a pipeline folder is complete
///
/// Tries every execution provider on a small graph and loads every network of the folder. Ends with exit code 2
/// if ONNX Runtime is missing, the provider asked for cannot be used, or the folder lacks a part.
#[derive(Args)]
pub struct Doctor {
    /// A pipeline folder, as `optimum-cli export onnx` writes it
    model_dir: Option<PathBuf>,
    /// An execution provider that has to be usable; networks are loaded on it
    #[arg(long, value_name = "NAME")]
    ep: Option<ExecutionProvider>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Said of a provider that the library was built without.
const NOT_BUILT_IN: &str = "not in this library";

#[derive(Serialize)]
struct Report {
    ortdpo: &'static str,
    onnxruntime: Option<Runtime>,
    providers: Vec<Provider>,
    threads: usize,
    memory: Option<Memory>,
    model: Option<Model>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Runtime {
    version: String,
    library: PathBuf,
}

#[derive(Serialize)]
struct Provider {
    name: &'static str,
    usable: bool,
    why_not: Option<String>,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
}

#[derive(Serialize)]
struct Model {
    folder: PathBuf,
    pipeline: String,
    complete: bool,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    needed_for: &'static str,
    bytes: u64,
    problem: Option<String>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Doctor {
    /// Prints the report.
    ///
    /// # Errors
    /// The first of the problems that the report lists.
    pub fn run(&self) -> Result<()> {
        let (report, problem) = self.examine();
        match self.format {
            Format::Text => report.print()?,
            Format::Json => output::json(&report)?,
        }
        problem.map_or(Ok(()), Err)
    }

    fn examine(&self) -> (Report, Option<Error>) {
        let mut problems = Vec::new();
        let onnxruntime = match runtime::init(&RuntimeOptions::default()) {
            Ok(info) => Some(Runtime {
                version: info.version().into(),
                library: info.path().into(),
            }),
            Err(error) => {
                problems.push(error);
                None
            }
        };
        let usable_ep = self.ep.unwrap_or_default();
        let mut loader = None;
        if onnxruntime.is_some() {
            match runtime::require(usable_ep) {
                Ok(()) => loader = Some(loading_only(usable_ep)),
                Err(error) => problems.push(error),
            }
        }
        let mut model = None;
        if let Some(folder) = &self.model_dir {
            match examine_model(folder, loader.as_ref()) {
                Ok(examined) => {
                    problems.extend(examined.incomplete());
                    model = Some(examined);
                }
                Err(error) => problems.push(error),
            }
        }
        let report = Report {
            ortdpo: env!("CARGO_PKG_VERSION"),
            providers: if onnxruntime.is_some() {
                providers()
            } else {
                vec![]
            },
            onnxruntime,
            threads: SessionOptions::default().thread_count(),
            memory: memory(),
            model,
            problems: problems.iter().map(ToString::to_string).collect(),
        };
        (report, problems.into_iter().next())
    }
}

/// Enough to see that a network loads; nothing that takes time or memory.
fn loading_only(ep: ExecutionProvider) -> SessionOptions {
    SessionOptions {
        ep,
        threads: 1,
        optimization: OptLevel::None,
        prepack: false,
        ..Default::default()
    }
}

fn providers() -> Vec<Provider> {
    ExecutionProvider::ALL
        .into_iter()
        .map(|ep| {
            let why_not = match runtime::usability(ep) {
                Ok(Usability::Usable) => None,
                Ok(Usability::NotBuiltIn) => Some(NOT_BUILT_IN.into()),
                Ok(Usability::Failing(why)) => Some(why),
                Err(error) => Some(error.to_string()),
            };
            Provider {
                name: ep.name(),
                usable: why_not.is_none(),
                why_not,
            }
        })
        .collect()
}

fn examine_model(folder: &Path, loader: Option<&SessionOptions>) -> Result<Model> {
    let model = ModelFolder::open(folder)?;
    let parts: Vec<_> = model
        .check()
        .into_iter()
        .map(|report| examine_part(&model, report, loader))
        .collect();
    Ok(Model {
        folder: folder.into(),
        pipeline: model.class_name().into(),
        complete: parts.iter().all(|part| part.problem.is_none()),
        parts,
    })
}

fn examine_part(model: &ModelFolder, report: ComponentReport, loader: Option<&SessionOptions>) -> Part {
    let mut part = Part {
        name: report.component.folder(),
        needed_for: needed_for(report.component),
        bytes: report.bytes,
        problem: report.problem.map(|p| p.to_string()),
        inputs: vec![],
        outputs: vec![],
    };
    if let (None, Some(options), true) = (&part.problem, loader, report.component.is_network()) {
        match model
            .check_files(&[report.component])
            .and_then(|()| model.network(report.component))
            .and_then(|path| Session::from_file(&path, options))
        {
            Ok(session) => {
                part.inputs = session.inputs().iter().map(ToString::to_string).collect();
                part.outputs = session.outputs().iter().map(ToString::to_string).collect();
            }
            Err(error) => part.problem = Some(error.to_string()),
        }
    }
    part
}

fn needed_for(component: Component) -> &'static str {
    match component {
        Component::Unet | Component::Transformer => "everything: it is what is trained",
        Component::TextEncoder | Component::TextEncoder2 | Component::TextEncoder3 => "captions",
        Component::Tokenizer | Component::Tokenizer2 | Component::Tokenizer3 => "captions",
        Component::VaeEncoder => "training on images",
        Component::VaeDecoder => "drawing images",
        Component::Scheduler => "the noise schedule",
    }
}

impl Model {
    fn incomplete(&self) -> Option<Error> {
        let bad: Vec<_> = self
            .parts
            .iter()
            .filter(|p| p.problem.is_some())
            .map(|p| p.name)
            .collect();
        (!self.complete).then(|| {
            Error::bad(
                self.folder.display().to_string(),
                format!("is not a complete pipeline: {} cannot be used", bad.join(", ")),
                "The report says what is wrong with each.",
            )
        })
    }

    fn print(&self) -> Result<()> {
        output::line(format!("\n{}: {}", self.folder.display(), self.pipeline))?;
        let rows = self.parts.iter().map(|part| {
            let state = if part.problem.is_none() { "ok" } else { "PROBLEM" };
            [
                part.name.into(),
                state.into(),
                output::bytes(part.bytes),
                part.needed_for.into(),
            ]
        });
        output::line(output::table(["part", "state", "size", "needed for"], rows))?;
        for part in &self.parts {
            if let Some(problem) = &part.problem {
                output::line(format!("\n{}: {problem}", part.name))?;
            }
        }
        let networks = self.parts.iter().filter(|part| !part.inputs.is_empty());
        let rows: Vec<_> = networks
            .map(|p| [p.name.into(), p.inputs.join("\n"), p.outputs.join("\n")])
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        output::line(format!(
            "\n{}",
            output::table(["network", "inputs", "outputs"], rows)
        ))
    }
}

impl Report {
    fn print(&self) -> Result<()> {
        output::line(format!("ortdpo {}", self.ortdpo))?;
        match &self.onnxruntime {
            Some(found) => output::line(format!(
                "ONNX Runtime {}: {}",
                found.version,
                found.library.display()
            ))?,
            None => output::line("ONNX Runtime: not found")?,
        }
        output::line(format!("threads: {}", self.threads))?;
        if let Some(memory) = &self.memory {
            let (total, free) = (
                output::bytes(memory.total_bytes),
                output::bytes(memory.available_bytes),
            );
            output::line(format!("memory: {total}, {free} available"))?;
        }
        self.print_providers()?;
        self.model.as_ref().map_or(Ok(()), Model::print)
    }

    fn print_providers(&self) -> Result<()> {
        if self.providers.is_empty() {
            return Ok(());
        }
        let (absent, tried): (Vec<_>, Vec<_>) = self
            .providers
            .iter()
            .partition(|p| p.why_not.as_deref() == Some(NOT_BUILT_IN));
        let rows = tried.iter().map(|p| {
            [
                p.name.into(),
                p.why_not.clone().unwrap_or_else(|| "usable".into()),
            ]
        });
        output::line(format!("\n{}", output::table(["provider", "state"], rows)))?;
        let absent: Vec<_> = absent.iter().map(|p| p.name).collect();
        output::line(format!("{NOT_BUILT_IN}: {}", absent.join(", ")))
    }
}

/// Memory of the machine, or of the control group this process is confined to, where the system tells.
fn memory() -> Option<Memory> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    };
    let (total, available) = (field("MemTotal:")?, field("MemAvailable:")?);
    let read = |name: &str| {
        std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let limit: u64 = read("memory.max").unwrap_or(u64::MAX);
    let left = limit.saturating_sub(read("memory.current").unwrap_or(0));
    Some(Memory {
        total_bytes: total.min(limit),
        available_bytes: available.min(left),
    })
}
