//! Colours by name, for light and dark. Those of series follow Okabe and Ito's palette, which colour-blind people can
//! tell apart; dashes repeat what the colour says.

/// Colours of series before they repeat.
pub const SERIES: usize = 8;

/// Name, light, dark.
const COLOURS: [(&str, &str, &str); 15] = [
    ("ink", "#1c2127", "#e6e9ed"),
    ("muted", "#5b6570", "#a3adb8"),
    ("grid", "#dfe3e8", "#353c45"),
    ("paper", "#ffffff", "#1a1e24"),
    ("heat", "#08519c", "#7cc0f5"),
    ("low", "#b35806", "#f5a35c"),
    ("high", "#08519c", "#7cc0f5"),
    ("s0", "#0072b2", "#5bb8f0"),
    ("s1", "#d55e00", "#ff9355"),
    ("s2", "#00805d", "#36c99d"),
    ("s3", "#a8477f", "#e79cc8"),
    ("s4", "#8a6a00", "#ecc94b"),
    ("s5", "#5646a3", "#b3a5f5"),
    ("s6", "#4b5563", "#cbd2da"),
    ("s7", "#7a4a2b", "#d3a17f"),
];

/// Class, property, and the colour's name.
const SHAPES: [(&str, &str, &str); 11] = [
    ("grid", "stroke", "grid"),
    ("axis", "stroke", "muted"),
    ("rule", "stroke", "muted"),
    ("ink", "fill", "ink"),
    ("muted", "fill", "muted"),
    ("note", "fill", "muted"),
    ("note", "stroke", "paper"),
    ("paper", "fill", "paper"),
    ("heat", "fill", "heat"),
    ("low", "fill", "low"),
    ("high", "fill", "high"),
];

/// Declarations of one theme's colours as CSS variables: `--s0:#0072b2;…`.
pub fn variables(dark: bool) -> String {
    let declaration = |(name, light_colour, dark_colour): &(&str, &str, &str)| {
        format!("--{name}:{};", if dark { dark_colour } else { light_colour })
    };
    COLOURS.iter().map(declaration).collect()
}

/// The rules that give the drawings' classes their colours: by variable for a page, or as the light theme's values.
fn rules(colour: impl Fn(&str) -> String) -> String {
    let mut css: String = SHAPES
        .iter()
        .map(|(class, property, name)| format!(".plot .{class}{{{property}:{}}}", colour(name)))
        .collect();
    for series in 0..SERIES {
        let value = colour(&format!("s{series}"));
        css.push_str(&format!(
            ".plot .stroke{series}{{stroke:{value}}}.plot .fill{series}{{fill:{value}}}"
        ));
    }
    css.push_str(
        ".plot text{font-family:system-ui,Helvetica,Arial,sans-serif;font-size:12px}\
         .plot .title{font-size:13px;font-weight:600}\
         .plot .note{paint-order:stroke;stroke-width:4px;stroke-linejoin:round}\
         .plot polyline{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\
         .plot .raw{stroke-width:1;stroke-opacity:.3}",
    );
    css
}

/// Style sheet for a page that declares the [`variables`].
pub fn page_rules() -> String {
    rules(|name| format!("var(--{name})"))
}

/// Style sheet for a file on white paper.
pub fn file_rules() -> String {
    rules(|name| {
        let known = COLOURS.iter().find(|(candidate, ..)| *candidate == name);
        known.map_or_else(String::new, |(_, light, _)| (*light).to_owned())
    })
}
