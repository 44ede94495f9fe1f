//! The schema of a training configuration, for the loader and for editors.

use std::sync::LazyLock;

use serde_json::Value as Json;

use super::Config;
use crate::yaml::Schema;

/// What the loader checks a resolved configuration against.
pub static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    Schema::of::<Config>(|path| {
        format!(
            "Write it in a configuration file (`ortdpo train --config FILE`), or give --set {path}=VALUE."
        )
    })
});

/// The JSON Schema of a configuration file, for editors, as text.
///
/// Unlike a resolved configuration, a file may leave out the `kind` of a section that has one by default or from
/// its preset, and may leave anything to the command line.
pub fn for_editors() -> String {
    let mut schema = SCHEMA.json().clone();
    schema["title"] = "ortdpo configuration".into();
    if let Some(root) = schema.as_object_mut() {
        root.remove("required");
    }
    loosen(&mut schema);
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema has text keys only");
    text.push('\n');
    text
}

/// Makes nothing required; exactly one variant of a union then becomes any.
fn loosen(schema: &mut Json) {
    match schema {
        Json::Object(entries) => {
            let is_union = entries
                .get("oneOf")
                .is_some_and(|variants| variants[0]["properties"].is_object());
            if is_union && let Some(variants) = entries.remove("oneOf") {
                entries.insert("anyOf".into(), variants);
            }
            if entries.get("required").is_some_and(Json::is_array) {
                entries.remove("required");
            }
            entries.values_mut().for_each(loosen);
        }
        Json::Array(items) => items.iter_mut().for_each(loosen),
        _ => {}
    }
}
