//! SVG elements and the finished drawing.

use std::fmt::Write;

use super::theme;

/// `text` as content or quoted attribute of XML and HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write most control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Where a text is anchored.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// Elements being written.
#[derive(Debug, Default)]
pub struct Canvas(String);

impl Canvas {
    fn element(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("writing to a string does not fail");
    }

    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64), dash: &str) {
        let dash = dash_attribute(dash);
        self.element(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"{dash}/>"#
        ));
    }

    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.element(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// A curve; `label` names it to the page's pointer readout.
    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)], dash: &str, label: Option<&str>) {
        let dash = dash_attribute(dash);
        let label = label.map_or_else(String::new, |label| format!(r#" data-label="{}""#, escape(label)));
        self.element(format_args!(r#"<polyline class="{class}"{dash}{label} points=""#));
        for (x, y) in points {
            self.element(format_args!("{x:.1},{y:.1} "));
        }
        self.0.push_str(r#""/>"#);
    }

    /// A filled rectangle with corner (`x`, `y`); `title` is what a pointer at rest on it shows.
    pub fn rect(
        &mut self,
        class: &str,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        opacity: f64,
        title: &str,
    ) {
        let title = match title {
            "" => String::new(),
            title => format!("<title>{}</title>", escape(title)),
        };
        self.element(format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill-opacity="{opacity:.2}">{title}</rect>"#
        ));
    }

    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        self.element(format_args!(
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius}"/>"#
        ));
    }

    /// The drawing is done. `description` is for those who cannot see it.
    pub fn finish(self, title: &str, description: String, (width, height): (f64, f64)) -> Figure {
        Figure {
            title: title.to_owned(),
            description,
            size: (width, height),
            data: String::new(),
            body: self.0,
        }
    }
}

fn dash_attribute(dash: &str) -> String {
    match dash {
        "" => String::new(),
        dash => format!(r#" stroke-dasharray="{dash}""#),
    }
}

/// A finished drawing.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// The same in words, with the values that matter.
    pub description: String,
    size: (f64, f64),
    data: String,
    body: String,
}

impl Figure {
    /// Adds what the page's pointer readout needs to turn pixels into values.
    pub(super) fn with_data(mut self, data: String) -> Self {
        self.data = format!(r#" data-plot="{}""#, escape(&data));
        self
    }

    /// An `<svg>` element for a page with the rules of [`super::page_rules`].
    pub fn inline(&self) -> String {
        let Self {
            size: (w, h),
            data,
            body,
            ..
        } = self;
        let label = escape(&format!("{}. {}", self.title, self.description));
        format!(
            r#"<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-label="{label}"{data}>{body}</svg>"#
        )
    }

    /// A file of its own.
    pub fn file(&self) -> String {
        let Self {
            size: (w, h), body, ..
        } = self;
        let (title, description) = (escape(&self.title), escape(&self.description));
        let rules = theme::file_rules();
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\">\
             <title>{title}</title><desc>{description}</desc><style>{rules}</style>{body}</svg>\n"
        )
    }
}
