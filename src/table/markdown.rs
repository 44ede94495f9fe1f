//! Pipe tables of GitHub-flavoured Markdown, lined up so that they read well as they are.

use super::{Kind, Table};

pub(super) fn render(table: &Table) -> String {
    let head = table.columns.iter().map(|column| column.name.clone()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(table.shown("–"))
        .map(|row: Vec<String>| row.iter().map(|text| escaped(text)).collect())
        .collect();
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|i| {
            rows.iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        })
        .collect();
    let mut lines: Vec<String> = rows.iter().map(|row| line(table, row, &widths)).collect();
    lines.insert(1, rule(table, &widths));
    lines.join("\n")
}

fn line(table: &Table, row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(&table.columns).zip(widths);
    let cells: Vec<String> = cells
        .map(|((text, column), &width)| match column.kind {
            Kind::Text => format!("{text:width$}"),
            _ => format!("{text:>width$}"),
        })
        .collect();
    format!("| {} |", cells.join(" | "))
}

fn rule(table: &Table, widths: &[usize]) -> String {
    let rules: Vec<String> = (table.columns.iter().zip(widths))
        .map(|(column, &width)| match column.kind {
            Kind::Text => "-".repeat(width),
            _ => format!("{}:", "-".repeat(width - 1)),
        })
        .collect();
    format!("| {} |", rules.join(" | "))
}

/// One line, and no pipe that would end the cell.
fn escaped(text: &str) -> String {
    let line: Vec<&str> = text.split(['\n', '\r']).filter(|part| !part.is_empty()).collect();
    line.join(" ").replace('\\', "\\\\").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Format, Table};

    #[test]
    fn columns_are_lined_up_and_pipes_escaped() {
        let text = super::super::tests::example().render(Format::Markdown);
        let expected = "\
| model           |   n | clip_score |
| --------------- | --: | ---------: |
| base            | 200 |      0.250 |
| a\\|b, \"c\" & 50% |  -1 |      0.333 |
|                 |   – |          – |";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        let mut table = Table::new([Column::text("prompt")]);
        table.push(["two\r\nlines".into()]);
        assert!(table.render(Format::Markdown).ends_with("| two lines |"));
    }
}
