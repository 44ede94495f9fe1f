//! Files that were downloaded by half, or that something else was saved in place of: every command says so at once, about
//! any part that it would come to use, and leaves nothing behind.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::train::{copy, refused};
use common::{fixtures, ortdpo};
use tempfile::TempDir;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3438167540\n";
const PAGE: &str = "<!DOCTYPE html>\n<html><title>Sign in</title></html>\n";

/// A folder with a pipeline, `model`, a reward, `reward`, prompts, and a configuration that draws samples.
fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures().join("optimum-sd"), &folder.path().join("model"));
    copy(
        &fixtures().join("rewards/clip-l14"),
        &folder.path().join("reward"),
    );
    fs::write(folder.path().join("prompts.txt"), "ab cd\ng f dc\n").unwrap();
    let config = format!(
        "model: model\ndata: {{path: '{}', resolution: 16}}\nsamples: {{prompts: [ab], rewards: [reward]}}\n",
        fixtures().join("pairs/whole").display()
    );
    fs::write(folder.path().join("run.yaml"), config).unwrap();
    folder
}

fn said(folder: &Path, command: &str) -> String {
    let mut program = ortdpo(folder);
    let output: Output = program.args(command.split_whitespace()).output().unwrap();
    let text = refused(&output);
    assert!(!folder.join("out").exists(), "{command}: {text}");
    text
}

/// Puts a network whose weight lies in `affine.data` beside it in the place of `model.onnx`.
fn with_external_data(folder: &Path) -> PathBuf {
    for name in ["affine.onnx", "affine.data"] {
        let to = if name == "affine.onnx" { "model.onnx" } else { name };
        fs::copy(fixtures().join("runtime").join(name), folder.join(to)).unwrap();
    }
    folder.join("affine.data")
}

const GENERATE: &str = "generate --quiet --model model --prompts prompts.txt --output out";
const EVAL: &str =
    "eval --quiet --model a=model --model b=other --prompts prompts.txt --reward reward --output out";
const TRAIN: &str = "train --quiet --config run.yaml --output out";
const PLAN: &str = "plan --quiet --no-time run.yaml";
const SCORE: &str = "score --quiet --reward other,reward --no-cache --images pictures --output out";

/// Every part of a pipeline, and the commands that use it.
const PARTS: [(&str, &[&str]); 4] = [
    ("unet", &[GENERATE, TRAIN, PLAN]),
    ("text_encoder", &[GENERATE, TRAIN, PLAN]),
    ("vae_decoder", &[GENERATE, TRAIN, PLAN]),
    ("vae_encoder", &[TRAIN, PLAN]),
];

#[test]
fn weights_beside_any_part_of_a_pipeline_are_looked_at_first() {
    for (part, commands) in PARTS {
        let folder = workplace();
        let data = with_external_data(&folder.path().join("model").join(part));
        for (content, what) in [
            (&[0; 20][..], "is 20 bytes long, too short for tensor `"),
            (&PAGE.as_bytes()[..20], "is a web page"),
            (&POINTER.as_bytes()[..20], "is 20 bytes long, too short"),
        ] {
            fs::write(&data, content).unwrap();
            for command in commands {
                let text = said(folder.path(), command);
                let place = format!("model/{part}/affine.data: {what}");
                assert!(text.contains(&place), "{command}: {text}");
            }
        }
        fs::remove_file(&data).unwrap();
        for command in commands {
            let text = said(folder.path(), command);
            assert!(
                text.contains(&format!("model/{part}/affine.data: external data of tensor `")),
                "{text}"
            );
        }
    }
}

#[test]
fn pointers_and_pages_in_place_of_networks_are_called_that() {
    for (part, commands) in PARTS {
        let folder = workplace();
        let path = folder.path().join("model").join(part).join("model.onnx");
        for (content, what, remedy) in [
            (
                POINTER,
                "is a Git LFS pointer to its 3438167540 bytes",
                "Run `git lfs pull`",
            ),
            (PAGE, "is a web page", "Download the file again"),
        ] {
            fs::write(&path, content).unwrap();
            for command in commands {
                let text = said(folder.path(), command);
                let place = format!("model/{part}/model.onnx: {what}");
                assert!(
                    text.contains(&place) && text.contains(remedy),
                    "{command}: {text}"
                );
            }
        }
    }
    let folder = workplace();
    fs::write(folder.path().join("model.onnx"), POINTER).unwrap();
    let text = said(folder.path(), "derive model.onnx -o out");
    assert!(text.contains("model.onnx: is a Git LFS pointer"), "{text}");
    fs::write(folder.path().join("model/tokenizer/vocab.json"), POINTER).unwrap();
    let text = said(folder.path(), GENERATE);
    assert!(
        text.contains("tokenizer/vocab.json: is a Git LFS pointer"),
        "{text}"
    );
    fs::write(folder.path().join("model/vae_decoder/config.json"), POINTER).unwrap();
    let text = said(folder.path(), TRAIN);
    assert!(text.contains("is a Git LFS pointer"), "{text}");
}

#[test]
fn an_evaluation_looks_at_all_its_models_and_rewards_first() {
    let folder = workplace();
    copy(&folder.path().join("model"), &folder.path().join("other"));
    let data = with_external_data(&folder.path().join("other/vae_decoder"));
    fs::write(&data, [0; 4]).unwrap();
    let text = said(folder.path(), EVAL);
    assert!(
        text.contains("other/vae_decoder/affine.data: is 4 bytes long"),
        "{text}"
    );

    copy(&fixtures().join("optimum-sd"), &folder.path().join("other"));
    let onnx = fs::read_dir(folder.path().join("reward"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "onnx"))
        .unwrap();
    fs::write(&onnx, POINTER).unwrap();
    for command in [EVAL, TRAIN, PLAN] {
        let text = said(folder.path(), command);
        assert!(
            text.contains("reward/") && text.contains("is a Git LFS pointer"),
            "{command}: {text}"
        );
    }
    // Of several rewards the last one, before the first is loaded.
    fs::create_dir(folder.path().join("pictures")).unwrap();
    copy(
        &fixtures().join("rewards/pictures"),
        &folder.path().join("pictures"),
    );
    fs::remove_dir_all(folder.path().join("other")).unwrap();
    copy(&fixtures().join("rewards/siglip"), &folder.path().join("other"));
    let text = said(folder.path(), SCORE);
    assert!(
        text.contains("reward/") && text.contains("is a Git LFS pointer"),
        "{text}"
    );
}

#[test]
fn adapters_are_looked_at_first() {
    let folder = workplace();
    let whole = fs::read(fixtures().join("adapters/diffusers.safetensors")).unwrap();
    let path = folder.path().join("a.safetensors");
    copy(&folder.path().join("model"), &folder.path().join("other"));
    for (content, what) in [
        (&whole[..whole.len() - 1], "a.safetensors: is cut off: it has "),
        (
            &whole[..100],
            "a.safetensors: is cut off after 100 bytes, within its header",
        ),
        (POINTER.as_bytes(), "a.safetensors: is a Git LFS pointer"),
        (PAGE.as_bytes(), "a.safetensors: is a web page"),
        (&b"{}"[..], "a.safetensors: is not a safetensors file"),
    ] {
        fs::write(&path, content).unwrap();
        for command in [
            format!("{GENERATE} --adapter a.safetensors"),
            EVAL.replace("b=other", "b=other+a.safetensors"),
            format!("{TRAIN} --set adapter.init=a.safetensors"),
            format!("{PLAN} --set adapter.init=a.safetensors"),
            "merge --model model --adapter a.safetensors --output out".to_owned(),
        ] {
            let text = said(folder.path(), &command);
            assert!(text.contains(what), "{command}: {text}");
        }
    }
    // Of another kind of model.
    fs::copy(fixtures().join("trajectories/sdxl-first.safetensors"), &path).unwrap();
    for command in [
        format!("{GENERATE} --adapter a.safetensors"),
        EVAL.replace("b=other", "b=other+a.safetensors"),
        "merge --model model --adapter a.safetensors --output out".to_owned(),
    ] {
        let text = said(folder.path(), &command);
        assert!(text.contains("a.safetensors: does not fit "), "{command}: {text}");
    }
}
