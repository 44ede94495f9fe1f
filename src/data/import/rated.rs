//! Single pictures that people liked or not, as lists: the CSV files of Diffusion-KTO (Li et al. 2024, arXiv 2404.04465) with
//! `file_path`, `caption` and `label`, which is `exclusive_win` or `exclusive_lose`; or 1 and 0, in CSV or JSON lines.

use std::path::Path;

use super::list::{Comparison, Format};
use super::records::{Fields, LISTS};
use crate::Result;
use crate::data::pair::Preference;
use crate::data::shards::{self, PARQUET};
use crate::pairs::Choose;

pub(super) const FORMAT: Format = Format {
    name: "rated",
    remedy: "Rated lists have file_path, caption, and label: exclusive_win or exclusive_lose, or 1 or 0.",
    choose: Choose::All,
    read,
};

/// Whether the data set is a list rather than parquet files with the pictures in them.
pub(super) fn is_listed(path: &Path, split: &str) -> Result<bool> {
    if path.is_file() {
        let extension = path.extension().and_then(|x| x.to_str());
        return Ok(extension.is_some_and(|x| LISTS.contains(&x)));
    }
    Ok(shards::find(path, split, &PARQUET).is_err() && shards::find(path, split, &LISTS).is_ok())
}

fn read(fields: &Fields, _: Choose) -> Result<Vec<Comparison<'_>>, String> {
    let image = fields.text(&["file_path", "file_name", "file", "image"])?;
    let preference = match fields.text(&["label"]) {
        Ok("exclusive_win" | "win" | "good") => Preference::First,
        Ok("exclusive_lose" | "lose" | "bad") => Preference::Second,
        _ => match fields.number("label")? {
            1.0 => Preference::First,
            0.0 => Preference::Second,
            other => return Err(format!("holds {other} as label, which is neither 1 nor 0")),
        },
    };
    Ok(vec![Comparison {
        caption: fields.text(&["caption", "prompt", "text"])?,
        images: [image, image],
        preference: Some(preference),
        scores: None,
    }])
}
