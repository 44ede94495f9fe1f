//! `side-by-side.png`: what the models make of the same prompts from the same noise.

use std::path::Path;

use image::RgbImage;

use super::scores::{ModelScores, ScoreRow};
use crate::picture::{Cell, Grid, write_png};
use crate::{Error, Result};

/// Rows of the sheet.
const ROWS: usize = 3;

/// Pictures in a row; as many prompts stand beside each other as fit with all their models.
const COLUMNS: usize = 6;

/// Writes the sheet: for the first prompts, whatever their scores, a picture per model with the first reward's score.
///
/// # Errors
/// A picture is gone, or the sheet cannot be written.
pub fn write(output: &Path, models: &[ModelScores], reward: Option<&str>) -> Result<()> {
    let shown = &models[..models.len().min(COLUMNS)];
    let Some(first) = shown.first().filter(|model| !model.rows.is_empty()) else {
        return Ok(());
    };
    let beside = COLUMNS / shown.len();
    let mut pictures: Vec<(RgbImage, String)> = Vec::new();
    for rows in first
        .rows
        .iter()
        .filter_map(|row| of_all(shown, row))
        .take(ROWS * beside)
    {
        for (column, (model, row)) in shown.iter().zip(rows).enumerate() {
            let folder = output.join("models").join(&model.identity.name);
            let score = reward.and_then(|name| Some(format!("{name} {:.2}", row.score(name)?)));
            let prompt = (column == 0).then(|| row.prompt.clone());
            let caption: Vec<String> = [score, prompt].into_iter().flatten().collect();
            pictures.push((read(&folder.join(&row.file))?, caption.join("\n")));
        }
    }
    if pictures.is_empty() {
        return Ok(());
    }
    let names = shown.iter().map(|model| model.identity.name.as_str());
    let sheet = Grid {
        headings: names.cycle().take(beside * shown.len()).collect(),
        cells: pictures
            .iter()
            .map(|(image, caption)| Cell { image, caption })
            .collect(),
        columns: beside * shown.len(),
        group: shown.len(),
        ..Grid::default()
    };
    write_png(&output.join("side-by-side.png"), &sheet.draw(), &[])
}

/// The rows of every model for the prompt of `row`, if it is the first picture of its prompt and all models have it.
fn of_all<'a>(models: &'a [ModelScores], row: &ScoreRow) -> Option<Vec<&'a ScoreRow>> {
    let place = |row: &ScoreRow| (row.prompt_index, row.image_index, row.seed);
    let first_seed = models[0].rows[0].seed;
    let wanted = place(row);
    if row.image_index != 0 || row.seed != first_seed {
        return None;
    }
    models
        .iter()
        .map(|model| model.rows.iter().find(|other| place(other) == wanted))
        .collect()
}

fn read(path: &Path) -> Result<RgbImage> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    crate::data::image::decode(&bytes).map_err(|problem| {
        Error::bad(
            path.display().to_string(),
            format!("is no picture any more: {problem}"),
            "Delete it and run the evaluation again.",
        )
    })
}
