//! Where the ONNX Runtime shared library is looked for, and whether a file found there will do.
//!
//! Order: the path given with `--ort-lib`; the environment variable `ORT_DYLIB_PATH`; the folder `.ort/` in the
//! working directory or any folder above it; `.ort/` in the executable's folder or any folder above it. A path
//! that the user named is the only one tried: falling back from it would hide a typing error.

use std::collections::HashSet;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Minor version of the oldest ONNX Runtime 1.x whose interface has all we call.
const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

/// What the user said about the library, and the two folders around which it is looked for.
pub(super) struct Search {
    /// `--ort-lib`.
    pub option: Option<PathBuf>,
    /// `ORT_DYLIB_PATH`.
    pub variable: Option<PathBuf>,
    /// The working directory.
    pub working: Option<PathBuf>,
    /// The folder of the executable.
    pub executable: Option<PathBuf>,
}

/// A place to look at, with the words that lead to it.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    named_by: Option<&'static str>,
    path: PathBuf,
}

/// A library that was loaded and is new enough. It stays loaded as long as this lives.
#[derive(Debug)]
pub(super) struct Library {
    pub path: PathBuf,
    pub version: String,
    _handle: libloading::Library,
}

/// Why a place does not do.
#[derive(Debug, PartialEq)]
enum Refusal {
    NotThere,
    NotLoadable(String),
    NotOnnxRuntime,
    TooOld(String),
}

impl Search {
    /// What this process was started with.
    pub fn new(option: Option<PathBuf>) -> Self {
        Self {
            option,
            variable: std::env::var_os("ORT_DYLIB_PATH")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from),
            working: std::env::current_dir().ok(),
            executable: std::env::current_exe()
                .ok()
                .and_then(|exe| exe.canonicalize().ok())
                .and_then(|exe| exe.parent().map(Path::to_path_buf)),
        }
    }

    /// Loads the first library that will do, or says of every place why it does not.
    pub fn find(&self) -> Result<Library> {
        let mut refusals = Vec::new();
        for place in self.places() {
            match load(&place.path) {
                Ok(library) => return Ok(library),
                Err(refusal) => refusals.push((place, refusal)),
            }
        }
        Err(not_found(&refusals))
    }

    fn places(&self) -> Vec<Place> {
        for (named_by, path) in [("--ort-lib", &self.option), ("ORT_DYLIB_PATH", &self.variable)] {
            if let Some(path) = path {
                let path = if path.is_dir() {
                    path.join(file_name())
                } else {
                    path.clone()
                };
                return vec![Place {
                    named_by: Some(named_by),
                    path,
                }];
            }
        }
        let mut seen = HashSet::new();
        [&self.working, &self.executable]
            .into_iter()
            .flatten()
            .flat_map(|folder| folder.ancestors())
            .filter(|folder| seen.insert(folder.to_path_buf()))
            .map(|folder| Place {
                named_by: None,
                path: folder.join(".ort").join(file_name()),
            })
            .collect()
    }
}

/// `libonnxruntime.so`, `libonnxruntime.dylib` or `onnxruntime.dll`.
fn file_name() -> String {
    format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")
}

fn load(path: &Path) -> Result<Library, Refusal> {
    if !path.is_file() {
        return Err(Refusal::NotThere);
    }
    // A bare file name would be searched for on the system's library path instead of opened.
    let path = path
        .canonicalize()
        .map_err(|e| Refusal::NotLoadable(e.to_string()))?;
    // SAFETY: loading a library runs its initialisers; the user named this file, or `scripts/setup` put it there.
    let handle =
        unsafe { libloading::Library::new(&path) }.map_err(|e| Refusal::NotLoadable(in_words(&e)))?;
    let version = version_of(&handle).ok_or(Refusal::NotOnnxRuntime)?;
    if is_new_enough(&version) {
        Ok(Library {
            path,
            version,
            _handle: handle,
        })
    } else {
        Err(Refusal::TooOld(version))
    }
}

/// The loader's own words are one level below the error's `Display`.
fn in_words(error: &libloading::Error) -> String {
    let detail = std::error::Error::source(error).map(ToString::to_string);
    detail.unwrap_or_else(|| error.to_string())
}

fn version_of(handle: &libloading::Library) -> Option<String> {
    type GetApiBase = unsafe extern "system" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: the symbol has this signature in every ONNX Runtime since 1.0.
    let base = unsafe { handle.get::<GetApiBase>(b"OrtGetApiBase\0").ok()?() };
    // SAFETY: the function returns null or a pointer to a static table, whose string is static as well.
    unsafe {
        let text = CStr::from_ptr((base.as_ref()?.GetVersionString)());
        Some(text.to_string_lossy().into_owned())
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(1), Some(minor)) => minor >= OLDEST_MINOR,
        (Some(major), _) => major > 1,
        _ => false,
    }
}

fn not_found(refusals: &[(Place, Refusal)]) -> Error {
    let mut tried = Vec::new();
    let mut bare = Vec::new();
    for (place, refusal) in refusals {
        let why = match refusal {
            Refusal::NotThere if place.named_by.is_none() => {
                bare.push(place.path.display().to_string());
                continue;
            }
            Refusal::NotThere => "no such file".into(),
            Refusal::NotLoadable(why) => format!("cannot be loaded: {why}"),
            Refusal::NotOnnxRuntime => "a library, but not ONNX Runtime".into(),
            Refusal::TooOld(version) => format!("version {version} is too old"),
        };
        let named_by = place.named_by.map(|by| format!("{by}: ")).unwrap_or_default();
        tried.push(format!("{named_by}{} ({why})", place.path.display()));
    }
    if !bare.is_empty() {
        tried.push(format!("not there: {}", bare.join(", ")));
    }
    Error::bad(
        "ONNX Runtime",
        format!(
            "found no shared library of version 1.{OLDEST_MINOR} or newer. Tried: {}",
            tried.join("; ")
        ),
        "Run `scripts/setup` in ortdpo's folder, which puts one into .ort/ there, or name a library with \
         --ort-lib FILE or the environment variable ORT_DYLIB_PATH.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(working: &Path, executable: &Path) -> Search {
        Search {
            option: None,
            variable: None,
            working: Some(working.into()),
            executable: Some(executable.into()),
        }
    }

    fn paths(search: &Search) -> Vec<PathBuf> {
        search.places().into_iter().map(|place| place.path).collect()
    }

    #[test]
    fn folders_above_the_working_directory_come_before_those_above_the_executable() {
        let places = paths(&search(Path::new("/home/ada/run"), Path::new("/opt/ortdpo/bin")));
        let expected = [
            "/home/ada/run",
            "/home/ada",
            "/home",
            "/",
            "/opt/ortdpo/bin",
            "/opt/ortdpo",
            "/opt",
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|f| Path::new(f).join(".ort").join(file_name()))
            .collect();
        assert_eq!(places, expected);
    }

    #[test]
    fn the_option_wins_over_the_variable_and_the_variable_over_the_folders() {
        let mut search = search(Path::new("/a"), Path::new("/b"));
        search.variable = Some("/v/lib.so".into());
        assert_eq!(paths(&search), [Path::new("/v/lib.so")]);
        search.option = Some("/o/lib.so".into());
        assert_eq!(paths(&search), [Path::new("/o/lib.so")]);
    }

    #[test]
    fn a_folder_stands_for_the_library_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut search = search(Path::new("/a"), Path::new("/b"));
        search.option = Some(folder.path().into());
        assert_eq!(paths(&search), [folder.path().join(file_name())]);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, fits) in [
            ("1.31.1", true),
            ("1.31.0", true),
            ("1.100.0", true),
            ("2.0.0", true),
            ("1.9.0", false),
            ("1.30.2", false),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(is_new_enough(version), fits, "{version}");
        }
    }

    #[test]
    fn every_place_is_named_with_what_is_wrong_there() {
        let folder = tempfile::tempdir().unwrap();
        let bogus = folder.path().join(".ort").join(file_name());
        std::fs::create_dir(bogus.parent().unwrap()).unwrap();
        std::fs::write(&bogus, "not a library").unwrap();
        let below = folder.path().join("below");
        let text = search(&below, folder.path()).find().unwrap_err().to_string();
        let absent = below.join(".ort").join(file_name());
        assert!(
            text.contains(&format!("not there: {}", absent.display())),
            "{text}"
        );
        assert!(
            text.contains(&format!("{} (cannot be loaded: ", bogus.display())),
            "{text}"
        );
        assert!(text.contains("scripts/setup"), "{text}");
    }

    #[test]
    fn an_old_library_is_refused_by_its_version() {
        let place = Place {
            named_by: Some("--ort-lib"),
            path: "/old/lib.so".into(),
        };
        let text = not_found(&[(place, Refusal::TooOld("1.20.0".into()))]).to_string();
        assert!(
            text.contains("--ort-lib: /old/lib.so (version 1.20.0 is too old)"),
            "{text}"
        );
    }
}
