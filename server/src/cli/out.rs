//! What a command prints: tables and sentences for people, one JSON document for programs.

use std::io::{ErrorKind, Write};

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Where answers go, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    json: bool,
}

/// A column of a table: its heading and the field that it shows.
pub(super) type Column = (&'static str, &'static str);

impl Out {
    /// Prints JSON if `json` is set.
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs are reading.
    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// Prints `text` as it is.
    pub(super) fn text(self, text: &str) -> Result<()> {
        print(text)
    }

    /// Prints a list: `rows` under `name`, and whether there are more.
    pub(super) fn list(
        self,
        name: &'static str,
        rows: Vec<Value>,
        has_more: bool,
        columns: &[Column],
    ) -> Result<()> {
        if self.json {
            return print_json(&json!({ name: rows, "has_more": has_more }));
        }
        if rows.is_empty() {
            return print(&format!("There are no {}.\n", name.replace('_', " ")));
        }
        let mut text = table(&rows, columns);
        if has_more {
            text.push_str("There are more; go on with --after and the last id, or use --limit.\n");
        }
        print(&text)
    }

    /// Prints one object: as it is for programs, line by line for people.
    pub(super) fn object(self, object: &Value) -> Result<()> {
        if self.json {
            return print_json(object);
        }
        print(&lines(object))
    }

    /// Prints that something was done: `object` for programs, `sentence` for people.
    pub(super) fn done(self, object: &Value, sentence: &str) -> Result<()> {
        if self.json {
            return print_json(object);
        }
        print(&format!("{sentence}\n"))
    }

    /// Says something that is no answer, on standard error.
    pub(super) fn note(self, sentence: &str) {
        // OK to ignore: a note that nobody can read is no failure.
        let _ = writeln!(std::io::stderr(), "keyward: {sentence}");
    }

    /// Says on standard error why the command failed.
    pub(super) fn failed(self, error: &Error) {
        self.note(&error.public);
        if self.json {
            let object = json!({ "error": { "code": error.code, "message": error.public } });
            // OK to ignore, as in `note`.
            let _ = writeln!(std::io::stderr(), "{object}");
        }
    }
}

fn print_json(object: &Value) -> Result<()> {
    // OK to unwrap into nothing: a tree of values is always printable.
    print(&format!("{object:#}\n"))
}

/// Writes to standard output. A reader that went away, such as `head`, has read enough.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(cause) => {
            let public = format!("standard output cannot be written ({})", cause.kind());
            Err(Error::unavailable(public))
        }
    }
}

/// Rows under headings, each column as wide as its widest value.
fn table(rows: &[Value], columns: &[Column]) -> String {
    let mut grid: Vec<Vec<String>> = vec![columns.iter().map(|(head, _)| (*head).into()).collect()];
    grid.extend(rows.iter().map(|row| {
        columns.iter().map(|(_, field)| cell(row.get(field).unwrap_or(&Value::Null))).collect()
    }));
    let width = |column: usize| {
        let cells = grid.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &grid {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let width = *width;
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// An object's fields, one a line, the names aligned.
fn lines(object: &Value) -> String {
    let Some(fields) = object.as_object() else {
        return format!("{}\n", cell(object));
    };
    let width = fields.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    fields.iter().map(|(name, value)| format!("{name:<width$}  {}\n", cell(value))).collect()
}

/// A value for people. Text that was stored before its control characters were refused cannot
/// drive the terminal.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => {
            text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
        }
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name}={}", cell(value)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_value() {
        let rows =
            [json!({ "id": "a", "n": 12 }), json!({ "id": "żółć", "n": null, "more": [1, 2] })];
        let text = table(&rows, &[("ID", "id"), ("N", "n"), ("MORE", "more")]);
        assert_eq!(text, "ID    N   MORE\na     12  -\nżółć  -   1, 2\n");
    }

    #[test]
    fn a_stored_text_cannot_drive_the_terminal() {
        assert_eq!(cell(&json!("a\u{1b}[31mb\n")), "a\u{fffd}[31mb\u{fffd}");
    }

    #[test]
    fn an_object_is_a_line_for_each_field() {
        let text = lines(&json!({ "id": "a", "is_active": true, "scopes": [] }));
        assert_eq!(text, "id         a\nis_active  yes\nscopes     -\n");
    }
}
