//! A list of our own making, for whoever has pictures and opinions: one JSON object a line (or in an array), in one of three
//! forms.
//!
//! - `chosen` and `rejected`, either of which may be a list; `score_chosen` and `score_rejected` of a single pair; `label: 0.5`
//!   for a tie
//! - `image_0`, `image_1`, and `label`: 1, 0 or 0.5 as in Pick-a-Pic, or null if nobody compared them; `score_0`, `score_1`
//! - `images` with `scores` (higher is better) or `ranks` (lower is better)

use super::hpdv2::ranked;
use super::list::{Comparison, Format};
use super::records::Fields;
use crate::data::pair::Preference;
use crate::pairs::Choose;

pub(super) fn format(choose: Choose) -> Format {
    Format {
        name: "jsonl",
        remedy: "Write objects such as {\"prompt\": \"a cat\", \"chosen\": \"a.png\", \"rejected\": \"b.png\"}; docs/data.md has all forms.",
        choose,
        read,
    }
}

const CHOSEN: &str = "chosen";

fn read<'a>(fields: &'a Fields, choose: Choose) -> Result<Vec<Comparison<'a>>, String> {
    let caption = fields.text(&["prompt", "caption", "text"])?;
    if fields.has("images") {
        let images = fields.texts(&["images"])?;
        let (name, sign) = match fields.has("scores") {
            true => ("scores", 1.0),
            false => ("ranks", -1.0),
        };
        let scores: Vec<f64> = fields.numbers(name)?.iter().map(|value| sign * value).collect();
        return ranked(caption, &images, &scores, choose).map_err(|counts| format!("has {counts} {name}"));
    }
    if fields.has("image_0") {
        return two(fields, caption).map(|comparison| vec![comparison]);
    }
    if !fields.has(CHOSEN) {
        return Err("lacks chosen and rejected, image_0 and image_1, or images".into());
    }
    let (chosen, rejected) = (fields.texts(&[CHOSEN])?, fields.texts(&["rejected"])?);
    for (name, images) in [(CHOSEN, &chosen), ("rejected", &rejected)] {
        if images.is_empty() {
            return Err(format!("has no picture in {name}"));
        }
    }
    let preference = match fields.number_if_any("label")? {
        None | Some(1.0) => Preference::First,
        Some(0.5) => Preference::Tie,
        Some(other) => {
            return Err(format!(
                "holds {other} as label of chosen, which is neither 1 nor 0.5"
            ));
        }
    };
    let scores = scores(fields, ["score_chosen", "score_rejected"])?;
    let pairs = chosen
        .iter()
        .flat_map(|chosen| rejected.iter().map(|rejected| [*chosen, *rejected]));
    let comparison = |images| Comparison {
        caption,
        images,
        preference: Some(preference),
        scores,
    };
    Ok(pairs.map(comparison).collect())
}

fn two<'a>(fields: &'a Fields, caption: &'a str) -> Result<Comparison<'a>, String> {
    let preference = match fields.number_if_any("label")? {
        None => None,
        Some(label) => Some(
            Preference::of_label(label)
                .ok_or_else(|| format!("holds {label} as label, which is none of 0, 0.5 and 1"))?,
        ),
    };
    Ok(Comparison {
        caption,
        images: [fields.text(&["image_0"])?, fields.text(&["image_1"])?],
        preference,
        scores: scores(fields, ["score_0", "score_1"])?,
    })
}

fn scores(fields: &Fields, names: [&str; 2]) -> Result<Option<[f32; 2]>, String> {
    let [first, second] = [fields.number_if_any(names[0])?, fields.number_if_any(names[1])?];
    Ok(first.zip(second).map(|(a, b)| [a as f32, b as f32]))
}
