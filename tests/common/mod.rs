//! What the integration tests share. Each test program uses only a part of it.
#![allow(dead_code)]

pub mod data_command;
pub mod recorded;
pub mod structures;
pub mod train;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ortdpo::runtime::ExecutionProvider;

/// The folder of committed test data.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A provider that no library for this operating system has.
pub fn foreign_provider() -> ExecutionProvider {
    if cfg!(windows) {
        ExecutionProvider::CoreMl
    } else {
        ExecutionProvider::DirectMl
    }
}

/// The program, run in `folder`. It finds ONNX Runtime as a user's would: through `ORT_DYLIB_PATH`, or in `.ort/`
/// above its own folder, where `scripts/setup` put it.
pub fn ortdpo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ortdpo"));
    command.current_dir(folder).env_remove("RUST_BACKTRACE");
    command
}

/// A copy of the program in a folder from which no ONNX Runtime is to be found.
pub fn ortdpo_alone(folder: &Path) -> Command {
    let copy = folder.join(format!("ortdpo{}", std::env::consts::EXE_SUFFIX));
    if !copy.exists() {
        // A link is enough where the two folders share a disk: the program sees the path it was started by.
        let original = env!("CARGO_BIN_EXE_ortdpo");
        if std::fs::hard_link(original, &copy).is_err() {
            std::fs::copy(original, &copy).unwrap();
        }
    }
    let mut command = Command::new(copy);
    command
        .current_dir(folder)
        .env_remove("RUST_BACKTRACE")
        .env_remove("ORT_DYLIB_PATH");
    command
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
