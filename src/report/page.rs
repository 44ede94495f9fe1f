//! The page around the sections.

use super::html::{Section, slug};
use crate::plot::{escape, page_rules, variables};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The whole file.
pub fn render(title: &str, notes: &[String], sections: &[Section]) -> String {
    let title = escape(title);
    let style = style();
    let ids = ids(sections);
    let contents: String = sections
        .iter()
        .zip(&ids)
        .map(|(section, id)| format!(r##"<a href="#{id}">{}</a>"##, escape(&section.heading)))
        .collect();
    let notes = notes_box(notes);
    let body: String = sections
        .iter()
        .zip(&ids)
        .map(|(section, id)| {
            let heading = escape(&section.heading);
            format!(
                r#"<section id="{id}"><h2>{heading}</h2>{}</section>"#,
                section.body
            )
        })
        .collect();
    let nonce = nonce(&body);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        r##"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="ortdpo {version}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style nonce="{nonce}">{style}</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<header><h1>{title}</h1><button type="button" id="theme" hidden>Dark</button></header>
<nav aria-label="Sections">{contents}</nav>
<main id="content">{notes}{body}</main>
<footer>Made by ortdpo {version}.</footer>
<div id="readout" role="status" hidden></div>
<script nonce="{nonce}">{SCRIPT}</script>
</body>
</html>
"##
    )
}

/// Anchors of the sections; equal headings are numbered.
fn ids(sections: &[Section]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for section in sections {
        let stem = slug(&section.heading);
        let id = match ids.contains(&stem) {
            true => format!("{stem}-{}", ids.len()),
            false => stem,
        };
        ids.push(id);
    }
    ids
}

fn notes_box(notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes
        .iter()
        .map(|note| format!("<li>{}</li>", escape(note)))
        .collect();
    format!(r#"<aside class="notes" aria-label="Notes"><ul>{items}</ul></aside>"#)
}

/// Colours of both themes, by the system's wish and by the button's, then the rules that use them.
fn style() -> String {
    let (light, dark) = (variables(false), variables(true));
    let drawings = page_rules();
    format!(
        ":root{{color-scheme:light;{light}}}\
         @media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\
         :root[data-theme=dark]{{color-scheme:dark;{dark}}}\n{drawings}\n{STYLE}"
    )
}

/// What lets exactly this page's style and script run. Nobody who writes a prompt can know it: it depends on
/// everything in the page.
fn nonce(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex()[..24].to_owned()
}
