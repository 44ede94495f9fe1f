//! `ortdpo report`, run as a user runs it, on folders as `train` and `eval` leave them.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{ortdpo, stderr, stdout};
use image::{Rgb, RgbImage};

/// What someone may write into a prompt, a name or a setting.
const HOSTILE: &str = r#"</script><script>alert('1')</script><img src="http://example.com/x.png" onerror="alert(2)"> & "quoted""#;

fn run_folder(folder: &Path, steps: u64, seed: u64) {
    fs::create_dir_all(folder).unwrap();
    let line = |step: u64| {
        let loss = 0.69 / (1.0 + 0.01 * step as f64);
        let mut line = format!(
            r#"{{"step":{step},"loss":{loss},"lr":0.0001,"acc":0.6,"margin":0.001,"e_w":0.2,"e_l":0.21,"ref_e_w":0.19,"ref_e_l":0.2,"grad_norm":1.5,"grad_factor":0.5,"weight_mean":1.0,"seconds":0.1"#
        );
        if step.is_multiple_of(20) {
            line.push_str(r#","acc_init":0.7,"margin_init":0.01,"acc_ref":0.65,"margin_ref":0.008,"kl_ref_init":0.001,"d_ref_init":0.0001"#);
            let bin = |i: u64| format!(r#"{{"p":0.25,"w":{i}.5,"v":null,"margin":0.0{i},"acc":0.6}}"#);
            line.push_str(&format!(r#","bins":[{}]"#, [1, 2, 3, 4].map(bin).join(",")));
        }
        line + "}\n"
    };
    fs::write(
        folder.join("metrics.jsonl"),
        (1..=steps).map(line).collect::<String>(),
    )
    .unwrap();
    let summary = r#"{"initial":{"acc_init":0.5,"margin_init":0.0},"final":{"acc_init":0.7},"ceiling_acc":0.9,"steps":60,"seconds":71.0}"#;
    fs::write(folder.join("summary.json"), summary).unwrap();
    let config = format!("seed: {seed}\nobjective:\n  kind: dpo\nnote: {HOSTILE:?}\n");
    fs::write(folder.join("config.yaml"), config).unwrap();
}

fn eval_folder(folder: &Path) {
    for (model, gain) in [("base", 0.0), ("tuned", 0.5)] {
        let images = folder.join("models").join(model).join("seed-0");
        fs::create_dir_all(&images).unwrap();
        let mut lines = String::new();
        for i in 0..3u8 {
            let picture = RgbImage::from_pixel(8, 8, Rgb([80 * i, 10, 20]));
            picture.save(images.join(format!("{i}.png"))).unwrap();
            let row = serde_json::json!({"file": format!("seed-0/{i}.png"), "prompt": format!("{i} {HOSTILE}"),
                "prompt_index": i, "image_index": 0, "seed": 0, "clip": 20.0 + f64::from(i) + gain * f64::from(i)});
            lines.push_str(&format!("{row}\n"));
        }
        fs::write(folder.join("models").join(model).join("scores.jsonl"), lines).unwrap();
    }
    let rate = |value: f64| serde_json::json!({"value": value, "interval": {"low": value - 0.1, "high": value + 0.1}});
    let clip = serde_json::json!({"mean": 21.5, "standard_error": 0.25, "against_baseline":
        {"wins": 2, "ties": 1, "losses": 0, "win_rate": rate(0.833), "difference": rate(0.5)}});
    let results = serde_json::json!({"baseline": "base", "level": 0.95, "models": [
        {"name": "base", "images": 3, "rewards": {"clip": {"mean": 21.0, "standard_error": 0.25, "against_baseline": null}}},
        {"name": "tuned", "images": 3, "rewards": {"clip": clip}, "set_metrics": {HOSTILE: 1.5}, "unheard_of": [1]}]});
    fs::write(folder.join("results.json"), results.to_string()).unwrap();
    fs::write(folder.join("manifest.json"), r#"{"baseline":"base"}"#).unwrap();
}

fn report(folder: &Path, arguments: &[&str]) -> Output {
    let output = ortdpo(folder).arg("report").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// Values of an attribute, wherever it stands in a tag.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let mark = format!(" {name}=\"");
    html.split(&mark)
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect()
}

/// The page asks for nothing, and runs nothing that was not written for it.
fn assert_self_contained(html: &str) {
    for source in attributes(html, "src") {
        assert!(source.starts_with("data:image/"), "{source}");
    }
    for target in attributes(html, "href") {
        let inside =
            target == "data:," || html.contains(&format!(" id=\"{}\"", target.trim_start_matches('#')));
        assert!(inside, "{target}");
    }
    for forbidden in [
        "url(",
        "@import",
        "<iframe",
        "<object",
        "<script>",
        "fetch(",
        "onerror=\"",
        "alert('",
    ] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert_eq!(html.matches("<script").count(), 1);
    assert!(html.contains("default-src 'none'; img-src data:"));
}

#[test]
fn a_run_and_an_evaluation_make_a_page_that_needs_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    run_folder(&temp.path().join("run"), 60, 0);
    eval_folder(&temp.path().join("eval"));
    let output = report(
        temp.path(),
        &[
            "run",
            "eval",
            "-o",
            "report.html",
            "--svg",
            "plots",
            "--title",
            HOSTILE,
        ],
    );
    let html = fs::read_to_string(temp.path().join("report.html")).unwrap();
    assert_self_contained(&html);
    assert!(
        html.contains("&lt;script&gt;alert(&#39;1&#39;)"),
        "what was written is there as text"
    );
    // Six images, each with its prompt and model in words.
    assert_eq!(html.matches("src=\"data:image/png;base64,").count(), 6);
    assert_eq!(
        attributes(&html, "alt")
            .iter()
            .filter(|alt| alt.ends_with("by tuned"))
            .count(),
        3
    );
    for text in [
        "83.3 % [73.3 %, 93.3 %]",
        "21.50 ± 0.25",
        "▲ +1.000",
        "+0.500 [+0.400, +0.600]",
        "Held-out implicit accuracy",
        "Loss weight by bin",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(
        html.contains("Most improved") && !html.contains("Most worsened"),
        "no prompt worsened"
    );
    let plots: Vec<_> = fs::read_dir(temp.path().join("plots"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(
        stdout(&output).contains(&format!("{} plots, 6 images", plots.len())),
        "{}",
        stdout(&output)
    );
    for plot in &plots {
        let svg = fs::read_to_string(plot).unwrap();
        assert!(
            svg.starts_with("<?xml") && svg.ends_with("</svg>\n") && !svg.contains("var("),
            "{}",
            plot.display()
        );
    }
    assert!(
        plots
            .iter()
            .any(|plot| plot.ends_with("win-rate-against-base.svg")),
        "{plots:?}"
    );
}

#[test]
fn either_alone_makes_a_page() {
    let temp = tempfile::tempdir().unwrap();
    run_folder(&temp.path().join("run"), 5, 0);
    eval_folder(&temp.path().join("eval"));
    for (folder, there, not_there) in [
        ("run", "Loss", "Evaluation"),
        ("eval", "Evaluation", "Optimisation"),
    ] {
        report(temp.path(), &[folder, "-o", "page.html"]);
        let html = fs::read_to_string(temp.path().join("page.html")).unwrap();
        assert_self_contained(&html);
        assert!(
            html.contains(there) && !html.contains(&format!("<h2>{not_there}")),
            "{folder}"
        );
    }
}

#[test]
fn several_runs_share_their_charts_and_show_where_they_differ() {
    let temp = tempfile::tempdir().unwrap();
    run_folder(&temp.path().join("first"), 60, 0);
    run_folder(&temp.path().join("second"), 40, 7);
    report(temp.path(), &["first", "second", "-o", "page.html"]);
    let html = fs::read_to_string(temp.path().join("page.html")).unwrap();
    assert_self_contained(&html);
    assert_eq!(html.matches(">Loss</text>").count(), 1);
    assert!(html.contains("data-label=\"first\"") && html.contains("data-label=\"second\""));
    let differences = html.split("Where the configurations differ").nth(2).unwrap();
    let differences = differences.split("</table>").next().unwrap();
    assert!(
        differences.contains("seed") && differences.contains(">7<"),
        "{differences}"
    );
    assert!(!differences.contains("objective"), "{differences}");
}

#[test]
fn what_is_unfinished_or_damaged_is_shown_as_far_as_it_goes_and_said() {
    let temp = tempfile::tempdir().unwrap();
    let (run, eval) = (temp.path().join("run"), temp.path().join("eval"));
    run_folder(&run, 60, 0);
    let mut log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    log.truncate(log.len() - 30);
    fs::write(run.join("metrics.jsonl"), log).unwrap();
    fs::remove_file(run.join("summary.json")).unwrap();
    eval_folder(&eval);
    fs::remove_file(eval.join("models/tuned/seed-0/1.png")).unwrap();
    fs::write(eval.join("models/tuned/seed-0/2.png"), "no image").unwrap();
    fs::remove_file(eval.join("results.json")).unwrap();
    let output = report(temp.path(), &["run", "eval", "--format", "json"]);
    let summary: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(summary["images"], 4);
    let notes = summary["notes"].to_string();
    for note in [
        "stopped at step 59",
        "is cut off",
        "no results.json",
        "2 images are missing or damaged",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
    let html = fs::read_to_string(temp.path().join("report.html")).unwrap();
    assert!(
        html.contains("image missing")
            && html.contains("image damaged")
            && html.contains("stopped at step 59")
    );
}

#[test]
fn a_folder_that_is_neither_gets_one_clear_error() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("empty")).unwrap();
    for (folder, complaint) in [
        (
            "empty",
            "empty: holds no training run (metrics.jsonl), no evaluation (results.json) and no ablation (ablation.json). Give",
        ),
        ("nowhere", "nowhere: is not a folder. Give"),
    ] {
        let output = ortdpo(temp.path()).args(["report", folder]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let error = stderr(&output);
        assert!(
            error.contains(complaint) && error.trim_end().lines().count() == 1,
            "{error}"
        );
        assert!(!temp.path().join("report.html").exists());
    }
}
