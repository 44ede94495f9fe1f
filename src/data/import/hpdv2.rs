//! HPDv2 (Wu et al. 2023, arXiv 2306.09341; `ymhao/HPDv2`, `zhwang/HPDv2`): a JSON array of prompts, each with the names of two
//! or more pictures. `human_preference` marks the preferred one of two with 1; `rank` orders several, 1 or 0 being the best.

use super::groups::by_score;
use super::list::{Comparison, Format};
use super::records::Fields;
use crate::pairs::{Choose, meet};

pub(super) fn format(choose: Choose) -> Format {
    Format {
        name: "hpdv2",
        remedy: "HPDv2 has objects with prompt, file_path (or image_path), and human_preference or rank.",
        choose,
        read,
    }
}

fn read<'a>(fields: &'a Fields, choose: Choose) -> Result<Vec<Comparison<'a>>, String> {
    let caption = fields.text(&["prompt"])?;
    let images = fields.texts(&["file_path", "image_path"])?;
    // Lower ranks are better, higher marks are.
    let (name, sign) = match fields.has("human_preference") {
        true => ("human_preference", 1.0),
        false => ("rank", -1.0),
    };
    let scores: Vec<f64> = fields.numbers(name)?.iter().map(|value| sign * value).collect();
    ranked(caption, &images, &scores, choose).map_err(|counts| format!("has {counts} values of {name}"))
}

/// Comparisons of pictures with a score each, higher being better; the counts of both if they differ.
pub(super) fn ranked<'a>(
    caption: &'a str,
    images: &[&'a str],
    scores: &[f64],
    choose: Choose,
) -> Result<Vec<Comparison<'a>>, String> {
    if images.len() != scores.len() || images.len() < 2 {
        return Err(format!("{} pictures and {}", images.len(), scores.len()));
    }
    let all: Vec<usize> = (0..images.len()).collect();
    let comparison = |pair: [usize; 2]| Comparison {
        caption,
        images: pair.map(|i| images[i]),
        preference: Some(by_score(pair.map(|i| scores[i]))),
        scores: None,
    };
    Ok(meet(&all, scores, choose).into_iter().map(comparison).collect())
}
