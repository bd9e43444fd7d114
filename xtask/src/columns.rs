//! Tables by their columns.

/// A column of a table: its title, and what it says of a row.
pub type Column<T> = (&'static str, fn(&T) -> String);

/// A table of which the first `names` columns are words and the others numbers.
pub fn table<'a, T: 'a>(
    rows: impl IntoIterator<Item = &'a T>,
    names: usize,
    columns: &[Column<T>],
) -> String {
    let titles = columns.iter().map(|(title, _)| title.to_string());
    let mut cells: Vec<Vec<String>> = vec![titles.collect()];
    let row = |row| columns.iter().map(|(_, cell)| cell(row)).collect();
    cells.extend(rows.into_iter().map(row));
    crate::table::table(&cells, names)
}
