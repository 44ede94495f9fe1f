use std::path::{Path, PathBuf};

use super::{Prompt, read};

/// Writes a file into a folder of its own and reads it.
fn read_text(name: &str, content: impl AsRef<[u8]>) -> crate::Result<Vec<Prompt>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    read(&path)
}

fn refusal(name: &str, content: impl AsRef<[u8]>) -> String {
    let error = read_text(name, content).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

fn texts(prompts: &[Prompt]) -> Vec<&str> {
    prompts.iter().map(|prompt| prompt.text.as_str()).collect()
}

#[test]
fn lines_are_prompts_whatever_ends_them() {
    let prompts = read_text("a.TXT", "\u{feff}a cat\r\n\r\n  \"a dog\", tab\there \n狐\na cat").unwrap();
    assert_eq!(texts(&prompts), ["a cat", "\"a dog\", tab\there", "狐", "a cat"]);
    assert!(prompts[0].fields.is_empty());
}

#[test]
fn quotation_marks_of_parti_prompts_are_text() {
    let text = "Prompt\tCategory\tChallenge\tNote\n\
                \"G I G G L E\" painted on a wall.\tIllustrations\tWriting & Symbols\t\n\
                bond\tAbstract\tBasic\tseveral meanings\n";
    let prompts = read_text("PartiPrompts.tsv", text).unwrap();
    assert_eq!(texts(&prompts), ["\"G I G G L E\" painted on a wall.", "bond"]);
    assert_eq!(prompts[0].fields["Challenge"], "Writing & Symbols");
    assert_eq!(prompts[0].fields["Note"], "");
    let names: Vec<_> = prompts[1].fields.keys().collect();
    assert_eq!(names, ["Category", "Challenge", "Note"]);
}

#[test]
fn cells_of_csv_may_be_quoted() {
    let prompts = read_text("a.csv", "id,caption\n7,\"a \"\"red\"\" cat,\nsitting\"\n").unwrap();
    assert_eq!(texts(&prompts), ["a \"red\" cat,\nsitting"]);
    assert_eq!(prompts[0].fields["id"], "7");
}

#[test]
fn json_lists_hold_strings_or_objects() {
    let prompts = read_text(
        "a.json",
        r#"["a cat", {"Prompt": "a dog", "n": 2, "nested": [1], "x": null}]"#,
    )
    .unwrap();
    assert_eq!(texts(&prompts), ["a cat", "a dog"]);
    let fields: Vec<_> = prompts[1]
        .fields
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(fields, [("n", "2"), ("x", "")]);

    let prompts = read_text("a.json", r#"{"anime": ["a cat"], "photo": ["a dog", "a fox"]}"#).unwrap();
    assert_eq!(prompts[2].text, "a fox");
    assert_eq!(
        prompts
            .iter()
            .map(|p| p.fields["set"].as_str())
            .collect::<Vec<_>>(),
        ["anime", "photo", "photo"]
    );
}

#[test]
fn json_lines_are_objects_or_strings() {
    let text = "{\"tag\": \"single_object\", \"include\": [{\"class\": \"bench\"}], \"prompt\": \"a bench\"}\n\n\"a cow\"\n";
    let prompts = read_text("a.jsonl", text).unwrap();
    assert_eq!(texts(&prompts), ["a bench", "a cow"]);
    assert_eq!(prompts[0].fields["tag"], "single_object");
    assert_eq!(prompts[0].fields.len(), 1);
}

#[test]
fn parquet_files_give_captions_and_plain_columns() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pairs/whole");
    let mut files: Vec<PathBuf> = path
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let train = files
        .iter()
        .find(|file| file.to_string_lossy().contains("train"))
        .unwrap();
    let prompts = read(train).unwrap();
    assert_eq!(prompts[0].text, "a red square");
    assert_eq!(prompts[0].fields["best_image_uid"], "uid-0");
    assert_eq!(prompts[0].fields["label_0"], "1");
    assert!(!prompts[0].fields.contains_key("jpg_0"));
    // A folder is its files, and each is a set.
    let all = read(&path).unwrap();
    assert!(all.len() > prompts.len());
    let stem = files[0].file_stem().unwrap().to_string_lossy();
    assert_eq!(all[0].fields["set"], stem);
}

#[test]
fn what_cannot_be_read_is_named() {
    for (name, content, expected) in [
        ("a.txt", &b"\n  \n"[..], "a.txt: holds no prompt"),
        ("a.tsv", b"", "a.tsv: holds no prompt"),
        ("a.tsv", b"Prompt\tNote\n", "a.tsv: holds no prompt"),
        ("a.json", b"", "a.json: holds no prompt"),
        ("a.txt", b"fine\nna\xefve\n", "a.txt, line 2: is not UTF-8"),
        (
            "a.tsv",
            b"Title\tNote\na\tb\n",
            "a.tsv: has no column with prompts, only Title, Note. Name the column prompt, or",
        ),
        ("a.csv", b"prompt,note\na,b,c\n", "found record with 3 fields"),
        ("a.json", b"[1]", "a.json, item 1: is not a list of prompts"),
        (
            "a.json",
            br#"[{"title": "x"}]"#,
            "a.json, item 1: has no column with prompts, only title",
        ),
        (
            "a.json",
            br#"{"prompt": "a cat"}"#,
            "a.json, prompt: is not a list of prompts",
        ),
        ("a.jsonl", b"\"a\"\n{\n", "a.jsonl, line 2: is not JSON"),
        ("a.jsonl", br#"{"prompt": 3}"#, "\"prompt\" is not a string"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read as parquet"),
        ("a.docx", b"", "a.docx: is not a kind of prompt file"),
    ] {
        let error = refusal(name, content);
        assert!(error.contains(expected), "{error}");
    }
    let error = read(Path::new("/nowhere/prompts")).unwrap_err().to_string();
    assert!(
        error.contains("cannot read") && error.contains("Check the path"),
        "{error}"
    );
}
