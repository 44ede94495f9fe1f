//! What is said of an adapter that was made for another model: how many differences of each kind, some of each, and for
//! which kind of model it is.

use std::path::Path;

use super::compare::{Difference, Kind, differences};
use crate::adapter::BaseModel;
use crate::adapter::content::Content;
use crate::model_folder::ModelFolder;
use crate::{Error, Result};

/// Differences of a kind that are named.
const SHOWN: usize = 3;

/// Refuses `content`, read from `path`, unless every layer that it changes is in `model` in the same shape.
///
/// # Errors
/// It is not; or a network of the model cannot be read.
pub fn refuse(path: &Path, content: &Content, model: &ModelFolder) -> Result<()> {
    let found = differences(content, model)?;
    if !found.iter().any(|difference| difference.kind.is_fatal()) {
        return Ok(());
    }
    let all = match content {
        Content::Lora(modules) => format!("{} layers", modules.len()),
        Content::Full(file) => format!("{} weights", file.entries().len()),
    };
    let of_kind = |kind: Kind| {
        let these: Vec<&Difference> = found.iter().filter(|d| d.kind == kind).collect();
        (!these.is_empty()).then(|| format!("{} {} ({})", these.len(), said_of(kind), some(&these)))
    };
    let kinds = [Kind::Component, Kind::Name, Kind::Shape, Kind::Rank];
    let kinds: Vec<String> = kinds.into_iter().filter_map(of_kind).collect();
    let made_for = match content {
        Content::Lora(modules) => BaseModel::of(modules),
        Content::Full(_) => None,
    };
    let made_for = made_for.map_or(String::new(), |base| format!("it was trained on {base}; "));
    Err(Error::bad(
        path.display().to_string(),
        format!(
            "does not fit {}: {made_for}of its {all} {}",
            model.root().display(),
            kinds.join(", ")
        ),
        format!(
            "Give an adapter that was trained on this kind of model; `ortdpo adapter inspect {} --model {}` lists every \
             difference.",
            path.display(),
            model.root().display()
        ),
    ))
}

fn said_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Component => "are of networks that the model does not have",
        Kind::Name => "are not in the model",
        Kind::Shape => "have other shapes",
        Kind::Rank => "have larger ranks than they can use",
    }
}

fn some(differences: &[&Difference]) -> String {
    let named = |d: &&Difference| {
        let name = format!("`{}.{}`", d.component, d.name);
        match d.kind {
            Kind::Shape | Kind::Rank => format!("{name}: {}, the model's {}", d.adapter, d.model),
            Kind::Component | Kind::Name => name,
        }
    };
    let shown: Vec<String> = differences.iter().take(SHOWN).map(named).collect();
    match differences.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
