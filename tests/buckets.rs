//! Training on images of several shapes: aspect-ratio buckets, one set of graphs each, and SDXL's micro-conditioning.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::train::{Workspace, metrics, refused, succeeded};
use common::{fixtures, stderr};
use image::{Rgb, RgbImage};
use safetensors::SafeTensors;

/// Width and height of the two images of each pair.
const PAIRS: [[(u32, u32); 2]; 9] = [
    [(24, 24), (24, 24)],
    [(54, 16), (54, 16)],
    [(48, 16), (51, 17)],
    [(16, 48), (16, 50)],
    [(54, 16), (48, 16)],
    [(20, 20), (32, 32)],
    [(64, 16), (64, 16)],
    // One as much wider than high as the other is higher than wide.
    [(48, 16), (16, 48)],
    [(16, 16), (16, 17)],
];

const BUCKETS: &str = "data.buckets={step: 8}";

/// Makes the pairs as JSON lines with pictures of noise.
fn write_pairs(folder: &Path) {
    let mut lines = String::new();
    for (i, sizes) in PAIRS.iter().enumerate() {
        let names = [0, 1].map(|k| {
            let (name, (width, height)) = (format!("{i}-{k}.png"), sizes[k]);
            let mut seed = (2 * i + k + 1) as u32;
            let picture = RgbImage::from_fn(width, height, |_, _| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Rgb([seed >> 24, seed >> 16 & 255, seed >> 8 & 255].map(|v| v as u8))
            });
            picture.save(folder.join(&name)).unwrap();
            name
        });
        lines += &format!(
            r#"{{"prompt": "picture {i}", "chosen": "{}", "rejected": "{}"}}"#,
            names[0], names[1]
        );
        lines.push('\n');
    }
    fs::write(folder.join("train.jsonl"), &lines).unwrap();
    let heldout: Vec<&str> = lines.lines().take(4).collect();
    fs::write(folder.join("heldout.jsonl"), heldout.join("\n") + "\n").unwrap();
}

/// A workspace with such pairs, and what its runs set.
fn workspace(model: &str) -> (Workspace, Vec<String>) {
    let workspace = Workspace::new();
    let folder = workspace.path("pairs");
    fs::create_dir(&folder).unwrap();
    write_pairs(&folder);
    let set = vec![
        format!("model={}", fixtures().join(model).display()),
        format!("data.path={}", folder.display()),
        format!("data.cache={}", workspace.path("cache").display()),
        "data.kind=jsonl".into(),
        "train.pairs_per_step=4".into(),
        "train.accumulate=2".into(),
        "train.eval_every=3".into(),
        "train.checkpoint_every=3".into(),
    ];
    (workspace, set)
}

fn with<'a>(set: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    set.iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect()
}

fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let values = bytemuck::pod_collect_to_vec(tensor.data());
    (tensor.shape().to_vec(), values)
}

#[test]
fn images_keep_their_shapes_and_sdxl_is_told_of_each() {
    let (workspace, set) = workspace("optimum-sdxl");
    let record = workspace.path("record");
    let set = with(&set, &[BUCKETS, "train.steps=12", "train.eval_every=0"]);
    let mut command = workspace.train("run", &set);
    succeeded(&command.arg("--record").arg(&record).output().unwrap());
    let (mut shapes, mut told) = (BTreeSet::new(), BTreeSet::new());
    for step in 1..=12 {
        for part in 0..2 {
            let path = record.join(format!("step-{step:06}-part-{part}.safetensors"));
            let (shape, _) = tensor(&path, "sample");
            let (_, ids) = tensor(&path, "time_ids");
            for ids in ids.chunks(6) {
                let ids: Vec<u32> = ids.iter().map(|v| *v as u32).collect();
                // Pixels of the latents that it is computed on.
                assert_eq!(ids[4..], [2 * shape[2] as u32, 2 * shape[3] as u32], "{path:?}");
                told.insert(ids);
            }
            shapes.insert(shape);
        }
    }
    let expected = [[4, 4, 4, 12], [4, 4, 8, 8], [4, 4, 12, 4]].map(Vec::from);
    assert!(expected.iter().all(|shape| shapes.contains(shape)), "{shapes:?}");
    // Original height and width, top and left of the crop, height and width of the bucket.
    let expected = [
        [24, 24, 0, 0, 16, 16],
        // 8 pixels high it is 27 wide.
        [16, 54, 0, 2, 8, 24],
        [17, 51, 0, 0, 8, 24],
        [16, 48, 0, 16, 16, 16],
        [48, 16, 16, 0, 16, 16],
        // 8 pixels wide it is 25 high.
        [50, 16, 0, 0, 24, 8],
    ];
    for ids in expected {
        assert!(told.contains(ids.as_slice()), "{ids:?} is not in {told:?}");
    }
}

#[test]
fn sdxl_can_be_told_the_same_of_all_images() {
    let (workspace, set) = workspace("optimum-sdxl");
    let record = workspace.path("record");
    let more = [
        "data.micro_conditioning=target",
        "train.steps=1",
        "train.eval_every=0",
    ];
    let mut command = workspace.train("run", &with(&set, &more));
    succeeded(&command.arg("--record").arg(&record).output().unwrap());
    let (shape, ids) = tensor(&record.join("step-000001-part-0.safetensors"), "time_ids");
    assert_eq!(
        (shape, ids),
        (vec![4, 6], [16.0, 16.0, 0.0, 0.0, 16.0, 16.0].repeat(4))
    );
}

#[test]
fn a_run_over_several_sizes_resumes_bit_for_bit() {
    let (workspace, set) = workspace("optimum-sd");
    let reference = "reference={update: ema, alpha: 0.1, anchor: {kind: kl, lambda: 0.1}}";
    let adapter = |run: &Path| fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap();
    let straight = workspace.trained("straight", &with(&set, &[BUCKETS, reference, "train.steps=6"]));
    let run = workspace.trained("run", &with(&set, &[BUCKETS, reference, "train.steps=3"]));
    assert_ne!(adapter(&run), adapter(&straight));
    workspace.resumed("run", &with(&set, &[BUCKETS, reference, "train.steps=6"]));
    assert!(
        adapter(&run) == adapter(&straight),
        "the resumed run is another one"
    );
    let accuracies: Vec<bool> = metrics(&straight)
        .iter()
        .map(|line| line["acc_init"].is_number())
        .collect();
    assert!(
        accuracies.contains(&true),
        "held-out pairs of all sizes are evaluated"
    );
    // Squares are other images.
    let squares = workspace.trained("squares", &with(&set, &[reference, "train.steps=6"]));
    assert_ne!(adapter(&squares), adapter(&straight));
}

#[test]
fn a_run_says_how_many_sizes_it_has_and_refuses_steps_that_do_not_fit() {
    let (workspace, set) = workspace("optimum-sd");
    let output = workspace
        .talking("run", &with(&set, &[BUCKETS, "train.steps=1"]))
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("building graphs for 4 sizes of images"),
        "{}",
        stderr(&output)
    );
    let text = refused(
        &workspace
            .train("other", &with(&set, &["data.buckets={step: 12}"]))
            .output()
            .unwrap(),
    );
    assert!(
        text.contains("data.buckets.step") && text.contains("12"),
        "{text}"
    );
}
