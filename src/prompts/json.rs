//! Prompts in JSON: lists, lists by name, and lines.

use std::path::Path;

use serde_json::Value;

use super::{Prompt, columns};
use crate::{Error, Result};

pub(super) fn read(text: &str, path: &Path) -> Result<Vec<Prompt>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let place = path.display().to_string();
    match parse(text, &place)? {
        Value::Array(items) => list(&items, &place),
        Value::Object(lists) => {
            let mut prompts = Vec::new();
            for (name, items) in &lists {
                let place = format!("{place}, {name}");
                let items = items.as_array().ok_or_else(|| not_prompts(&place))?;
                prompts.extend(list(items, &place)?.into_iter().map(|prompt| prompt.in_set(name)));
            }
            Ok(prompts)
        }
        _ => Err(not_prompts(&place)),
    }
}

pub(super) fn read_lines(text: &str, path: &Path) -> Result<Vec<Prompt>> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let place = format!("{}, line {}", path.display(), index + 1);
            item(&parse(line, &place)?, &place)
        })
        .collect()
}

fn parse(text: &str, place: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| Error::bad(place, format!("is not JSON: {error}"), "Mend the file."))
}

fn list(items: &[Value], place: &str) -> Result<Vec<Prompt>> {
    let numbered = items.iter().enumerate();
    numbered
        .map(|(index, value)| item(value, &format!("{place}, item {}", index + 1)))
        .collect()
}

/// A string, or an object with the prompt under one of its keys; nested values of an object are left out.
fn item(value: &Value, place: &str) -> Result<Prompt> {
    let object = match value {
        Value::String(text) => return Ok(Prompt::new(text.trim())),
        Value::Object(object) => object,
        _ => return Err(not_prompts(place)),
    };
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    let prompt = columns::prompt_column(&names).ok_or_else(|| columns::missing(place, &names))?;
    let text = object[names[prompt]].as_str().ok_or_else(|| {
        Error::bad(
            place,
            format!("\"{}\" is not a string", names[prompt]),
            "Give the prompt as text.",
        )
    })?;
    let others = object.iter().filter(|(name, _)| *name != names[prompt]);
    Ok(Prompt {
        text: text.trim().to_owned(),
        fields: others
            .filter_map(|(name, value)| Some((name.clone(), plain(value)?)))
            .collect(),
    })
}

/// A value that results can be grouped by.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn not_prompts(place: &str) -> Error {
    Error::bad(
        place,
        "is not a list of prompts",
        "Give a list of strings, or of objects with a \"prompt\"; several lists can stand in an object by name.",
    )
}
