//! A disk that is full when a checkpoint is written.
//!
//! Two ways to get there without root: a limit on the size of files, which every Unix shell can set, and a small
//! memory disk mounted in a user namespace of its own, which gives the very error of a full disk but is not allowed
//! on every machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::common::train::{Workspace, files, refused};
use super::says;

/// Six steps with a checkpoint after every second one, of 23 KB for each of its five sets of tensors.
const RUN: [&str; 4] = [
    "adapter.rank=8",
    "train.checkpoint_every=2",
    "train.steps=6",
    "reference={update: ema, alpha: 0.1}",
];

/// Lets `sh` run `script`, in which `"$@"` is the command.
fn under_sh(command: &Command, script: &str, before: &[&str]) -> Output {
    let (program, arguments) = before.split_first().unwrap_or((&"sh", &[]));
    let mut wrapped = Command::new(program);
    wrapped.args(arguments);
    if !before.is_empty() {
        wrapped.arg("sh");
    }
    wrapped
        .args(["-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    wrapped.current_dir(command.get_current_dir().unwrap());
    wrapped.output().unwrap()
}

/// Runs with files of at most 12 KiB: less than a set of tensors, more than the logs.
fn with_small_files(command: &Command) -> Output {
    // Without the trap the first file that is too large would end the program by a signal.
    under_sh(command, "trap '' XFSZ; ulimit -f 24; exec \"$@\"", &[])
}

fn checkpoints(run: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The tensors that the run has left, results and checkpoints.
fn tensors(run: &Path) -> Vec<(String, Vec<u8>)> {
    let all = files(run).into_iter();
    all.filter(|(name, _)| name.ends_with(".safetensors")).collect()
}

#[test]
fn earlier_checkpoints_stay_whole_and_the_run_can_be_resumed() {
    let workspace = Workspace::new();
    let straight = workspace.trained("straight", &RUN);
    let run = workspace.trained("run", &[&RUN[..], &["train.steps=2"]].concat());
    let first = files(&run.join("checkpoints/step-2"));
    let mut resume = workspace.train("run", &RUN);
    let text = refused(&with_small_files(resume.arg("--resume")));
    says(
        &text,
        &[
            "run/checkpoints/.unfinished-4/policy.safetensors: cannot write: ",
            "the disk",
        ],
    );
    assert_eq!(checkpoints(&run), ["step-2"]);
    assert!(
        files(&run.join("checkpoints/step-2")) == first,
        "the earlier checkpoint was changed"
    );
    workspace.resumed("run", &RUN);
    assert!(
        tensors(&run) == tensors(&straight),
        "the resumed run is another one"
    );
}

#[test]
fn a_first_checkpoint_that_does_not_fit_leaves_nothing() {
    let workspace = Workspace::new();
    // The cache of encodings has files that are larger still; afterwards it is complete.
    workspace.trained("other", &["train.steps=1"]);
    let text = refused(&with_small_files(&workspace.train("run", &RUN)));
    says(&text, &["policy.safetensors: cannot write: "]);
    assert_eq!(checkpoints(&workspace.path("run")), [""; 0]);
}

/// A user namespace in which one may mount; `None`, with the reason printed, where the system does not allow that.
fn namespace(scratch: &Path) -> Option<[&'static str; 3]> {
    let enter = ["unshare", "--map-root-user", "--mount"];
    let mount = ["mount", "-t", "tmpfs", "none"];
    let tried = Command::new(enter[0])
        .args(&enter[1..])
        .args(mount)
        .arg(scratch)
        .output();
    match tried {
        Ok(output) if output.status.success() => Some(enter),
        Ok(output) => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            None
        }
        Err(error) => {
            println!("skipped: unshare: {error}");
            None
        }
    }
}

#[test]
fn a_really_full_disk_is_called_that() {
    let workspace = Workspace::new();
    let disk: PathBuf = workspace.path("disk");
    fs::create_dir(&disk).unwrap();
    let Some(enter) = namespace(&disk) else { return };
    // Room for one checkpoint, not for two. The mount is gone with the last process in the namespace.
    let script =
        "mount -t tmpfs -o size=256k none disk && { \"$@\"; code=$?; cp -R disk/. kept; exit $code; }";
    let text = refused(&under_sh(&workspace.train("disk/run", &RUN), script, &enter));
    says(
        &text,
        &[
            "disk/run/checkpoints/.unfinished-4/",
            "Free some space, or choose another disk.",
        ],
    );
    let run = workspace.path("kept/run");
    assert_eq!(checkpoints(&run), ["step-2"]);
    let straight = workspace.trained("straight", &RUN);
    workspace.resumed("kept/run", &RUN);
    assert!(
        tensors(&run) == tensors(&straight),
        "the resumed run is another one"
    );
}
