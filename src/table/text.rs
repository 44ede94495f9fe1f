//! Tables on a terminal: a line under the head and none elsewhere, as wide as the terminal at most.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, TableStyle};

use super::{Kind, Table};

pub(super) fn render(table: &Table) -> String {
    let mut printed = comfy_table::Table::new();
    printed
        .load_style(TableStyle::new().header_separator(LineStyle::none().fill('-').junction('-')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(table.columns.iter().map(|column| &column.name))
        .add_rows(table.shown("-"));
    for (column, of) in printed.column_iter_mut().zip(&table.columns) {
        column.set_padding((0, 2));
        if of.kind != Kind::Text {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    printed.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::super::Format;

    #[test]
    fn words_are_to_the_left_and_numbers_to_the_right() {
        let text = super::super::tests::example().render(Format::Text);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "model              n   clip_score");
        assert!(lines[1].chars().all(|c| c == '-'), "{text}");
        assert_eq!(lines[2], "base             200        0.250");
        assert_eq!(lines[3], "a|b, \"c\" & 50%    -1        0.333");
        assert_eq!(lines[4], "                   -            -");
    }
}
