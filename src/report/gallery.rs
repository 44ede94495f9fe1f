//! Images side by side, by prompt.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, ImageReader};

use super::ReportOptions;
use super::evaluation::{Evaluation, Image, ImageKey, PromptIndex};
use super::html::Section;
use super::ranking::{anchor, changes, signed};
use crate::plot::{MINUS, escape, fixed};
use crate::{Error, Result};

/// Images of a prompt that are shown per model.
const PER_PROMPT: usize = 2;

/// The images of an evaluation.
pub struct Gallery {
    pub section: Option<Section>,
    /// Prompts in it.
    pub shown: Vec<PromptIndex>,
    /// Images in it.
    pub images: usize,
    /// What is amiss with the images.
    pub notes: Vec<String>,
}

/// Prompts with their images under every model: of all prompts those that improved or worsened the most by any reward,
/// then evenly spread ones, up to the limit.
pub fn section(evaluation: &Evaluation, options: &ReportOptions) -> Result<Gallery> {
    let prompts = evaluation.prompts();
    let chosen = choose(evaluation, &prompts, options.prompts);
    let mut gallery = Gallery {
        section: None,
        shown: chosen.iter().map(|(prompt, _)| *prompt).collect(),
        images: 0,
        notes: Vec::new(),
    };
    if chosen.is_empty() {
        return Ok(gallery);
    }
    let mut section = Section::new(format!("Images of {}", evaluation.name));
    section.say(&format!(
        "{} of {} prompts{}. Images in a row come from the same noise; differences are to {}.",
        chosen.len(),
        prompts.len(),
        match chosen.len() < prompts.len() {
            true => ": those that changed the most by any reward, and others evenly spread",
            false => "",
        },
        evaluation.baseline().map_or("the baseline", |model| &model.name),
    ));
    section.body.push_str(
        r#"<div class="find" hidden><label>Find a prompt <input type="search" autocomplete="off"></label><output aria-live="polite"></output></div>"#,
    );
    section.body.push_str(r#"<div class="cards">"#);
    let mut lost = 0;
    for (prompt, text) in chosen {
        let card = card(evaluation, prompt, text, options.image_size)?;
        section.body.push_str(&card.markup);
        gallery.images += card.images;
        lost += card.lost;
    }
    if lost > 0 {
        let name = &evaluation.name;
        gallery.notes.push(format!(
            "{name}: {lost} images are missing or damaged; their places are marked."
        ));
    }
    section.body.push_str("</div>");
    gallery.section = Some(section);
    Ok(gallery)
}

/// At most `limit` prompts, in their order.
fn choose<'a>(
    evaluation: &Evaluation,
    prompts: &[(PromptIndex, &'a str)],
    limit: usize,
) -> Vec<(PromptIndex, &'a str)> {
    let mut chosen: Vec<PromptIndex> = Vec::new();
    let mut take = |prompt: PromptIndex| {
        if chosen.len() < limit && !chosen.contains(&prompt) {
            chosen.push(prompt);
        }
    };
    if prompts.len() > limit {
        let pairs = evaluation
            .others()
            .iter()
            .flat_map(|model| evaluation.rewards.iter().map(move |reward| (model, reward)));
        let orders: Vec<_> = pairs
            .filter_map(|(model, reward)| Some(changes(evaluation.baseline()?, model, reward)))
            .collect();
        // A third of the room for either end of the orders, by turns.
        let depth = limit.div_ceil(3 * orders.len().max(1));
        for rank in 0..depth {
            for order in &orders {
                order.get(rank).into_iter().for_each(|change| take(change.prompt));
                order
                    .iter()
                    .rev()
                    .nth(rank)
                    .into_iter()
                    .for_each(|change| take(change.prompt));
            }
        }
    }
    let room = prompts.len().div_ceil(limit.max(1)).max(1);
    for start in 0..room {
        prompts
            .iter()
            .skip(start)
            .step_by(room)
            .for_each(|(prompt, _)| take(*prompt));
    }
    let kept = prompts.iter().filter(|(prompt, _)| chosen.contains(prompt));
    kept.copied().collect()
}

/// A prompt with its images.
struct Card {
    markup: String,
    images: usize,
    lost: usize,
}

fn card(evaluation: &Evaluation, prompt: PromptIndex, text: &str, size: u32) -> Result<Card> {
    let mut keys: Vec<ImageKey> = evaluation
        .models
        .iter()
        .flat_map(|model| model.of_prompt(prompt))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let (mut rows, mut images, mut lost) = (String::new(), 0, 0);
    for key in keys.into_iter().take(PER_PROMPT) {
        rows.push_str(r#"<div class="images">"#);
        for model in &evaluation.models {
            let Some(image) = model.images.get(&key) else {
                continue;
            };
            let before = evaluation
                .baseline()
                .and_then(|baseline| baseline.images.get(&key));
            let before = before.filter(|before| !std::ptr::eq(*before, image));
            let picture = picture(image, &model.name, size)?;
            match &picture {
                Picture::Shown(_) => images += 1,
                Picture::Lost(_) => lost += 1,
            }
            let (Picture::Shown(picture) | Picture::Lost(picture)) = picture;
            let scores = scores(image, before, &|reward| evaluation.digits(reward));
            let name = escape(&model.name);
            rows.push_str(&format!(
                "<figure>{picture}<figcaption><b>{name}</b>{scores}</figcaption></figure>"
            ));
        }
        rows.push_str("</div>");
    }
    let (id, text) = (anchor(evaluation, prompt), escape(text));
    Ok(Card {
        markup: format!(r#"<article class="card" id="{id}"><h3>{text}</h3>{rows}</article>"#),
        images,
        lost,
    })
}

/// Each reward's score with its difference to the baseline's image.
fn scores(image: &Image, before: Option<&Image>, digits: &dyn Fn(&str) -> usize) -> String {
    let line = |(reward, score): (&String, &f64)| {
        let digits = digits(reward);
        let change = before
            .and_then(|before| before.scores.get(reward))
            .map(|b| score - b);
        let change = change.map_or(String::new(), |by| match signed(by, digits + 1) {
            text if text.starts_with('+') => format!(r#" <span class="up">▲ {text}</span>"#),
            text if text.starts_with(MINUS) => format!(r#" <span class="down">▼ {text}</span>"#),
            _ => " <span>=</span>".into(),
        });
        format!(
            "{} <span>{}</span>{change}<br>",
            escape(reward),
            fixed(*score, digits)
        )
    };
    image.scores.iter().map(line).collect()
}

/// Markup of an image, or of the box that says why there is none.
enum Picture {
    Shown(String),
    Lost(String),
}

fn picture(image: &Image, model: &str, size: u32) -> Result<Picture> {
    let lost = |why: &str| Ok(Picture::Lost(format!(r#"<div class="lost">image {why}</div>"#)));
    let bytes = match std::fs::read(&image.file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return lost("missing");
        }
        Err(error) => return Err(Error::io(&image.file, "read")(error)),
    };
    let Some(embedded) = embed(bytes, size) else {
        return lost("damaged");
    };
    let Embedded { url, width, height } = embedded;
    let alt = escape(&format!("{} — by {model}", image.prompt));
    Ok(Picture::Shown(format!(
        r#"<img src="{url}" alt="{alt}" width="{width}" height="{height}" loading="lazy" decoding="async">"#
    )))
}

struct Embedded {
    url: String,
    width: u32,
    height: u32,
}

/// The image as a data URI: as it is if it is small enough, shrunk to a JPEG otherwise; `None` if it cannot be decoded.
fn embed(bytes: Vec<u8>, size: u32) -> Option<Embedded> {
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().ok()?;
    let format = reader.format()?;
    let image = reader.decode().ok()?;
    let (bytes, format, image) = match image.width().max(image.height()) > size {
        false => (bytes, format, image),
        true => {
            let small = DynamicImage::ImageRgb8(image.thumbnail(size, size).into_rgb8());
            let mut jpeg = Vec::new();
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 88);
            small.write_with_encoder(encoder).ok()?;
            (jpeg, ImageFormat::Jpeg, small)
        }
    };
    Some(Embedded {
        url: format!("data:{};base64,{}", format.to_mime_type(), STANDARD.encode(bytes)),
        width: image.width(),
        height: image.height(),
    })
}
