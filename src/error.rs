//! The one error type of the library. Whatever reaches a user is one paragraph that names the place,
//! says what is wrong there, and what to do about it.

use std::path::{Path, PathBuf};

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something the user gave does not fit: a file, a key, a model, a combination.
    #[error("{place}: {what}. {remedy}")]
    BadInput {
        /// File, key path, node or option.
        place: String,
        /// What is wrong there; no trailing full stop.
        what: String,
        /// What the user can do; a full sentence.
        remedy: String,
    },
    /// The operating system refused an operation on a file.
    #[error("{path}: cannot {action}: {source}. {}", io_remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operation, as an infinitive: "read", "create the folder".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// ONNX Runtime refused a model or failed while running it.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// Training stopped on purpose because going on would waste or spoil the run.
    #[error("training stopped: {0}")]
    Diverged(String),
    /// The user asked to stop (Ctrl-C); state was saved.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// Shorthand for [`Error::BadInput`].
    pub fn bad(place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::BadInput {
            place: place.into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// A closure for `map_err` on file operations.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// Process exit code: 2 for what the user can mend, 130 after Ctrl-C, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput { .. } | Self::Io { .. } => 2,
            Self::Interrupted(_) => 130,
            Self::Runtime(_) | Self::Diverged(_) => 1,
        }
    }
}

fn io_remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound => "Check the path.",
        ErrorKind::PermissionDenied => "Check the permissions, or choose another folder.",
        ErrorKind::StorageFull => "Free some space, or choose another disk.",
        _ => "Check the file and the disk it is on.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = Error::io("runs/a", "write")(std::io::ErrorKind::StorageFull.into());
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(
            text.starts_with("runs/a: cannot write: ")
                && text.ends_with("Free some space, or choose another disk.")
        );
    }
}
