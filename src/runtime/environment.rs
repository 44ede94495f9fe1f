//! The one ONNX Runtime of this process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::AsPointer;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use super::library::{Library, Search};
use crate::{Error, Result};

/// How to find ONNX Runtime.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// The shared library, or a folder that holds it, in place of the usual search.
    pub ort_lib: Option<PathBuf>,
}

/// The ONNX Runtime in use.
#[derive(Debug)]
pub struct RuntimeInfo {
    environment: Environment,
    library: Library,
}

impl RuntimeInfo {
    /// The shared library's file.
    pub fn path(&self) -> &Path {
        &self.library.path
    }

    /// Its version, such as `1.31.1`.
    pub fn version(&self) -> &str {
        &self.library.version
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

static RUNTIME: OnceLock<RuntimeInfo> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// Loads ONNX Runtime, once per process: later calls, whatever their options, return what the first one loaded.
///
/// # Errors
/// [`Error::BadInput`] naming every place tried when there is no library, or only ones that are too old.
pub fn init(options: &RuntimeOptions) -> Result<&'static RuntimeInfo> {
    // A second thread waits here instead of loading a second library.
    let _guard = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(info) = RUNTIME.get() {
        return Ok(info);
    }
    let library = Search::new(options.ort_lib.clone()).find()?;
    let failed = |why: String| {
        Error::bad(
            library.path.display().to_string(),
            format!("is ONNX Runtime {} but cannot be started: {why}", library.version),
            "Run `scripts/setup` for a library that is known to work.",
        )
    };
    let environment = ort::init_from(&library.path)
        .map_err(|e| failed(e.to_string()))?
        .with_name("ortdpo")
        .with_telemetry(false)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    // What goes wrong reaches us as errors; the library's own lines on stderr would only repeat it.
    if std::env::var_os("ORT_LOG").is_none() {
        environment.set_log_level(LogLevel::Fatal);
    }
    Ok(RUNTIME.get_or_init(|| RuntimeInfo { environment, library }))
}

/// The ONNX Runtime in use, if one was loaded already.
pub fn info() -> Option<&'static RuntimeInfo> {
    RUNTIME.get()
}

/// Size up to which the shared memory pool asks the system for twice as much each time, in bytes; later times for as much again.
///
/// ONNX Runtime's own limit is 1 GiB. Regions of that size are first written to where the first run needs it and, bit by bit, all
/// over by later ones: a step of SD1.5 that keeps its activations took 0.9 GB more from its second run on. Asking for exactly
/// what is needed is no better where activations are computed again: nothing is joined across regions then, 0.3 GB more.
pub(crate) const LARGEST_DOUBLING: usize = 256 << 20;

/// Registers one memory pool for all sessions that ask for it, once.
pub(super) fn share_arena(info: &RuntimeInfo) -> ort::Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    let _guard = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if DONE.get().is_some() {
        return Ok(());
    }
    let memory = MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Arena,
        MemoryType::Default,
    )?;
    let environment = info.environment.ptr().cast_mut();
    let api = ort::api();
    let key = c"max_power_of_two_extend_bytes".as_ptr();
    let mut settings = std::ptr::null_mut();
    // SAFETY: all pointers are valid for their calls, and the settings, which are copied, are released once.
    unsafe {
        let status = (api.CreateArenaCfgV2)(&key, &LARGEST_DOUBLING, 1, &mut settings);
        ort::Error::result_from_status(status)?;
        let status = (api.CreateAndRegisterAllocator)(environment, memory.ptr(), settings);
        (api.ReleaseArenaCfg)(settings);
        ort::Error::result_from_status(status)?;
    }
    DONE.get_or_init(|| ());
    Ok(())
}
