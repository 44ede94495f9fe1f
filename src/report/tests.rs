use super::evaluation::Evaluation;
use super::metrics::Metrics;
use super::*;

fn metrics(text: &str) -> Result<Metrics> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    std::fs::write(&path, text).unwrap();
    Metrics::read(&path)
}

#[test]
fn a_log_is_read_by_columns() {
    let log = metrics(
        "{\"step\":1,\"loss\":0.7,\"acc\":null,\"e_w\":2.0,\"ref_e_w\":1.5}\n\
         {\"step\":2,\"loss\":0.6,\"acc\":0.5,\"e_w\":3.0,\"rewards\":{\"clip\":20.5},\"bins\":[{\"p\":0.5,\"new\":1},{\"v\":null}]}\n\
         {\"step\":3,\"loss\":0.5,\"e_w\":1.0,\"ref_e_w\":1.25}\n\
         {\"step\":4,\"lo",
    )
    .unwrap();
    assert_eq!(log.column("loss"), [(1.0, 0.7), (2.0, 0.6), (3.0, 0.5)]);
    assert_eq!(log.column("acc"), [(2.0, 0.5)]);
    assert_eq!(log.column("rewards.clip"), [(2.0, 20.5)]);
    assert_eq!(log.difference("e_w", "ref_e_w"), [(1.0, 0.5), (3.0, -0.25)]);
    assert_eq!(log.bins.len(), 1);
    assert_eq!((log.bins[0].0, log.bins[0].1[0].p), (2, Some(0.5)));
    assert!(log.torn && log.steps == 3);
}

#[test]
fn a_damaged_line_of_a_log_is_located() {
    let error = metrics("{\"step\":1}\nnonsense\n{\"step\":2}\n").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error
            .to_string()
            .contains("metrics.jsonl:2: is not a JSON object with a step. Mend"),
        "{error}"
    );
}

#[test]
fn folders_are_told_apart_by_as_much_of_their_paths_as_it_takes() {
    let folders = ["/x/a/run", "/x/b/run", "/x/b/other"].map(PathBuf::from);
    assert_eq!(names(&folders), ["a/run", "b/run", "other"]);
}

/// An evaluation of two models whose scores differ by what `changes` says, prompt by prompt.
fn evaluation(changes: &[f64]) -> Evaluation {
    let folder = tempfile::tempdir().unwrap();
    for (model, factor) in [("after", 1.0), ("before", 0.0)] {
        let path = folder.path().join("models").join(model);
        std::fs::create_dir_all(&path).unwrap();
        let line = |(i, change): (usize, &f64)| {
            let lines = [-0.25, 0.25].iter().enumerate().map(|(seed, noise)| {
                let score = 10.0 + i as f64 + factor * change + noise;
                format!(
                    "{{\"file\":\"{i}.png\",\"prompt\":\"prompt {i}\",\"prompt_index\":{i},\"image_index\":0,\"seed\":{seed},\"judge\":{score}}}\n"
                )
            });
            lines.collect::<String>()
        };
        let lines: String = changes.iter().enumerate().map(line).collect();
        std::fs::write(path.join("scores.jsonl"), lines).unwrap();
    }
    std::fs::write(folder.path().join("manifest.json"), "{\"baseline\":\"before\"}").unwrap();
    Evaluation::read(folder.path(), "test".into()).unwrap()
}

#[test]
fn changes_are_ranked_against_the_baseline_by_the_mean_of_a_prompts_images() {
    let evaluation = evaluation(&[0.5, -2.0, 1.0, 0.0]);
    assert_eq!(evaluation.baseline().unwrap().name, "before");
    assert_eq!(evaluation.rewards, ["judge"]);
    let changes = ranking::changes(&evaluation.models[0], &evaluation.models[1], "judge");
    let ranked: Vec<(u64, f64)> = changes
        .iter()
        .map(|change| (change.prompt, change.by()))
        .collect();
    assert_eq!(ranked, [(2, 1.0), (0, 0.5), (3, 0.0), (1, -2.0)]);
    assert_eq!((changes[0].before, changes[0].after), (12.0, 13.0));
}

#[test]
fn a_gallery_with_little_room_holds_both_ends_and_some_of_the_middle() {
    let mut changes = vec![0.0; 60];
    (changes[17], changes[41]) = (3.0, -3.0);
    let evaluation = evaluation(&changes);
    let options = ReportOptions {
        prompts: 6,
        ..ReportOptions::default()
    };
    let gallery = gallery::section(&evaluation, &options).unwrap();
    assert_eq!(gallery.shown.len(), 6);
    assert!(
        gallery.shown.contains(&17) && gallery.shown.contains(&41),
        "{:?}",
        gallery.shown
    );
    assert!(gallery.shown.is_sorted());
    // The images were never made: each place says so.
    assert_eq!(gallery.images, 0);
    assert_eq!(gallery.notes.len(), 1);
}
