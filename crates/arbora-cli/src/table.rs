//! The one writer of tables, and of the numbers in them.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

/// Rows, the first being the titles, as a table that reads well as text and as Markdown. All rows have as many cells, of which the
/// first `names` are words and the others numbers.
pub fn table(rows: &[Vec<String>], names: usize) -> String {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    for (at, row) in rows.iter().enumerate() {
        let cells = row.iter().map(|cell| cell.replace('|', "\\|"));
        match at {
            0 => table.set_header(cells),
            _ => table.add_row(cells),
        };
    }
    for column in table.column_iter_mut().skip(names) {
        column.set_cell_alignment(CellAlignment::Right);
        // The line under the titles needs room for its colon.
        column.set_constraint(comfy_table::ColumnConstraint::LowerBoundary(
            comfy_table::Width::Fixed(5),
        ));
    }
    let text = table.to_string();
    let lines = text.lines().enumerate().map(|(at, line)| match at {
        1 => aligned(line, names),
        _ => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

/// The line under the titles, with what tells Markdown that all columns but the first `names` end at the right.
fn aligned(line: &str, names: usize) -> String {
    let columns = line.split_inclusive("-|").enumerate();
    let columns = columns.map(|(at, column)| {
        if at < names {
            column.to_owned()
        } else {
            column.replace("-|", ":|")
        }
    });
    columns.collect()
}

/// A whole number with a comma between groups of three digits.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn rows(rows: &[[&str; 2]]) -> Vec<Vec<String>> {
        rows.iter()
            .map(|row| row.map(String::from).into())
            .collect()
    }

    #[test]
    fn tables_line_up_whatever_their_cells_hold() {
        let rows = rows(&[["model", "µs"], ["a", "1.00 ± 0.25"], ["a longer name", ""]]);
        let text = table(&rows, 1);
        let widths: BTreeSet<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!((text.lines().count(), widths.len()), (4, 1), "{text}");
        let under = text.lines().nth(1).unwrap();
        assert!(under.ends_with("-:|") && under.starts_with("|--"), "{text}");
        assert_eq!(under.matches('|').count(), 3, "{text}");
        assert!(
            text.lines().nth(2).unwrap().ends_with("1.00 ± 0.25 |"),
            "{text}"
        );
        assert!(!table(&rows, 2).contains(':'), "no column of numbers");
    }

    #[test]
    fn digits_come_in_threes() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
    }
}
