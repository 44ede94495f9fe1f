//! `ortdpo train --record DIR`: what steps were computed from, for other programs to repeat.

mod common;

use std::fs;
use std::path::Path;

use common::train::{Workspace, metrics, refused};
use safetensors::SafeTensors;

fn values(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    (
        tensor.shape().to_vec(),
        bytemuck::pod_collect_to_vec(tensor.data()),
    )
}

#[test]
fn every_part_of_every_step_is_recorded_with_what_it_gave() {
    let workspace = Workspace::new();
    let record = workspace.path("record");
    let set = [
        "train.steps=3",
        "train.pairs_per_step=4",
        "train.accumulate=2",
        "train.eval_every=0",
    ];
    let output = workspace
        .train("run", &set)
        .arg("--record")
        .arg(&record)
        .output()
        .unwrap();
    common::train::succeeded(&output);
    // The first policy is the run without steps.
    let unmoved = workspace.trained(
        "unmoved",
        &["train.steps=1", "optimizer.lr=1e-30", "train.eval_every=0"],
    );
    let name = "pytorch_lora_weights.safetensors";
    assert_eq!(
        fs::read(record.join("initial.safetensors")).unwrap(),
        fs::read(unmoved.join(name)).unwrap()
    );
    for line in metrics(&workspace.path("run")) {
        let step = line["step"].as_u64().unwrap();
        let part = |index: usize| record.join(format!("step-{step:06}-part-{index}.safetensors"));
        let losses = [0, 1].map(|index| values(&part(index), "loss").1[0]);
        let mean = f64::from(losses[0] + losses[1]) / 2.0;
        assert!(
            (mean - line["loss"].as_f64().unwrap()).abs() < 1e-6,
            "step {step}"
        );
        let errors = [0, 1].map(|index| values(&part(index), "errors").1);
        let preferred: f32 = errors.iter().flat_map(|e| &e[..2]).sum();
        assert!((f64::from(preferred) / 4.0 - line["e_w"].as_f64().unwrap()).abs() < 1e-6);
        assert_eq!(values(&part(0), "sample").0, [4, 4, 8, 8]);
        assert_eq!(values(&part(1), "timestep").0, [4]);
    }
    let files = fs::read_dir(&record).unwrap().count();
    assert_eq!(files, 1 + 3 * 2);
}

#[test]
fn a_record_that_is_there_is_never_mixed_with_another() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("record")).unwrap();
    let mut command = workspace.train("run", &["train.steps=1"]);
    let output = command.args(["--record", "record"]).output().unwrap();
    let text = refused(&output);
    assert!(
        text.contains("record") && text.contains("is there already"),
        "{text}"
    );
    assert!(!workspace.path("run").exists());
}
