//! `scripts/setup` without a network: what it leaves alone, what it refuses, what it says is missing.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn setup(target: &Path) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup"));
    // Nothing may be fetched: packages come from a folder of the test's own, or not at all.
    command
        .arg("--dir")
        .arg(target)
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", "");
    command
}

fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// The system as `scripts/setup` names it.
fn system() -> String {
    let output = Command::new("uname").args(["-s", "-m"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().replace(' ', "-")
}

/// A folder as the script would have left it, around a stand-in for the library.
fn installed(folder: &Path) -> PathBuf {
    let target = folder.join("ort");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("libonnxruntime.so"), "hello\n").unwrap();
    let sum = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03  libonnxruntime.so\n";
    fs::write(target.join("SHA256SUMS"), sum).unwrap();
    fs::write(target.join("VERSION"), format!("1.31.1 {} cuda\n", system())).unwrap();
    target
}

#[test]
fn a_complete_folder_is_left_as_it_is_whatever_its_flavour() {
    let folder = tempfile::tempdir().unwrap();
    let target = installed(folder.path());
    for flavour in [None, Some("--cuda")] {
        let output = setup(&target).args(flavour).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .starts_with("ONNX Runtime 1.31.1 (cuda) is in ")
        );
    }
    assert_eq!(entries(folder.path()), [target]);
}

#[test]
fn a_damaged_old_or_other_folder_is_not_taken_for_complete() {
    for (file, content, flavour) in [
        ("libonnxruntime.so", "damaged", None),
        ("VERSION", "1.20.0 Linux-x86_64 cpu", None),
        ("SHA256SUMS", "5891 absent.so", None),
        ("LICENSE", "", Some("--cpu")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let target = installed(folder.path());
        fs::write(target.join(file), content).unwrap();
        let text = refused(setup(&target).args(flavour).output().unwrap());
        assert!(
            text.contains("pip could not fetch onnxruntime 1.31.1"),
            "{file}: {text}"
        );
        // What was there stays until something better can take its place.
        assert_eq!(fs::read_to_string(target.join(file)).unwrap(), content);
        assert_eq!(entries(folder.path()), [target]);
    }
}

#[test]
fn a_package_with_another_content_than_the_published_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let packages = folder.path().join("packages");
    fs::create_dir(&packages).unwrap();
    for tag in [
        "manylinux_2_28_x86_64",
        "manylinux_2_28_aarch64",
        "macosx_14_0_arm64",
    ] {
        let name = format!("onnxruntime-1.31.1-cp312-cp312-{tag}.whl");
        let script = "
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    wheel.writestr('onnxruntime/capi/libonnxruntime.so.1.31.1', 'something else')
    folder = 'onnxruntime-1.31.1.dist-info/'
    wheel.writestr(folder + 'METADATA', 'Metadata-Version: 2.1\\nName: onnxruntime\\nVersion: 1.31.1\\n')
    wheel.writestr(folder + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\n')
    wheel.writestr(folder + 'RECORD', '')
";
        let status = Command::new("python3")
            .args(["-c", script])
            .arg(packages.join(name))
            .status()
            .unwrap();
        assert!(status.success());
    }
    let target = folder.path().join("ort");
    let text = refused(setup(&target).env("PIP_FIND_LINKS", &packages).output().unwrap());
    assert!(
        text.contains("has the SHA-256") && text.contains("Nothing was changed"),
        "{text}"
    );
    assert_eq!(entries(folder.path()), [packages]);
}

/// An executable script in a folder of its own.
fn script(folder: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn says_when_python_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("ort");
    let text = refused(setup(&target).env("PYTHON", "no-such-python").output().unwrap());
    assert!(
        text.contains("no Python 3.7 or newer was found (no-such-python). Install one"),
        "{text}"
    );
    assert_eq!(entries(folder.path()), [""; 0].map(PathBuf::from));
}

#[test]
fn says_when_pip_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let (bin, target) = (folder.path().join("bin"), folder.path().join("ort"));
    fs::create_dir(&bin).unwrap();
    script(&bin, "pip3", "exit 1");
    script(
        &bin,
        "python3",
        r#"case "$1 $2" in "-m pip" | "-m venv") exit 1 ;; esac; exec "$REAL_PYTHON" "$@""#,
    );
    let real = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = setup(&target);
    command
        .env("PATH", path)
        .env("REAL_PYTHON", String::from_utf8(real.stdout).unwrap().trim());
    let text = refused(command.output().unwrap());
    assert!(text.contains("python3 has no pip, there is no pip3"), "{text}");
    assert!(text.contains("apt install python3-pip"), "{text}");
    assert_eq!(entries(folder.path()), [bin]);
}
