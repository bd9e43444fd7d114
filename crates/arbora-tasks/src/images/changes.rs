//! What was done to the pictures of a folder on their way to a set.

use std::fmt;

/// How many pictures of a folder were changed on their way to a set, and how.
///
/// It is shown as one line for people: only the changes that happened are named, and without any, it is only how
/// many pictures there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PictureChanges {
    /// All pictures, changed or not.
    pub pictures: usize,
    /// Turned or mirrored, as their EXIF data say.
    pub rotated: usize,
    /// Put on white, because some of their pixels were not opaque.
    pub transparent: usize,
    /// Rounded from 16 bits per channel to 8.
    pub from_16_bit: usize,
    /// Converted from the colours of printers, CMYK, without a colour profile.
    pub from_cmyk: usize,
    /// Made grey.
    pub made_grey: usize,
    /// Grey ones whose value became that of red, green and blue.
    pub made_colour: usize,
    /// Resized.
    pub resized: usize,
}

impl fmt::Display for PictureChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pictures", self.pictures)?;
        let changes = [
            (self.rotated, "turned as their EXIF data say"),
            (self.transparent, "with transparency put on white"),
            (self.from_16_bit, "rounded from 16 bits to 8"),
            (self.from_cmyk, "converted from CMYK"),
            (self.made_grey, "made grey"),
            (self.made_colour, "made colour from grey"),
            (self.resized, "resized"),
        ];
        let happened = changes.iter().filter(|(count, _)| *count > 0);
        happened
            .enumerate()
            .try_for_each(|(at, (count, what))| match at {
                0 => write!(f, ", of them {count} {what}"),
                _ => write!(f, ", {count} {what}"),
            })
    }
}
