//! Pieces of the page. Whatever was not written here passes through [`escape`].

use std::fmt::Display;

use crate::plot::{Figure, escape};

/// A part of the page with a heading of its own.
#[derive(Debug, Default)]
pub struct Section {
    pub heading: String,
    /// Markup.
    pub body: String,
    /// The plots in it, for those who want them as files.
    pub figures: Vec<Figure>,
}

impl Section {
    pub fn new(heading: impl Into<String>) -> Self {
        Self {
            heading: heading.into(),
            ..Self::default()
        }
    }

    /// Adds a paragraph of plain text.
    pub fn say(&mut self, text: &str) {
        self.body.push_str(&format!("<p>{}</p>", escape(text)));
    }

    /// Adds plots side by side, each with its values as a table behind a fold if it has one.
    pub fn plots(&mut self, figures: Vec<Figure>) {
        if figures.is_empty() {
            return;
        }
        self.body.push_str(r#"<div class="plots">"#);
        for figure in &figures {
            self.body
                .push_str(&format!("<figure>{}</figure>", figure.inline()));
        }
        self.body.push_str("</div>");
        self.figures.extend(figures);
    }
}

/// A cell of a table.
pub enum Cell {
    Text(String),
    Number(String),
    /// Markup made here.
    Markup(String),
}

impl Cell {
    pub fn text(text: impl Display) -> Self {
        Self::Text(text.to_string())
    }

    /// A value that may be unknown.
    pub fn number(value: Option<String>) -> Self {
        Self::Number(value.unwrap_or_else(|| "\u{2013}".into()))
    }
}

/// A table in a box of its own that scrolls when it is wider than the page. The first column names the rows.
pub fn table(caption: &str, head: &[String], rows: Vec<Vec<Cell>>) -> String {
    let caption = escape(caption);
    let heads: String = head
        .iter()
        .map(|text| format!(r#"<th scope="col">{}</th>"#, escape(text)))
        .collect();
    let rows: String = rows.into_iter().map(row).collect();
    format!(
        r#"<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption><span>{caption}</span></caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"#
    )
}

fn row(cells: Vec<Cell>) -> String {
    let cell = |(i, cell): (usize, Cell)| {
        let (class, content) = match cell {
            Cell::Text(text) => ("", escape(&text)),
            Cell::Number(text) => (r#" class="number""#, escape(&text)),
            Cell::Markup(markup) => ("", markup),
        };
        match i {
            0 => format!(r#"<th scope="row">{content}</th>"#),
            _ => format!("<td{class}>{content}</td>"),
        }
    };
    let cells: String = cells.into_iter().enumerate().map(cell).collect();
    format!("<tr>{cells}</tr>")
}

/// Markup behind a fold.
pub fn fold(summary: &str, content: &str) -> String {
    format!(
        "<details><summary>{}</summary>{content}</details>",
        escape(summary)
    )
}

/// Text as it is, such as a configuration.
pub fn verbatim(text: &str) -> String {
    format!(
        r#"<pre class="scroll" tabindex="0"><code>{}</code></pre>"#,
        escape(text)
    )
}

/// A name for anchors and files: lower-case letters, digits and hyphens.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        match c.is_ascii_alphanumeric() {
            true => slug.push(c.to_ascii_lowercase()),
            false if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            false => {}
        }
    }
    slug.trim_end_matches('-').to_owned()
}
