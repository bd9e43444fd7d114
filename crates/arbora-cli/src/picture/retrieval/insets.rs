//! What is drawn beside a tree: an image, or a sequence.

use super::*;

/// An image whose observed pixels are the leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageInset {
    /// Rows of the image.
    pub height: usize,
    /// Columns of the image.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// The image, `[height * width * channels]` in [-0.5, 0.5]: the truth, or what was observed.
    pub pixels: Vec<f32>,
    /// Row and column of each leaf, in the order of the leaves.
    pub leaves: Vec<(usize, usize)>,
    /// Row and column of the pixel that was asked for.
    pub query: (usize, usize),
}

/// A sequence whose tokens are the leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceInset {
    /// A short name of each leaf's token, in the order of the leaves.
    pub labels: Vec<String>,
    /// What was asked for.
    pub query: String,
    /// The leaf that holds the answer, where one does.
    pub answer: Option<usize>,
}

/// All leaves to scale, coloured by what covers them, with words up to the column `end`; returns where
/// it ends.
pub(super) fn strip(scene: &mut Scene, drawing: &Drawing, [left, top]: Place, end: i32) -> i32 {
    let (tree, sequence) = (drawing.tree, drawing.sequence);
    let leaves = tree.length;
    let (from, to) = (left + OVERHANG, left + drawing.width - OVERHANG);
    // A tree that is drawn whole has its leaves over their cells.
    let bounds: Vec<i32> = if tree.is_whole() {
        let mut ends = vec![from];
        for spot in drawing.spots.iter().filter(|spot| spot.column > 0) {
            ends.push(ends[ends.len() - 1] + spot.column);
        }
        ends
    } else {
        let width = i64::from(to - from);
        let bound = |leaf: usize| from + (width * leaf as i64 / leaves as i64) as i32;
        (0..=leaves).map(bound).collect()
    };
    let middle = |leaf: usize| (bounds[leaf] + bounds[leaf + 1]) / 2;
    let [what, many] = match sequence {
        Some(_) => ["token", "tokens"],
        None => ["leaf", "leaves"],
    };
    let caption = match leaves {
        1 => format!("the only {what}"),
        _ => format!("all {leaves} {many}, to scale"),
    };
    scene.text(&caption, SMALL, Anchor::Start, [from, top]);
    let answer = sequence.and_then(|sequence| sequence.answer);
    // Room for the mark of the answer between caption and strip.
    let top = top + if answer.is_some() { 24 } else { 12 };
    let bottom = top + STRIP;
    scene.rectangle([from, top], [bounds[leaves], bottom], SUBTREE);
    for (height, covered) in tree.selected() {
        let (first, last) = (bounds[covered.start], bounds[covered.end]);
        // Leaves come last and stay visible where they are narrower than a pixel. Wide cells are apart.
        let gap = i32::from(last - first > 6);
        let corner = [(last - gap).max(first + 2), bottom];
        scene.rectangle([first, top], corner, tree.colour(height));
    }
    let mut y = bottom + 6;
    if !tree.is_whole() {
        for leaf in BTreeSet::from([0, leaves / 4, leaves / 2, leaves * 3 / 4, leaves - 1]) {
            let x = middle(leaf);
            scene.line([x, bottom], [x, bottom + 4], 1, READ_EDGE);
            let number = leaf.to_string();
            scene.coloured_text(&number, SMALL, Anchor::Middle, [x, y + 8], READ_EDGE);
        }
        y += 18;
    }
    let Some(sequence) = sequence else {
        return y + 6;
    };
    let query = format!("query: {}", sequence.query);
    y = paragraph(scene, &query, TEXT, [from, y], end - from);
    if let Some(answer) = answer {
        let x = middle(answer);
        scene.coloured_text("▼", 14, Anchor::Middle, [x, top - 7], DESCENDED);
        let selected = tree.selected();
        let cover = selected.iter().find(|(_, leaves)| leaves.contains(&answer));
        let found = match cover {
            Some((0, _)) => "a selected leaf".to_owned(),
            Some((height, _)) => format!("inside a selected node of height {height}"),
            None => "under no selected node".to_owned(),
        };
        let name = &sequence.labels[answer];
        let words = format!("answer (blue mark): token {answer}, {name}: {found}");
        y = paragraph(scene, &words, TEXT, [from, y], end - from);
    }
    y
}

impl ImageInset {
    /// By how much the image is enlarged.
    pub(super) fn scale(&self) -> usize {
        (IMAGE / self.height.max(self.width)).clamp(1, 24)
    }

    /// The length, as drawn, of a number of pixels.
    pub(super) fn side(&self, pixels: usize) -> i32 {
        (pixels * self.scale()) as i32
    }
}

/// The image, and the same with each leaf in the colour of the node that covers it; returns where they
/// end.
pub(super) fn draw_image(
    scene: &mut Scene,
    tree: &SearchedTree,
    image: &ImageInset,
    [left, top]: Place,
) -> i32 {
    let at = |(row, column): (usize, usize)| row * image.width + column;
    let values = image.pixels.chunks(image.channels);
    let shown: Vec<_> = values.map(pixel_colour).collect();
    let mut covered = vec![UNSEEN; shown.len()];
    let selected = tree.selected();
    for (height, leaves) in &selected {
        for &pixel in &image.leaves[leaves.clone()] {
            covered[at(pixel)] = tree.colour(*height);
        }
    }
    let room = scene.size[0] - left - MARGIN;
    let paste = |scene: &mut Scene, caption: &str, colours: &[Colour], top: i32| {
        let y = paragraph(scene, caption, SMALL, [left, top], room);
        scene.pixels([left, y], image.width, image.scale(), colours);
        y
    };
    // A pixel in a colour, larger by a distance on every side.
    let square = |scene: &mut Scene, (row, column), top: i32, reach: i32, colour| {
        let [x, y] = [left + image.side(column), top + image.side(row)];
        let far = image.side(1) + reach;
        scene.rectangle([x - reach, y - reach], [x + far, y + far], colour);
    };
    let y = paste(scene, "image, with the queried pixel framed", &shown, top);
    for (reach, colour) in [(4, PAPER), (3, DESCENDED), (1, PAPER)] {
        square(scene, image.query, y, reach, colour);
    }
    square(scene, image.query, y, 0, shown[at(image.query)]);

    let top = y + image.side(image.height) + 14;
    let y = paste(scene, "what covers each pixel (blue: query)", &covered, top);
    for (_, leaves) in selected.into_iter().filter(|(height, _)| *height == 0) {
        for &pixel in &image.leaves[leaves] {
            square(scene, pixel, y, 1, OUTLINE);
            square(scene, pixel, y, 0, RAMP[0]);
        }
    }
    // Inside, so that it hides no neighbour.
    square(scene, image.query, y, 0, DESCENDED);
    if image.side(1) > 4 {
        square(scene, image.query, y, -2, covered[at(image.query)]);
    }
    y + image.side(image.height) + 14
}

pub(super) fn check_image(image: &ImageInset, leaves: usize) -> Result<()> {
    let (height, width, channels) = (image.height, image.width, image.channels);
    check_size("image", [height, width, channels])?;
    for (what, expected, got) in [
        ("pixels", height * width * channels, image.pixels.len()),
        ("leaves", leaves, image.leaves.len()),
    ] {
        ensure!(
            got == expected,
            "image: {what}: expected {expected}, got {got}"
        );
    }
    for &(row, column) in image.leaves.iter().chain([&image.query]) {
        ensure!(
            row < height && column < width,
            "image: expected a pixel of {height}x{width}, got row {row}, column {column}"
        );
    }
    Ok(())
}

pub(super) fn check_sequence(sequence: &SequenceInset, leaves: usize) -> Result<()> {
    let got = sequence.labels.len();
    ensure!(
        got == leaves,
        "sequence: labels: expected {leaves}, got {got}"
    );
    if let Some(answer) = sequence.answer {
        ensure!(
            answer < leaves,
            "sequence: answer: expected a token below {leaves}, got {answer}"
        );
    }
    Ok(())
}
