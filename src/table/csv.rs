//! Comma-separated values (RFC 4180) with all digits.

use super::{Cell, Table};

pub(super) fn render(table: &Table) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let head = table.columns.iter().map(|column| column.name.clone()).collect();
    let rows = table.rows.iter().map(|row| row.iter().map(field).collect());
    for row in std::iter::once(head).chain(rows) {
        let row: Vec<String> = row;
        writer
            .write_record(row)
            .expect("memory takes every record of equal length");
    }
    let bytes = writer.into_inner().expect("memory can be flushed");
    let text = String::from_utf8(bytes).expect("fields are UTF-8");
    text.trim_end_matches('\n').to_owned()
}

fn field(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Integer(number) => number.to_string(),
        Cell::Real(number) => number.to_string(),
        Cell::Missing => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;

    #[test]
    fn fields_are_quoted_where_needed_and_numbers_whole() {
        let text = super::super::tests::example().render(Format::Csv);
        let expected =
            "model,n,clip_score\nbase,200,0.25\n\"a|b, \"\"c\"\" & 50%\",-1,0.3333333333333333\n,,";
        assert_eq!(text, expected);
    }
}
