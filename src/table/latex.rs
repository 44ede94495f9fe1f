//! A LaTeX `tabular` with the rules of the booktabs package; text is escaped.

use super::{Kind, Table};

pub(super) fn render(table: &Table) -> String {
    let alignment: String = table
        .columns
        .iter()
        .map(|column| if column.kind == Kind::Text { 'l' } else { 'r' })
        .collect();
    let head: Vec<String> = table.columns.iter().map(|column| escaped(&column.name)).collect();
    let rows = table.shown("--").map(|row| {
        let cells: Vec<String> = (row.iter().zip(&table.columns))
            .map(|(text, column)| match (column.kind, text.strip_prefix('-')) {
                // A hyphen is no minus sign.
                (Kind::Integer | Kind::Real { .. }, Some(number)) if number != "-" => format!("$-${number}"),
                _ => escaped(text),
            })
            .collect();
        format!("{} \\\\", cells.join(" & "))
    });
    let body: Vec<String> = rows.collect();
    format!(
        "% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{} \\\\\n\\midrule\n{}\n\\bottomrule\n\\end{{tabular}}",
        head.join(" & "),
        body.join("\n")
    )
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '±' => out.push_str("$\\pm$"),
            '|' => out.push_str("\\textbar{}"),
            '\n' | '\r' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Format;

    #[test]
    fn what_means_something_to_latex_is_escaped() {
        let text = super::super::tests::example().render(Format::Latex);
        let expected = "\
% \\usepackage{booktabs}
\\begin{tabular}{lrr}
\\toprule
model & n & clip\\_score \\\\
\\midrule
base & 200 & 0.250 \\\\
a\\textbar{}b, \"c\" \\& 50\\% & $-$1 & 0.333 \\\\
 & -- & -- \\\\
\\bottomrule
\\end{tabular}";
        assert_eq!(text, expected);
        assert_eq!(
            super::escaped(r"\a{b}^~"),
            r"\textbackslash{}a\{b\}\textasciicircum{}\textasciitilde{}"
        );
    }
}
