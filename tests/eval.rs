//! Evaluations end to end with tiny-sd: what is made, what is kept, which tables may be merged, what bad input is told.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::SystemTime;

use common::{ortdpo, stderr, stdout};
use ortdpo::eval::config::{EvalConfig, EvalPlan, json_schema};
use ortdpo::eval::results::Results;
use ortdpo::eval::scores::{self, ScoreRow};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> String {
    repository().join("models/tiny-sd").display().to_string()
}

/// A folder with four prompts of two categories; `judge` knows no yellow.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let prompts = "Prompt\tCategory\n\
                   a small apple on a blue background\tone\n\
                   a cat and a rocket on a yellow background\ttwo\n\
                   a big star on a red background\tone\n\
                   a bee and a key on a green background\ttwo\n";
    fs::write(folder.path().join("prompts.tsv"), prompts).unwrap();
    folder
}

/// `ortdpo eval` with two rewards and two steps, and `arguments` besides.
fn eval(folder: &Path, arguments: &[&str]) -> Output {
    let rewards = ["clip", "judge"].map(|name| {
        repository()
            .join("models/tiny-rewards")
            .join(name)
            .display()
            .to_string()
    });
    let mut command = ortdpo(folder);
    command
        .args(["eval", "--prompts", "prompts.tsv", "--guidance", "3", "--reward"])
        .arg(rewards.join(","));
    if !arguments.contains(&"--steps") {
        command.args(["--steps", "2"]);
    }
    command.args(arguments).output().unwrap()
}

fn ran(output: Output) -> Output {
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    let text = stderr(output);
    text[text.find("error: ").expect("an error is printed")..]
        .trim_end()
        .to_owned()
}

fn results(folder: &Path) -> Results {
    serde_json::from_slice(&fs::read(folder.join("results.json")).unwrap()).unwrap()
}

fn written(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn rows(folder: &Path, model: &str) -> Vec<ScoreRow> {
    scores::read(&folder.join("models").join(model)).unwrap()
}

/// Pictures of an evaluation as another program might leave them.
fn pictures(of: &Path, to: &Path, with_list: bool) {
    fs::create_dir_all(to).unwrap();
    let mut list = String::new();
    for (index, row) in rows(of, "base").iter().enumerate() {
        let name = format!("{index:03}.png");
        fs::copy(of.join("models/base").join(&row.file), to.join(&name)).unwrap();
        list += &format!("{}\n", serde_json::json!({"file": name, "prompt": row.prompt}));
    }
    if with_list {
        fs::write(to.join("images.jsonl"), list).unwrap();
    }
}

#[test]
fn a_model_that_is_added_is_the_only_one_that_runs() {
    let folder = workplace();
    let (base, out) = (format!("base={}", model()), folder.path().join("out"));
    ran(eval(
        folder.path(),
        &["--model", &base, "--seed", "0,1", "--output", "out"],
    ));
    assert!(
        results(&out).models[0].average_win_rate.is_none(),
        "one model is not compared"
    );
    let kept = [
        out.join("models/base/scores.jsonl"),
        out.join("models/base/seed-1/images/00003-0.png"),
    ];
    let times = kept.each_ref().map(|path| written(path));

    // The baseline's own pictures as a second model: every comparison is a tie.
    pictures(&out, &folder.path().join("copy"), true);
    let arguments = [
        "--model",
        &base,
        "--images",
        "copy=copy",
        "--seed",
        "0,1",
        "--group-by",
        "Category",
    ];
    let features = repository()
        .join("models/tiny-rewards/clip")
        .display()
        .to_string()
        + "=copy";
    let sets = ["--features", &features, "--output", "out", "--format", "markdown"];
    let arguments = [&arguments[..], &sets].concat();
    let output = ran(eval(folder.path(), &arguments));
    assert_eq!(kept.each_ref().map(|path| written(path)), times);
    assert!(!stderr(&output).contains("scores of base"), "{}", stderr(&output));
    let results = results(&out);
    let copy = &results.models[1];
    for (reward, result) in &copy.rewards {
        let scored = if reward == "judge" { 6 } else { 8 };
        let comparison = result.against_baseline.as_ref().unwrap();
        assert_eq!(
            (comparison.count.ties, comparison.win_rate.value),
            (scored, 0.5),
            "{reward}"
        );
        assert_eq!((comparison.difference.value, result.summary.n), (0.0, scored));
    }
    assert_eq!((copy.images, copy.unscored), (8, 2));
    assert!(
        stderr(&output).contains("001.png: prompt \"a cat and a rocket on a yellow background\": mentions")
    );
    // FID of a set against itself is 0 but for rounding; with two seeds there is a distance within each prompt.
    let names: Vec<&String> = copy.set_metrics.keys().collect();
    assert_eq!(names, ["FID clip", "KID clip", "Vendi clip", "diversity clip"]);
    assert_eq!(copy.set_metrics, results.models[0].set_metrics);
    assert!(copy.set_metrics["FID clip"].abs() < 1e-6 && copy.set_metrics["Vendi clip"] > 1.5);
    assert!(copy.set_metrics["diversity clip"] > 0.0);
    assert_eq!(results.groups.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(results.groups["two"][1].images, 4);
    let table = stdout(&output);
    assert!(
        table.contains("| copy  | clip   |    0 |    8 |      0 | 50.0 [50.0, 50.0] |"),
        "{table}"
    );
    assert_eq!(
        table.trim_end(),
        fs::read_to_string(out.join("table.md")).unwrap().trim_end()
    );
}

/// Means, differences and wins counted here, from the rows of scores.
#[test]
fn tables_say_what_the_scores_say_and_merge_only_under_one_manifest() {
    let folder = workplace();
    let (base, other) = (
        format!("base={}", model()),
        format!("other={}", folder.path().join("other").display()),
    );
    let arguments = ["--model", &base, "--images-per-prompt", "2"];
    ran(eval(
        folder.path(),
        &[&arguments[..], &["--output", "alone"]].concat(),
    ));
    // Pictures of another seed as another model.
    ran(eval(
        folder.path(),
        &[&arguments[..], &["--seed", "5", "--output", "other-seed"]].concat(),
    ));
    pictures(
        &folder.path().join("other-seed"),
        &folder.path().join("other"),
        false,
    );
    let both = [&arguments[..], &["--images", &other]].concat();
    ran(eval(folder.path(), &[&both[..], &["--output", "both"]].concat()));

    let both_folder = folder.path().join("both");
    let (a, b) = (rows(&both_folder, "base"), rows(&both_folder, "other"));
    assert_eq!((a.len(), b.len()), (8, 8));
    for (name, result) in &results(&both_folder).models[1].rewards {
        let scores = (0..8).filter_map(|i| Some((b[i].score(name)?, a[i].score(name)?)));
        let scores: Vec<(f64, f64)> = scores.collect();
        let difference: f64 = scores.iter().map(|(b, a)| b - a).sum::<f64>() / scores.len() as f64;
        let wins = scores.iter().filter(|(b, a)| b > a).count();
        let comparison = result.against_baseline.as_ref().unwrap();
        assert_eq!(
            (comparison.count.wins, comparison.count.n()),
            (wins, scores.len())
        );
        assert!((comparison.difference.value - difference).abs() < 1e-12);
        assert!(comparison.win_rate.interval.low <= comparison.win_rate.value);
    }

    // The second evaluation has both models; the first one the baseline alone, made anew with the same content.
    let one = format!("base={}", model());
    let arguments = ["--model", &one, "--images-per-prompt", "2", "--images"];
    let third = format!("third={}", folder.path().join("other").display());
    ran(eval(
        folder.path(),
        &[&arguments[..], &[&third, "--output", "third"]].concat(),
    ));
    let merge = |folders: &[&str]| {
        ortdpo(folder.path())
            .args(["eval", "--merge"])
            .args(folders)
            .output()
            .unwrap()
    };
    let text = stdout(&ran(merge(&[
        "both", "third", "--output", "merged", "--format", "json",
    ])));
    let merged: Results = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = merged.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["base", "other", "third"]);
    assert_eq!(merged.models[..2], results(&both_folder).models);
    assert!(Path::new(&rows(&folder.path().join("merged"), "base")[0].file).is_file());

    let error = complaint(&merge(&["both", "other-seed"]));
    assert!(
        error.contains("other-seed: was made under another manifest than both: seeds[0] is 5, not 0"),
        "{error}"
    );
}

#[test]
fn pictures_that_do_not_pair_up_with_prompts_are_named() {
    let folder = workplace();
    let missing = folder.path().join("missing");
    let base = format!("base={}", model());
    ran(eval(folder.path(), &["--model", &base, "--output", "out"]));
    pictures(&folder.path().join("out"), &missing, true);
    let list = fs::read_to_string(missing.join("images.jsonl")).unwrap();
    let shorter: Vec<&str> = list.lines().filter(|line| !line.contains("star")).collect();
    fs::write(missing.join("images.jsonl"), shorter.join("\n")).unwrap();
    let error = complaint(&eval(folder.path(), &["--images", "m=missing", "--output", "m"]));
    assert!(
        error.contains("holds 0 images of prompt 2, \"a big star on a red background\", where 1 are needed"),
        "{error}"
    );
    fs::remove_file(missing.join("images.jsonl")).unwrap();
    fs::remove_file(missing.join("002.png")).unwrap();
    let error = complaint(&eval(folder.path(), &["--images", "m=missing", "--output", "m"]));
    assert!(
        error.contains("holds 3 images without prompts, where 4 prompts with 1 each need 4"),
        "{error}"
    );
    // A folder of images made with other settings is not filled up with these.
    let error = complaint(&eval(
        folder.path(),
        &["--model", &base, "--steps", "3", "--output", "out"],
    ));
    assert!(error.contains("steps was 2, and is 3 now"), "{error}");
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let folder = workplace();
    let base = format!("base={}", model());
    let rewards = repository().join("models/tiny-rewards");
    let damaged = folder.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    for file in ["model.onnx", "head.safetensors"] {
        fs::copy(rewards.join("aesthetic").join(file), damaged.join(file)).unwrap();
    }
    let manifest = fs::read_to_string(rewards.join("aesthetic/reward.yaml")).unwrap();
    let manifest = manifest.replace("input: pixel_values", "input: pixels");
    fs::write(damaged.join("reward.yaml"), manifest).unwrap();
    let damaged = damaged.display().to_string();
    let with_reference = format!("{}=nowhere.npz", rewards.join("clip").display());
    for (arguments, expected) in [
        (&["--model", &model()][..], "has no name"),
        (
            &["--model", &base, "--model", &base],
            "models[1].name: is base again",
        ),
        (&["--model", &base, "--baseline", "bas"], "Did you mean base?"),
        (&["--model", &base, "--group-by", "Style"], "they have Category"),
        (&["--model", &base, "--reward", "cilp"], "reward cilp"),
        (&["--model", &base, "--sampler", "dddim"], "sampling.sampler"),
        (&["--model", &base, "--reward", &damaged], "has no input `pixels`"),
        (
            &["--model", &base, "--features", &with_reference],
            "nowhere.npz: cannot read",
        ),
    ] {
        let error = complaint(&eval(folder.path(), &[arguments, &["--output", "out"]].concat()));
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!folder.path().join("out/models").exists());
    }
    fs::write(folder.path().join("bad.yaml"), "models: []\nreward: [clip]\n").unwrap();
    let output = ortdpo(folder.path())
        .args(["eval", "--config", "bad.yaml"])
        .output()
        .unwrap();
    let error = complaint(&output);
    assert!(
        error.contains("bad.yaml:2: reward") && error.contains("Did you mean rewards?"),
        "{error}"
    );
}

/// Editors read the committed file, which `ortdpo eval --print-schema` writes; the examples are whole.
#[test]
fn the_committed_schema_is_current_and_the_examples_can_be_read() {
    let committed = fs::read_to_string(repository().join("docs/eval.schema.json")).unwrap();
    assert!(
        committed == json_schema(),
        "write it anew: ortdpo eval --print-schema > docs/eval.schema.json"
    );
    for name in ["eval-demo.yaml", "eval-pictures.yaml"] {
        let path: PathBuf = repository().join("examples").join(name);
        let (mut config, _) = EvalConfig::read(&path).unwrap();
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .starts_with("# yaml-language-server: $schema=../docs/eval.schema.json\n")
        );
        for prompts in &mut config.prompts {
            *prompts = repository().join("models/tiny-sd/prompts/test.txt");
        }
        config.group_by = None;
        EvalPlan::of(config).unwrap();
    }
}
