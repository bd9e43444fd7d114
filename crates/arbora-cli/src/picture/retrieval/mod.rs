//! The tree that one query searched: what was read, what was selected, and where that lies.
//!
//! After Tree Cross Attention (arXiv 2309.17388, section 3): a query descends from the root, and the
//! siblings of the nodes it descends into, with the last group of leaves, are the selected set. Every
//! leaf lies under exactly one selected node.

mod insets;

pub use insets::{ImageInset, SequenceInset};

use insets::{check_image, check_sequence, draw_image, strip};
use std::{collections::BTreeSet, ops::Range, path::Path};

use anyhow::{Result, ensure};
use arbora::tree::TokenTreeShape;

use super::svg::{Anchor, Colour, INK, PAPER, Place, Scene};
use super::text::{self, fit, wrap};
use super::{between, check_size, pixel_colour};

/// Up to this many nodes of height 0, every node of a tree is drawn. Of larger trees, what lies under
/// a selected or untouched node is drawn as one triangle.
const WHOLE: usize = 32;
const MARGIN: i32 = 24;
/// Room for the names of heights, left of the tree.
const HEIGHTS: i32 = 84;
/// Room for a probability outside of the outermost nodes.
const OVERHANG: i32 = 36;
/// The least width of a node without anything below it that is drawn.
const COLUMN: i32 = 48;
/// Trees with more to draw are squeezed into this width.
const WIDEST: i32 = 1800;
/// The least width of the whole picture, for the sake of its words.
const NARROWEST: i32 = 760;
/// The longer side of an enlarged image, unless the image is larger.
const IMAGE: usize = 272;
const GAP: i32 = 36;
const STRIP: i32 = 22;

const TITLE: u32 = 17;
const TEXT: u32 = 13;
const SMALL: u32 = 11;

// Nodes differ in shape as well as in colour. The blue and the ramp's vermillion are those of Okabe
// and Ito (2008); the ramp grows darker towards the leaves, which survives any kind of colour-blindness.
const DESCENDED: Colour = [0, 114, 178];
const OUTLINE: Colour = [70, 24, 10];
const UNTOUCHED: Colour = [176; 3];
const SUBTREE: Colour = [232; 3];
const EDGE: Colour = [200; 3];
const READ_EDGE: Colour = [130; 3];
const GHOST: Colour = [196; 3];
const UNSEEN: Colour = [226, 230, 238];
/// Selected leaves, and then selected nodes from low to high.
const RAMP: [Colour; 4] = [[120, 16, 40], [213, 94, 0], [240, 172, 62], [253, 231, 166]];

/// What one query read of one tree.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrievalPicture {
    /// Stands above the picture; long titles are wrapped.
    pub title: String,
    /// Lines under the title, such as the model's answer and the number of tokens selected.
    pub summary: Vec<String>,
    /// The tree, and the way of the query through it.
    pub tree: SearchedTree,
    /// The image whose pixels the leaves are.
    pub image: Option<ImageInset>,
    /// The sequence whose tokens the leaves are.
    pub sequence: Option<SequenceInset>,
}

/// A balanced tree that a search went through.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchedTree {
    shape: TokenTreeShape,
    length: usize,
    path: Vec<usize>,
    probabilities: Vec<Vec<f32>>,
}

/// One node of the tree.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    height: usize,
    state: NodeState,
    /// The policy's probability of choosing the node among its siblings, where it was asked.
    probability: Option<f32>,
    /// The first leaf slot under the node, whether or not a token fills it.
    first_leaf: usize,
    /// The number of tokens under the node; 0 for a ghost.
    leaves: usize,
}

/// What a search did with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeState {
    /// Part of the selected set, which the query attends to.
    Selected,
    /// On the path: read, and replaced by its children. The root counts as read.
    Descended,
    /// Never read.
    Untouched,
    /// A stored node over no token.
    Ghost,
}

impl SearchedTree {
    /// A tree and a search in it.
    ///
    /// - length: tokens of the example, at most those of the shape; nodes beyond are ghosts
    /// - path: the index of the node visited at each depth, root first, one more than there are
    ///   decisions, as a tree search returns it
    /// - probabilities: for each decision, root first, the probability of each stored child, from left
    ///   to right; empty if they are not known
    ///
    /// # Panics
    /// If the length is 0 or above the shape's tokens, the path does not lead from the root through
    /// children, or probabilities do not fit the path.
    #[track_caller]
    pub fn new(
        shape: TokenTreeShape,
        length: usize,
        path: &[usize],
        probabilities: &[Vec<f32>],
    ) -> Self {
        let (tokens, decisions) = (shape.tokens(), shape.decisions());
        assert!(
            (1..=tokens).contains(&length),
            "searched tree: length: expected 1 to {tokens}, got {length}"
        );
        assert!(
            path.len() == decisions + 1 && path[0] == 0,
            "searched tree: path: expected {} nodes from the root on, got {path:?}",
            decisions + 1
        );
        for (depth, pair) in (1..).zip(path.windows(2)) {
            let children = shape.children(shape.height() + 1 - depth, pair[0]);
            assert!(
                children.contains(&pair[1]),
                "searched tree: path at depth {depth}: expected one of {children:?}, got {}",
                pair[1]
            );
        }
        let known: Vec<usize> = probabilities.iter().map(Vec::len).collect();
        let heights = (0..=shape.height()).rev().zip(path).take(decisions);
        let expected = heights.map(|(height, node)| shape.children(height, *node).len());
        let expected: Vec<usize> = expected.collect();
        assert!(
            known.is_empty() || known == expected,
            "searched tree: probabilities: expected {expected:?} for the decisions, got {known:?}"
        );
        Self {
            shape,
            length,
            path: path.to_vec(),
            probabilities: probabilities.to_vec(),
        }
    }

    /// The selected nodes, from high to low and left to right: the height and the leaves of each.
    pub fn selected(&self) -> Vec<(usize, Range<usize>)> {
        let height = self.shape.height();
        let mut read = vec![self.node(height, 0)];
        for (height, parent) in (0..height).rev().zip(&self.path) {
            let children = self.shape.children(height + 1, *parent);
            read.extend(children.map(|index| self.node(height, index)));
        }
        read.retain(|node| node.state == NodeState::Selected);
        let selected = read.into_iter();
        selected
            .map(|node| (node.height, node.first_leaf..node.first_leaf + node.leaves))
            .collect()
    }

    fn node(&self, height: usize, index: usize) -> Node {
        let span = self.shape.span(height);
        let first_leaf = index * span;
        let leaves = self.length.saturating_sub(first_leaf).min(span);
        let depth = self.shape.height() - height;
        let on_path = |depth: usize, index: usize| self.path.get(depth) == Some(&index);
        let parent = self.shape.parent(height, index);
        // Children of a node on the path were read.
        let decision = parent.and_then(|parent| on_path(depth - 1, parent).then(|| depth - 1));
        let state = if leaves == 0 {
            NodeState::Ghost
        } else if height > 0 && on_path(depth, index) {
            NodeState::Descended
        } else if decision.is_some() || on_path(depth, index) {
            NodeState::Selected
        } else {
            NodeState::Untouched
        };
        let known = decision.and_then(|decision| self.probabilities.get(decision));
        let slot = index - parent.map_or(0, |parent| self.shape.children(height + 1, parent).start);
        Node {
            height,
            state,
            probability: known.map(|known| known[slot]),
            first_leaf,
            leaves,
        }
    }

    /// Whether the tree is small enough to draw every node.
    fn is_whole(&self) -> bool {
        self.shape.width(0) <= WHOLE
    }

    /// The colour of a selected node.
    fn colour(&self, height: usize) -> Colour {
        let highest = self.selected().first().map_or(0, |(height, _)| *height);
        if height == 0 || highest <= 1 {
            return RAMP[height.min(1)];
        }
        // Heights from 1 up share what the leaves leave.
        between(&RAMP[1..], (height - 1) as f64 / (highest - 1) as f64)
    }
}

/// Draws the tree, the path of the query and what it selected, as `NAME.svg` and `NAME.png`.
///
/// Nodes on the path are blue circles, selected nodes squares whose colour tells their height, the
/// leaves darkest. Nodes that were never read are grey. Beside the children of nodes on the path stands
/// the probability that the policy gave them. In trees of more than 32 leaf slots, what lies under a
/// node that was not descended into is one triangle with its number of leaves. A strip to scale under
/// the tree shows which leaves each selected node covers, and the insets show where these lie in an
/// image or a sequence, in the colours of the tree.
///
/// # Errors
/// If an inset does not fit the leaves, or a file cannot be written.
pub fn draw(picture: &RetrievalPicture, name: &Path) -> Result<()> {
    lay_out(picture)?.save(name)
}

fn lay_out(picture: &RetrievalPicture) -> Result<Scene> {
    let (tree, sequence) = (&picture.tree, picture.sequence.as_ref());
    if let Some(image) = &picture.image {
        check_image(image, tree.length)?;
    }
    if let Some(sequence) = sequence {
        check_sequence(sequence, tree.length)?;
    }
    let drawing = Drawing::new(tree, sequence);

    // What a sequence has to say stands under the tree, beside the image.
    let words = if sequence.is_some() { 300 } else { 0 };
    let image_left = MARGIN + HEIGHTS + drawing.width.max(words) + GAP;
    let right = picture
        .image
        .as_ref()
        .map_or(MARGIN + HEIGHTS + drawing.width, |image| {
            image_left + image.side(image.width).max(180)
        });
    let width = (right + MARGIN).max(NARROWEST);
    let mut scene = Scene::new([width, 0]);

    let room = width - 2 * MARGIN;
    let mut top = MARGIN - 4;
    top = paragraph(&mut scene, &picture.title, TITLE, [MARGIN, top], room);
    for line in &picture.summary {
        top = paragraph(&mut scene, line, TEXT, [MARGIN, top], room);
    }
    top = legend(&mut scene, &drawing, top + 8) + 16;

    // A picture wider than its tree has the tree in the middle.
    let spare = (width - MARGIN - right).max(0) / 2;
    let left = MARGIN + HEIGHTS + spare;
    let bottom = drawing.draw(&mut scene, [left, top]);
    let below = [left, bottom + 26];
    let bottom = match &picture.image {
        None => strip(&mut scene, &drawing, below, width - MARGIN),
        Some(image) => {
            let beside = image_left + spare;
            let bottom = strip(&mut scene, &drawing, below, beside - GAP);
            bottom.max(draw_image(&mut scene, tree, image, [beside, top]))
        }
    };
    scene.size[1] = bottom + MARGIN;
    Ok(scene)
}

/// Lines of text at most `room` wide; returns where they end.
fn paragraph(scene: &mut Scene, words: &str, size: u32, [left, top]: Place, room: i32) -> i32 {
    let line_height = size as i32 * 3 / 2 + 1;
    let mut y = top;
    for line in wrap(words, size, room) {
        scene.text(&line, size, Anchor::Start, [left, y + line_height / 2]);
        y += line_height;
    }
    y
}

/// A node that is drawn.
struct Spot {
    node: Node,
    parent: Option<usize>,
    /// Centre, from the left of the tree.
    x: i32,
    /// Width of the column of a node without drawn children.
    column: i32,
    /// Whether a triangle stands for what lies below.
    is_folded: bool,
    /// Which of its siblings the node is, from the left, and how many there are.
    sibling: (usize, usize),
    /// Stands below a leaf, or at the foot of a triangle.
    label: String,
    /// Whether the number of a leaf stands below its label.
    has_index: bool,
}

/// Where the nodes of a tree go.
struct Drawing<'a> {
    tree: &'a SearchedTree,
    sequence: Option<&'a SequenceInset>,
    /// Parents come before their children.
    spots: Vec<Spot>,
    width: i32,
    row: i32,
}

impl<'a> Drawing<'a> {
    fn new(tree: &'a SearchedTree, sequence: Option<&'a SequenceInset>) -> Self {
        let height = tree.shape.height();
        let mut drawing = Self {
            tree,
            sequence,
            spots: Vec::new(),
            width: 0,
            row: if height >= 10 { 50 } else { 62 },
        };
        drawing.place(None, [height, 0], (0, 1));
        let spots = &mut drawing.spots;
        let wanted: i32 = spots.iter().map(|spot| spot.column).sum();
        let mut left = OVERHANG;
        for spot in spots.iter_mut() {
            if wanted > WIDEST {
                spot.column = (spot.column * WIDEST / wanted).max(4);
                let (text, size) = fit(&spot.label, SMALL, spot.column);
                spot.label = if size < SMALL { String::new() } else { text };
                spot.has_index = false;
            }
            spot.x = left + spot.column / 2;
            left += spot.column;
        }
        drawing.width = left + OVERHANG;
        // Children come after their parents, so backwards all children are placed before a parent is.
        for parent in (0..spots.len()).rev() {
            let children = spots.iter().filter(|spot| spot.parent == Some(parent));
            let places: Vec<_> = children.map(|spot| spot.x).collect();
            if let (Some(first), Some(last)) = (places.first(), places.last()) {
                spots[parent].x = (first + last) / 2;
            }
        }
        drawing
    }

    /// Appends a node, by height and index, and what is drawn below it.
    fn place(
        &mut self,
        parent: Option<usize>,
        [height, index]: [usize; 2],
        sibling: (usize, usize),
    ) {
        let (tree, sequence) = (self.tree, self.sequence);
        let node = tree.node(height, index);
        let is_open = height == 0 || tree.is_whole() || node.state == NodeState::Descended;
        let number = node.first_leaf.to_string();
        let label = match (height, sequence) {
            _ if node.leaves == 0 => String::new(),
            (0, Some(sequence)) => sequence.labels[node.first_leaf].clone(),
            (0, None) => number.clone(),
            _ => node.leaves.to_string(),
        };
        let (label, size) = fit(&label, SMALL, 88);
        let has_index = height == 0 && node.leaves > 0 && sequence.is_some() && !tree.is_whole();
        let below = has_index.then(|| text::width(&number, SMALL));
        let widest = text::width(&label, size).max(below.unwrap_or(0.0)) as i32;
        // Higher triangles are a little wider, or they look like needles.
        let needed = (widest + 12).max(COLUMN) + 5 * height as i32;
        let spot = self.spots.len();
        self.spots.push(Spot {
            node,
            parent,
            x: 0,
            column: if is_open && height > 0 { 0 } else { needed },
            is_folded: !is_open && node.leaves > 0,
            sibling,
            label,
            has_index,
        });
        if is_open && height > 0 {
            let children = tree.shape.children(height, index);
            let count = children.len();
            for (slot, child) in children.enumerate() {
                self.place(Some(spot), [height - 1, child], (slot, count));
            }
        }
    }

    /// Draws the tree and returns where it ends.
    fn draw(&self, scene: &mut Scene, [left, top]: Place) -> i32 {
        let tree = self.tree;
        let bottom = top + 12 + tree.shape.height() as i32 * self.row;
        let y = |height: usize| bottom - height as i32 * self.row;
        let place = |spot: &Spot| [left + spot.x, y(spot.node.height)];
        for height in 0..=tree.shape.height() {
            let name = match height {
                0 => "leaves".into(),
                height => format!("height {height}"),
            };
            let at = [left + OVERHANG / 2 - 8, y(height)];
            scene.coloured_text(&name, SMALL, Anchor::End, at, READ_EDGE);
        }
        for spot in self.spots.iter().filter(|spot| spot.is_folded) {
            let ([x, y], half) = (place(spot), (spot.column / 2 - 4).max(2));
            let corners = [[x, y], [x + half, bottom], [x - half, bottom]];
            scene.polygon(&corners, SUBTREE, 1.0);
            scene.text(&spot.label, SMALL, Anchor::Middle, [x, bottom - 10]);
        }
        // Edges of the path last, above the others.
        for (wanted, width, colour) in [
            (NodeState::Untouched, 1, EDGE),
            (NodeState::Ghost, 1, EDGE),
            (NodeState::Selected, 2, READ_EDGE),
            (NodeState::Descended, 4, DESCENDED),
        ] {
            for spot in self.spots.iter().filter(|spot| spot.node.state == wanted) {
                if let Some(parent) = spot.parent.map(|parent| &self.spots[parent]) {
                    scene.line(place(parent), place(spot), width, colour);
                }
            }
        }
        for spot in &self.spots {
            let (node, [x, y]) = (spot.node, place(spot));
            if node.height == 0 && !spot.label.is_empty() {
                let colour = match node.state {
                    NodeState::Untouched => READ_EDGE,
                    _ => INK,
                };
                scene.coloured_text(&spot.label, SMALL, Anchor::Middle, [x, y + 20], colour);
                if spot.has_index {
                    let index = node.first_leaf.to_string();
                    scene.coloured_text(&index, SMALL, Anchor::Middle, [x, y + 37], READ_EDGE);
                }
            }
            if let Some(probability) = node.probability.filter(|_| node.leaves > 0) {
                // Above the node on its outer side, away from the edge; below inner nodes, because the
                // edges to the outer ones pass above them.
                let (slot, siblings) = spot.sibling;
                let is_inner = slot > 0 && slot + 1 < siblings;
                let parent = spot.parent.map_or(0, |parent| self.spots[parent].x);
                let is_left = match (is_inner, node.state) {
                    (true, NodeState::Descended) => parent > spot.x,
                    (true, _) => false,
                    (false, _) => 2 * slot + 1 < siblings,
                };
                let text = share(probability);
                let colour = match node.state {
                    NodeState::Descended => DESCENDED,
                    _ => INK,
                };
                let width = text::width(&text, SMALL).ceil() as i32;
                let (anchor, x, from) = if is_left {
                    (Anchor::End, x - 12, x - 12 - width)
                } else {
                    (Anchor::Start, x + 12, x + 12)
                };
                let is_below = is_inner && node.state == NodeState::Selected;
                let y = if is_below { y + 10 } else { y - 10 };
                if !is_below {
                    scene.rectangle([from, y - 7], [from + width, y + 7], PAPER);
                }
                scene.coloured_text(&text, SMALL, anchor, [x, y], colour);
            }
        }
        for spot in &self.spots {
            let colour = tree.colour(spot.node.height);
            mark(scene, spot.node.state, colour, place(spot));
        }
        let has_index = self.spots.iter().any(|spot| spot.has_index);
        bottom + if has_index { 47 } else { 30 }
    }
}

/// A probability in four characters.
fn share(probability: f32) -> String {
    match probability {
        tiny if tiny > 0.0 && tiny < 0.005 => "<.01".into(),
        _ => format!("{probability:.2}"),
    }
}

/// One node.
fn mark(scene: &mut Scene, state: NodeState, colour: Colour, [x, y]: Place) {
    match state {
        NodeState::Descended => scene.circle([x, y], 8, DESCENDED),
        NodeState::Untouched => scene.circle([x, y], 4, UNTOUCHED),
        NodeState::Ghost => {
            scene.circle([x, y], 4, GHOST);
            scene.circle([x, y], 2, PAPER);
        }
        NodeState::Selected => {
            for (reach, colour) in [(8, OUTLINE), (6, colour)] {
                scene.rectangle([x - reach, y - reach], [x + reach, y + reach], colour);
            }
        }
    }
}

/// Lines of marks and what they mean; returns where they end.
fn legend(scene: &mut Scene, drawing: &Drawing, top: i32) -> i32 {
    let tree = drawing.tree;
    let heights: BTreeSet<usize> = tree.selected().iter().map(|(height, _)| *height).collect();
    let has = |state| drawing.spots.iter().any(|spot| spot.node.state == state);
    let is_folded = drawing.spots.iter().any(|spot| spot.is_folded);
    let mut items = Vec::new();
    let mut item = |state, height, text: String| items.push((state, tree.colour(height), text));
    if has(NodeState::Descended) {
        item(NodeState::Descended, 0, "read, and descended into".into());
    }
    // The row of heights goes on; only the first is spelt out.
    let first = heights.iter().find(|height| **height > 0);
    for &height in &heights {
        let text = match height {
            0 => "selected leaf".into(),
            _ if Some(&height) == first => format!("selected node of height {height}"),
            _ => height.to_string(),
        };
        item(NodeState::Selected, height, text);
    }
    if is_folded {
        let text = "never read: a subtree, with its number of leaves";
        item(NodeState::Untouched, 0, text.into());
    } else if has(NodeState::Untouched) {
        item(NodeState::Untouched, 0, "never read".into());
    }
    if has(NodeState::Ghost) {
        item(NodeState::Ghost, 0, "over no token".into());
    }
    let (mut x, mut y) = (MARGIN, top + 10);
    for (state, colour, text) in items {
        let width = 30 + text::width(&text, SMALL) as i32;
        if x > MARGIN && x + width > scene.size[0] - MARGIN {
            (x, y) = (MARGIN, y + 24);
        }
        if state == NodeState::Untouched && is_folded {
            let corners = [[x + 8, y - 8], [x + 17, y + 8], [x - 1, y + 8]];
            scene.polygon(&corners, SUBTREE, 1.0);
        } else {
            mark(scene, state, colour, [x + 8, y]);
        }
        scene.text(&text, SMALL, Anchor::Start, [x + 22, y]);
        x += width + 14;
    }
    y + 12
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbora::tree::Layout;

    #[test]
    fn levels_mark_the_path_its_siblings_and_ghosts() {
        let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
        let probabilities = [[0.1, 0.9], [0.9, 0.1]].map(Vec::from);
        let tree = SearchedTree::new(shape, 5, &[0, 1, 2], &probabilities);
        let level = |height| (0..shape.width(height)).map(move |index| (height, index));
        let state = |(height, index)| tree.node(height, index).state;
        let states = [3, 2, 1, 0].map(|height| level(height).map(state).collect::<Vec<_>>());
        use NodeState::{Descended as D, Ghost as G, Selected as S, Untouched as U};
        assert_eq!(
            states,
            [
                vec![D],
                vec![S, D],
                vec![U, U, D, G],
                vec![U, U, U, U, S, G, G]
            ]
        );
        assert_eq!(tree.node(2, 1).probability, Some(0.9));
        assert_eq!((tree.node(3, 0).leaves, tree.node(1, 2).leaves), (5, 1));
        assert_eq!(tree.selected(), [(2, 0..4), (0, 4..5)]);
    }

    #[test]
    fn a_tree_that_nothing_read_is_one_subtree() {
        let shape = TokenTreeShape::new(512, 2, Layout::LeftFilled);
        let mut tree = SearchedTree::new(shape, 512, &[0; 9], &[]);
        tree.path.clear();
        let scene = lay_out(&RetrievalPicture {
            title: "untouched".into(),
            summary: Vec::new(),
            tree,
            image: None,
            sequence: None,
        });
        assert!(scene.unwrap().svg().contains(">512</text>"));
    }
}
