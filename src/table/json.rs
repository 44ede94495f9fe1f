//! A list of objects, keys in the order of the columns, a row a line.

use serde_json::{Map, Value};

use super::{Cell, Table};

pub(super) fn render(table: &Table) -> String {
    let rows: Vec<String> = table
        .rows
        .iter()
        .map(|row| {
            let names = table.columns.iter().map(|column| column.name.clone());
            let object: Map<String, Value> = names.zip(row.iter().map(value)).collect();
            format!("  {}", Value::Object(object))
        })
        .collect();
    match rows.is_empty() {
        true => "[]".to_owned(),
        false => format!("[\n{}\n]", rows.join(",\n")),
    }
}

/// JSON has no word for what is not a number; it becomes `null` too.
fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Text(text) => Value::from(text.as_str()),
        Cell::Integer(number) => Value::from(*number),
        Cell::Real(number) => Value::from(*number),
        Cell::Missing => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::{Column, Format, Table};

    #[test]
    fn rows_are_objects_with_whole_numbers() {
        let text = super::super::tests::example().render(Format::Json);
        let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[1]["clip_score"], Value::from(1.0 / 3.0));
        assert_eq!(rows[1]["model"], Value::from("a|b, \"c\" & 50%"));
        assert_eq!(rows[2]["n"], Value::Null);
        assert!(
            text.contains("\n  {\"model\":\"base\",\"n\":200,\"clip_score\":0.25},\n"),
            "{text}"
        );
        assert_eq!(Table::new([Column::text("a")]).render(Format::Json), "[]");
    }
}
