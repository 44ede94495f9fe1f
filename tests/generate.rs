//! `ortdpo generate` on tiny random pipelines: what it leaves, what batches and interruptions change (nothing), and what
//! it refuses.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::train::{files, json, paragraph, refused, succeeded};
use common::{fixtures, ortdpo, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// Five prompts with two images each.
const PROMPTS: &str = "ab cd\ng f dc\nh\nba\ncd e\n";

struct Workspace {
    folder: TempDir,
}

impl Workspace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("prompts.txt"), PROMPTS).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command, quiet; of an option that is given twice, `options` has the last word.
    fn generate(&self, output: &str, options: &[&str]) -> Command {
        let mut settings = BTreeMap::from([
            ("--prompts", "prompts.txt"),
            ("--images-per-prompt", "2"),
            ("--steps", "3"),
            ("--guidance", "4"),
            ("--seed", "5"),
        ]);
        let mut rest = options.chunks_exact(2);
        settings.extend(rest.by_ref().map(|pair| (pair[0], pair[1])));
        let mut command = ortdpo(self.folder.path());
        let model = fixtures().join("optimum-sd");
        command.args(["generate", "--quiet", "--output", output]);
        if !settings.contains_key("--model") {
            command.arg("--model").arg(model);
        }
        for (name, value) in settings {
            command.args([name, value]);
        }
        command
    }

    fn made(&self, output: &str, options: &[&str]) -> PathBuf {
        succeeded(&self.generate(output, options).output().unwrap());
        self.path(output)
    }
}

fn records(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("images.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Pixels of every image, by file.
fn pixels(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |record: &Value| {
        let file = record["file"].as_str().unwrap().to_owned();
        let image = image::open(folder.join(&file)).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (16, 16));
        (file, image.into_raw())
    };
    records(folder).iter().map(read).collect()
}

/// The text that image tools look for.
fn parameters(path: &Path) -> String {
    let decoder = png::Decoder::new(BufReader::new(File::open(path).unwrap()));
    let reader = decoder.read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    let found = texts.iter().find(|text| text.keyword == "parameters").unwrap();
    found.text.clone()
}

fn largest_difference(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> u8 {
    assert!(a.keys().eq(b.keys()));
    let pairs = a.values().flatten().zip(b.values().flatten());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn a_folder_has_images_records_parameters_and_a_sheet() {
    let workspace = Workspace::new();
    let output = workspace
        .generate("out", &["--format", "json", "--negative", "dc"])
        .output()
        .unwrap();
    succeeded(&output);
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&summary["images"], &summary["made"]), (&10.into(), &10.into()));
    let out = workspace.path("out");
    let found = records(&out);
    assert_eq!(found.len(), 10);
    let third = &found[3];
    assert_eq!(third["file"], "images/00001-1.png");
    assert_eq!(third["prompt"], "g f dc");
    for (key, value) in [("prompt_index", 1), ("image_index", 1), ("seed", 5), ("steps", 3)] {
        assert_eq!(third[key], value, "{key}");
    }
    assert_eq!(
        (&third["sampler"], &third["guidance"]),
        (&"ddim".into(), &4.0.into())
    );
    assert_eq!(pixels(&out).len(), 10);
    let parameters = parameters(&out.join("images/00001-1.png"));
    let lines: Vec<&str> = parameters.lines().collect();
    assert_eq!(lines[..2], ["g f dc", "Negative prompt: dc"]);
    assert!(
        lines[2].starts_with("Steps: 3, Sampler: ddim, CFG scale: 4, Seed: 5, Size: 16x16, Model hash: "),
        "{parameters}"
    );
    assert!(image::open(out.join("contact-sheet.png")).unwrap().width() >= 32);
    assert_eq!(json(&out.join("generate.json"))["negative"], "dc");
}

#[test]
fn images_of_a_prompt_differ_and_seeds_make_others() {
    let workspace = Workspace::new();
    let first = pixels(&workspace.made("a", &[]));
    let other = pixels(&workspace.made("b", &["--seed", "6"]));
    assert!(largest_difference(&first, &other) > 20);
    assert_ne!(first["images/00000-0.png"], first["images/00000-1.png"]);
}

#[test]
fn batches_change_pixels_by_rounding_only() {
    let workspace = Workspace::new();
    for (name, sampler) in [
        ("ddim", &["--sampler", "ddim", "--eta", "1"][..]),
        ("ancestral", &["--sampler", "euler-a"]),
        ("solver", &["--sampler", "dpm++2m"]),
    ] {
        let made = |batch: &str| {
            let options = [sampler, &["--batch", batch]].concat();
            pixels(&workspace.made(&format!("{name}-{batch}"), &options))
        };
        let alone = made("1");
        for batch in ["3", "10"] {
            let off = largest_difference(&alone, &made(batch));
            assert!(off <= 2, "{name} in batches of {batch}: {off}");
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_and_makes_the_same() {
    let workspace = Workspace::new();
    let straight = workspace.made("straight", &["--batch", "2"]);
    let out = workspace.made("out", &["--batch", "2"]);
    // As a crash would leave it: images that have no record yet, one that is missing, a line cut off.
    let log = fs::read_to_string(out.join("images.jsonl")).unwrap();
    let kept: Vec<&str> = log.lines().take(5).collect();
    fs::write(
        out.join("images.jsonl"),
        format!("{}\n{{\"file\":\"ima", kept.join("\n")),
    )
    .unwrap();
    fs::remove_file(out.join("images/00000-1.png")).unwrap();
    fs::remove_file(out.join("contact-sheet.png")).unwrap();
    let output = workspace
        .generate("out", &["--batch", "2", "--format", "json"])
        .output()
        .unwrap();
    succeeded(&output);
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&summary["kept"], &summary["made"]), (&4.into(), &6.into()));
    assert!(largest_difference(&pixels(&straight), &pixels(&out)) <= 2);
    assert_eq!(
        fs::read(out.join("images.jsonl")).unwrap(),
        fs::read(straight.join("images.jsonl")).unwrap()
    );
    assert!(out.join("contact-sheet.png").is_file());
    // More images of the same prompts are an extension, too.
    let more = workspace.made("out", &["--images-per-prompt", "3"]);
    assert_eq!(records(&more).len(), 15);
}

#[test]
fn other_settings_or_prompts_in_the_same_folder_are_refused() {
    let workspace = Workspace::new();
    let out = workspace.made("out", &[]);
    let before = files(&out);
    for (options, says) in [
        (["--steps", "4"], "steps was 3, and is 4 now"),
        (["--sampler", "pndm"], "sampler was ddim, and is pndm now"),
        (
            ["--negative", "h"],
            "negative prompt was None, and is Some(\"h\") now",
        ),
        (
            ["--images-per-prompt", "1"],
            "holds images/00000-1.png, which is not among",
        ),
    ] {
        let text = refused(&workspace.generate("out", &options).output().unwrap());
        assert!(text.contains(says) && text.contains("--output"), "{text}");
    }
    fs::write(workspace.path("others.txt"), "h\nab\n").unwrap();
    let output = workspace.generate("out", &["--prompts", "others.txt"]).output();
    let text = refused(&output.unwrap());
    assert!(
        text.contains("number 0 was \"ab cd\", and is \"h\" now"),
        "{text}"
    );
    assert!(files(&out) == before, "a refused run changed the folder");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done() {
    let workspace = Workspace::new();
    let many = "ab cd\n".repeat(4000);
    fs::write(workspace.path("prompts.txt"), many).unwrap();
    let mut command = workspace.generate("out", &["--batch", "1"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = workspace.path("out/images.jsonl");
    let began = Instant::now();
    while fs::metadata(&log).map_or(0, |m| m.len()) == 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "no image was made");
        std::thread::sleep(Duration::from_millis(20));
    }
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupt.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = paragraph(&output, 130);
    let done = records(&workspace.path("out")).len();
    assert!(
        text.contains(&format!(
            "interrupted: {done} of 8000 images are in out; the same command goes on from there"
        )),
        "{text}"
    );
    assert_eq!(pixels(&workspace.path("out")).len(), done);
}

/// Runs with files of at most 2 KiB: more than an image, less than the records of all.
fn with_small_files(command: &Command) -> Output {
    let mut wrapped = Command::new("sh");
    // Without the trap the first file that is too large would end the program by a signal.
    wrapped.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"]);
    wrapped
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap());
    wrapped.output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_run_on_a_full_disk_can_be_resumed() {
    let workspace = Workspace::new();
    let straight = workspace.made("straight", &["--batch", "2"]);
    let text = refused(&with_small_files(&workspace.generate("out", &["--batch", "2"])));
    assert!(text.contains("cannot write"), "{text}");
    let output = workspace
        .generate("out", &["--batch", "2", "--format", "json"])
        .output()
        .unwrap();
    succeeded(&output);
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(summary["kept"].as_u64().unwrap() > 0, "{summary}");
    assert!(largest_difference(&pixels(&straight), &pixels(&workspace.path("out"))) <= 2);
}

#[test]
fn unusable_requests_are_refused_in_one_paragraph() {
    let workspace = Workspace::new();
    fs::write(workspace.path("empty.txt"), "").unwrap();
    for (options, says) in [
        (["--prompts", "none.txt"], "none.txt: cannot read"),
        (["--prompts", "empty.txt"], "empty.txt"),
        (["--steps", "0"], "--steps: is 0"),
        (["--batch", "0"], "--batch: is 0"),
        (["--guidance", "NaN"], "--guidance: is NaN"),
        (["--guidance-rescale", "2"], "--guidance-rescale: is 2"),
        (["--eta", "5"], "eta: is 5"),
        (["--steps", "2000"], "2000"),
        (
            ["--height", "13"],
            "--height: is 13, which is not a multiple of 8",
        ),
        (["--adapter", "none.safetensors"], "none.safetensors: cannot read"),
        (["--model", "none"], "none: is not a folder"),
    ] {
        let text = refused(&workspace.generate("out", &options).output().unwrap());
        assert!(text.contains(says), "{text}");
        assert!(!workspace.path("out").exists(), "{text}");
    }
}
