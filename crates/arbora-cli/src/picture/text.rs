//! Lines of text as wide as there is room for.

use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider};
use std::sync::LazyLock;

static FONT: LazyLock<FontRef> =
    LazyLock::new(|| FontRef::new(dejavu::sans::regular()).expect("the bundled font is whole"));

/// The smallest text that is still read.
const SMALLEST: u32 = 10;

/// Width in pixels of a line of text in the bundled font, without kerning, which would make it a little narrower.
pub(super) fn width(text: &str, size: u32) -> f32 {
    let glyphs = FONT.charmap();
    let metrics = FONT.glyph_metrics(Size::new(size as f32), LocationRef::default());
    let advance = |character| metrics.advance_width(glyphs.map(character).unwrap_or_default());
    text.chars().filter_map(advance).sum()
}

/// Breaks text into lines at most `room` pixels wide: between words, or inside a word that fills more
/// than a line alone.
pub(super) fn wrap(text: &str, size: u32, room: i32) -> Vec<String> {
    let fits = |line: &str| width(line, size) <= room as f32;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let joined = lines.last().map(|line| format!("{line} {word}"));
        if let Some(joined) = joined.filter(|line| fits(line)) {
            lines.pop();
            lines.push(joined);
            continue;
        }
        let mut line = String::new();
        for character in word.chars() {
            line.push(character);
            if line.chars().count() > 1 && !fits(&line) {
                line.pop();
                lines.push(std::mem::replace(&mut line, character.into()));
            }
        }
        lines.push(line);
    }
    lines
}

/// One line at most `room` pixels wide: set smaller, down to 10 pixels, and then cut with an ellipsis.
pub(super) fn fit(text: &str, size: u32, room: i32) -> (String, u32) {
    let fits = |text: &str, size: u32| width(text, size) <= room as f32;
    let smallest = size.min(SMALLEST);
    if let Some(size) = (smallest..=size).rev().find(|size| fits(text, *size)) {
        return (text.into(), size);
    }
    let mut cut: Vec<char> = text.chars().collect();
    loop {
        cut.pop();
        let line: String = cut.iter().chain(&['…']).collect();
        if cut.is_empty() || fits(&line, smallest) {
            return (line, smallest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_text_keeps_every_word_and_fits() {
        let text =
            "What the policy reads for one query of a very long title with Unbrokenwords".repeat(3);
        let lines = wrap(&text, 17, 300);
        assert!(lines.len() > 3);
        assert!(
            lines.iter().all(|line| width(line, 17) <= 300.0),
            "{lines:?}"
        );
        assert_eq!(lines.join(" "), text);
        let one_word = "m".repeat(200);
        let lines = wrap(&one_word, 17, 300);
        assert!(lines.iter().all(|line| width(line, 17) <= 300.0));
        assert_eq!(lines.concat(), one_word);
        assert!(wrap("  ", 17, 300).is_empty());
    }

    #[test]
    fn fitted_text_shrinks_before_it_is_cut() {
        assert_eq!(fit("loss", 15, 300), ("loss".into(), 15));
        let (text, size) = fit("Log-likelihood of held-out images", 15, 220);
        assert_eq!(text, "Log-likelihood of held-out images");
        assert!(size < 15);
        let (text, size) = fit(&"long ".repeat(100), 15, 220);
        assert!(text.ends_with('…') && size == SMALLEST && width(&text, size) <= 220.0);
    }
}
