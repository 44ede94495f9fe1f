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

/// Registers one memory pool for all sessions that ask for it, once.
///
/// It keeps ONNX Runtime's default of growing by doubling: growing by what is asked for saved nothing, as unused
/// memory is never touched, and cost the block of a planned run a second time, since that never fits into
/// the pieces of the unplanned first run.
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
    // SAFETY: both pointers are valid for the call; no configuration means the default one.
    unsafe {
        let status = (ort::api().CreateAndRegisterAllocator)(environment, memory.ptr(), std::ptr::null());
        ort::Error::result_from_status(status)?;
    }
    DONE.get_or_init(|| ());
    Ok(())
}
