//! Output folders that cannot be used.

use std::fs;

use super::common::foreign_provider;
use super::common::train::{Workspace, files, refused};
use super::{refused_at_once, says};

#[test]
fn a_folder_that_holds_another_run() {
    let workspace = Workspace::new();
    let run = workspace.trained("run", &["train.steps=2"]);
    let before = files(&run);
    let text = refused(&workspace.train("run", &["seed=1"]).output().unwrap());
    says(
        &text,
        &["run: holds a run already. Continue it with --resume", "--output"],
    );
    assert!(files(&run) == before, "the run was changed");
}

#[test]
fn a_folder_below_a_file() {
    let workspace = Workspace::new();
    fs::write(workspace.path("file"), "content").unwrap();
    for output in ["file", "file/below/run"] {
        let text = refused(&workspace.train(output, &[]).output().unwrap());
        says(&text, &[&format!("{output}: cannot create the folder: ")]);
    }
    assert_eq!(fs::read(workspace.path("file")).unwrap(), b"content");
}

#[cfg(unix)]
#[test]
fn a_folder_without_write_permission() {
    use std::os::unix::fs::PermissionsExt;
    let workspace = Workspace::new();
    let folder = workspace.path("locked");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(folder.join("probe"), "").is_ok() {
        println!("skipped: permissions do not bind this user (root?)");
        return;
    }
    let text = refused(&workspace.train("locked", &[]).output().unwrap());
    says(
        &text,
        &["locked: cannot write into the folder: ", "Check the permissions"],
    );
    let text = refused(&workspace.train("locked/run", &[]).output().unwrap());
    says(
        &text,
        &["locked/run: cannot create the folder: ", "Check the permissions"],
    );
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_with_the_input_leaves_an_existing_folder_as_it_was() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("mine")).unwrap();
    fs::write(workspace.path("mine/notes"), "kept").unwrap();
    let output = workspace
        .train("mine", &["adapter.targets=[to_q, to_quack]"])
        .output()
        .unwrap();
    says(
        &refused(&output),
        &[
            "adapter.targets: `to_quack` matches no layer.",
            "to_k, to_out.0, to_q, to_v",
        ],
    );
    assert_eq!(
        files(&workspace.path("mine")).into_keys().collect::<Vec<_>>(),
        ["notes"]
    );
}

#[test]
fn patterns_that_match_no_layer() {
    for adapter in [
        "adapter.targets=[to_quack]",
        "adapter={kind: full, targets: [to_q, to_quack]}",
    ] {
        let text = refused_at_once(&Workspace::new(), &[adapter]);
        says(
            &text,
            &["adapter.targets: `to_quack` matches no layer. Layers of this model end in: "],
        );
    }
}

#[test]
fn an_execution_provider_that_is_not_there() {
    let provider = foreign_provider();
    let text = refused_at_once(&Workspace::new(), &[&format!("runtime.ep={provider}")]);
    says(
        &text,
        &[
            &format!("execution provider `{provider}`: cannot be used: "),
            "`ortdpo doctor`",
        ],
    );
}
