//! Pages of which one part is written by a command and the rest by hand.

use crate::atomic_file;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

const END: &str = "<!-- end -->";

/// The line before the part that `command` makes.
fn begin(command: &str) -> String {
    format!("<!-- begin: made by `{command}` -->")
}

/// A page with the part that `command` makes replaced, and every other byte as it was.
pub fn put_generated(page: &str, command: &str, generated: &str) -> Result<String> {
    let begin = begin(command);
    let Some((before, rest)) = page.split_once(&begin) else {
        bail!("no line {begin}");
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("no line {END} after {begin}");
    };
    Ok(format!(
        "{before}{begin}\n\n{}\n\n{END}{after}",
        generated.trim()
    ))
}

/// A new page that starts with `text` and has room for the part that `command` makes.
pub fn with_room(text: &str, command: &str) -> String {
    format!("{}\n\n{}\n{END}\n", text.trim_end(), begin(command))
}

/// What is at `path`, or a new page with room for what `command` makes. Refused is a page without such a part.
pub fn open(path: &Path, start: &str, command: &str) -> Result<String> {
    let (folder, shown) = (atomic_file::folder_of(path), path.display());
    ensure!(
        folder.is_dir(),
        "{shown}: there is no folder {}",
        folder.display()
    );
    let ending = path.extension();
    ensure!(
        ending.is_none_or(|ending| !ending.eq_ignore_ascii_case("json")),
        "{shown}: expected a page, as x.md: its numbers are beside it in x.json"
    );
    let page = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => with_room(start, command),
        page => page.with_context(|| format!("cannot read {shown}"))?,
    };
    put_generated(&page, command, "").with_context(|| format!("in {shown}"))?;
    Ok(page)
}

/// Puts the generated part into the page at `path`, which is made where there is none.
pub fn update(path: &Path, start: &str, command: &str, generated: &str) -> Result<()> {
    let page = put_generated(&open(path, start, command)?, command, generated)?;
    atomic_file::write(path, page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_keeps_what_people_wrote() {
        let begin = begin("arbora compare");
        let page = format!("# Title\n\nBefore.\n\n{begin}\nold\n{END}\n\nAfter.\n");
        let once = put_generated(&page, "arbora compare", "new\n").unwrap();
        assert_eq!(
            once,
            format!("# Title\n\nBefore.\n\n{begin}\n\nnew\n\n{END}\n\nAfter.\n")
        );
        let again = put_generated(&once, "arbora compare", "new").unwrap();
        assert_eq!(again, once);
        assert!(put_generated(&once, "cargo xtask reproduce", "new").is_err());
        assert!(put_generated("# Title\n", "arbora compare", "new").is_err());
    }

    #[test]
    fn a_new_page_has_room_for_what_is_generated() {
        let page = with_room("# Title\n\nAbout.\n", "arbora compare");
        let page = put_generated(&page, "arbora compare", "new").unwrap();
        let begin = begin("arbora compare");
        assert_eq!(
            page,
            format!("# Title\n\nAbout.\n\n{begin}\n\nnew\n\n{END}\n")
        );
    }
}
