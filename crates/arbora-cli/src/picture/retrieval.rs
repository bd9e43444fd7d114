//! The tree that one query searched: what was read, what was selected, and where that lies.
//!
//! After Tree Cross Attention (arXiv 2309.17388, section 3): a query descends from the root, and the
//! siblings of the nodes it descends into, with the last group of leaves, are the selected set. Every
//! leaf lies under exactly one selected node.

use std::{collections::BTreeSet, ops::Range, path::Path};

use anyhow::{Result, ensure};
use arbora::tree::TokenTreeShape;
use plotters::style::{RGBColor, text_anchor::HPos};

use super::{
    canvas::text_width,
    fit, pixel_colour,
    scene::{Label, Place, Scene, Shape},
    wrap,
};

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
const MAP: &str = "what covers each pixel (blue: query)";

const TITLE: u32 = 20;
const TEXT: u32 = 15;
const SMALL: u32 = 13;

// Nodes differ in shape as well as in colour. The blue and the ramp's vermillion are those of Okabe
// and Ito (2008); the ramp grows darker towards the leaves, which survives any kind of colour-blindness.
const DESCENDED: RGBColor = RGBColor(0, 114, 178);
const OUTLINE: RGBColor = RGBColor(70, 24, 10);
const UNTOUCHED: RGBColor = RGBColor(176, 176, 176);
const SUBTREE: RGBColor = RGBColor(232, 232, 232);
const EDGE: RGBColor = RGBColor(200, 200, 200);
const READ_EDGE: RGBColor = RGBColor(130, 130, 130);
const GHOST: RGBColor = RGBColor(196, 196, 196);
const PAPER: RGBColor = RGBColor(255, 255, 255);
const UNSEEN: RGBColor = RGBColor(226, 230, 238);
/// Selected leaves, and then selected nodes from low to high.
const RAMP: [RGBColor; 4] = [
    RGBColor(120, 16, 40),
    RGBColor(213, 94, 0),
    RGBColor(240, 172, 62),
    RGBColor(253, 231, 166),
];

/// What one query read of one tree. Build the levels with [`levels`], or by hand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetrievalPicture {
    /// Stands above the picture; long titles are wrapped.
    pub title: String,
    /// Lines under the title, such as the model's answer and the number of tokens selected.
    pub summary: Vec<String>,
    /// The nodes, root first, leaves last.
    pub levels: Vec<Level>,
    /// The image whose pixels the leaves are.
    pub image: Option<ImageInset>,
    /// The sequence whose tokens the leaves are.
    pub sequence: Option<SequenceInset>,
}

/// The nodes of one height, from left to right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// One node of the tree. Its parent is the last node of the level above that starts at or before
/// [`first_leaf`](Self::first_leaf).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Node {
    /// What the search did with the node.
    pub state: NodeState,
    /// The policy's probability of choosing the node among its siblings, where it was asked.
    pub probability: Option<f32>,
    /// The first leaf slot under the node, whether or not a token fills it.
    pub first_leaf: usize,
    /// The number of tokens under the node; 0 for a ghost.
    pub leaves: usize,
}

/// What a search did with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Part of the selected set, which the query attends to.
    Selected,
    /// On the path: read, and replaced by its children. The root counts as read.
    Descended,
    /// Never read.
    #[default]
    Untouched,
    /// A stored node over no token.
    Ghost,
}

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

/// The levels of a balanced tree that a search went through.
///
/// - length: tokens of the example, at most those of the shape; nodes beyond are ghosts
/// - path: the index of the node visited at each depth, root first, one more than there are decisions,
///   as a tree search returns it
/// - probabilities: for each decision, root first, the probability of each stored child, from left to
///   right; empty if they are not known
///
/// # Panics
/// If the length is 0 or above the shape's tokens, the path does not lead from the root through
/// children, or probabilities do not fit the path.
#[track_caller]
pub fn levels(
    shape: &TokenTreeShape,
    length: usize,
    path: &[usize],
    probabilities: &[Vec<f32>],
) -> Vec<Level> {
    assert!(
        (1..=shape.tokens()).contains(&length),
        "levels: length: expected 1 to {}, got {length}",
        shape.tokens()
    );
    let (height, decisions) = (shape.height(), shape.decisions());
    assert_eq!(
        path.len(),
        decisions + 1,
        "levels: path: expected {} nodes, got {}",
        decisions + 1,
        path.len()
    );
    assert_eq!(path[0], 0, "levels: path at depth 0: expected the root");
    assert!(
        probabilities.is_empty() || probabilities.len() == decisions,
        "levels: probabilities: expected {decisions} decisions, got {}",
        probabilities.len()
    );
    let mut levels: Vec<Level> = (0..=height)
        .rev()
        .map(|height| Level {
            nodes: (0..shape.width(height))
                .map(|index| {
                    let first_leaf = index * shape.span(height);
                    let leaves = shape.span(height).min(length.saturating_sub(first_leaf));
                    let state = match leaves {
                        0 => NodeState::Ghost,
                        _ => NodeState::Untouched,
                    };
                    Node {
                        state,
                        probability: None,
                        first_leaf,
                        leaves,
                    }
                })
                .collect(),
        })
        .collect();
    let mut mark = |depth: usize, index: usize, state: NodeState, probability: Option<f32>| {
        let node = &mut levels[depth].nodes[index];
        node.probability = probability;
        if node.leaves > 0 {
            node.state = state;
        }
    };
    for (depth, &visited) in path.iter().enumerate() {
        let above = height - depth;
        if above == 0 {
            mark(depth, visited, NodeState::Selected, None);
            continue;
        }
        if depth == 0 {
            mark(depth, visited, NodeState::Descended, None);
        }
        let children = shape.children(above, visited);
        let next = path.get(depth + 1).copied();
        assert!(
            next.is_none_or(|next| children.contains(&next)),
            "levels: path at depth {}: expected one of {children:?}, got {next:?}",
            depth + 1
        );
        let known = probabilities.get(depth);
        assert!(
            known.is_none_or(|known| known.len() == children.len()),
            "levels: probabilities at depth {depth}: expected {}, got {:?}",
            children.len(),
            known.map(Vec::len)
        );
        for (slot, child) in children.enumerate() {
            let state = match next == Some(child) {
                true => NodeState::Descended,
                false => NodeState::Selected,
            };
            mark(depth + 1, child, state, known.map(|known| known[slot]));
        }
    }
    levels
}

/// Draws the tree, the path of the query and what it selected, as PNG or SVG by the ending of `path`.
///
/// Nodes on the path are blue circles, selected nodes squares whose colour tells their height, the
/// leaves darkest. Nodes that were never read are grey. Beside the children of nodes on the path stands
/// the probability that the policy gave them. In trees of more than 32 leaf slots, what lies under a
/// node that was not descended into is one triangle with its number of leaves. A strip to scale under
/// the tree shows which leaves each selected node covers, and the insets show where these lie in an
/// image or a sequence, in the colours of the tree.
///
/// # Errors
/// If the levels are not those of a tree, an inset does not fit the leaves, the ending is neither `png`
/// nor `svg`, or the file cannot be written.
pub fn draw(picture: &RetrievalPicture, path: &Path) -> Result<()> {
    lay_out(picture)?.save(path)
}

fn lay_out(picture: &RetrievalPicture) -> Result<Scene> {
    let tree = Tree::new(&picture.levels)?;
    if let Some(image) = &picture.image {
        check_image(image, tree.leaves())?;
    }
    if let Some(sequence) = &picture.sequence {
        check_sequence(sequence, tree.leaves())?;
    }
    let drawing = Drawing::new(&tree, picture.sequence.as_ref());

    // What a sequence has to say stands under the tree, beside the image.
    let words = if picture.sequence.is_some() { 300 } else { 0 };
    let image_left = MARGIN + HEIGHTS + drawing.width.max(words) + GAP;
    let right = match &picture.image {
        Some(image) => image_left + image.side(image.width).max(180),
        None => MARGIN + HEIGHTS + drawing.width,
    };
    let width = (right + MARGIN).max(NARROWEST);
    let mut scene = Scene {
        size: [width, 0],
        shapes: Vec::new(),
        labels: Vec::new(),
    };

    let mut top = MARGIN;
    for (text, size) in [(&picture.title, TITLE)]
        .into_iter()
        .chain(picture.summary.iter().map(|line| (line, TEXT)))
    {
        for line in wrap(text, size, width - 2 * MARGIN) {
            let line_height = size as i32 + 6;
            let at = [MARGIN, top + line_height / 2];
            scene.labels.push(Label::new(line, size, HPos::Left, at));
            top += line_height;
        }
    }
    top = legend(&mut scene, &tree, &drawing, top + 8) + 16;

    // A picture wider than its tree has the tree in the middle.
    let spare = (width - MARGIN - right).max(0) / 2;
    let left = MARGIN + HEIGHTS + spare;
    let bottom = drawing.draw(&mut scene, &tree, [left, top]);
    let end = match &picture.image {
        Some(_) => image_left + spare - GAP,
        None => width - MARGIN,
    };
    let bottom = strip(
        &mut scene,
        &tree,
        &drawing,
        picture.sequence.as_ref(),
        [left, bottom + 26],
        end,
    );
    let beside = match &picture.image {
        Some(image) => draw_image(&mut scene, &tree, image, [image_left + spare, top]),
        None => top,
    };
    scene.size[1] = bottom.max(beside) + MARGIN;
    Ok(scene)
}

/// The nodes with their relations, checked.
struct Tree<'a> {
    levels: &'a [Level],
    /// For each node, the indices of its children one level below.
    children: Vec<Vec<Range<usize>>>,
    /// Whether anything under a node was read.
    read_below: Vec<Vec<bool>>,
    /// Selected nodes with their heights, from high to low and left to right.
    selected: Vec<(usize, &'a Node)>,
}

impl<'a> Tree<'a> {
    fn new(levels: &'a [Level]) -> Result<Self> {
        let roots = levels.first().map_or(0, |level| level.nodes.len());
        ensure!(
            roots == 1,
            "a picture of a retrieval: level 0: expected one root, got {roots}"
        );
        let mut children = Vec::new();
        for (depth, pair) in levels.windows(2).enumerate() {
            let [above, below] = [&pair[0].nodes, &pair[1].nodes];
            let ordered = below
                .windows(2)
                .all(|pair| pair[0].first_leaf < pair[1].first_leaf);
            ensure!(
                ordered && !below.is_empty(),
                "a picture of a retrieval: level {}: expected nodes from left to right",
                depth + 1
            );
            let start =
                |parent: &Node| below.partition_point(|node| node.first_leaf < parent.first_leaf);
            let ranges: Vec<_> = above
                .iter()
                .enumerate()
                .map(|(at, parent)| start(parent)..above.get(at + 1).map_or(below.len(), start))
                .collect();
            for (parent, range) in above.iter().zip(&ranges) {
                let leaves: usize = below[range.clone()].iter().map(|node| node.leaves).sum();
                ensure!(
                    leaves == parent.leaves,
                    "a picture of a retrieval: level {}: children of the node at leaf {}: expected \
                     {} leaves, got {leaves}",
                    depth + 1,
                    parent.first_leaf,
                    parent.leaves
                );
            }
            children.push(ranges);
        }
        if let Some(last) = levels.last() {
            let depth = levels.len() - 1;
            ensure!(
                last.nodes.iter().all(|node| node.leaves <= 1),
                "a picture of a retrieval: level {depth}: expected leaves of one token each"
            );
            let tokens = last.nodes.iter().filter(|node| node.leaves == 1);
            let mut numbers = tokens.map(|node| node.first_leaf).enumerate();
            ensure!(
                levels[0].nodes[0].leaves > 0 && numbers.all(|(at, number)| at == number),
                "a picture of a retrieval: level {depth}: expected tokens from leaf 0 on, without gaps"
            );
            children.push(vec![0..0; last.nodes.len()]);
        }
        let is_read =
            |node: &Node| matches!(node.state, NodeState::Selected | NodeState::Descended);
        let mut read_below: Vec<Vec<bool>> = levels
            .iter()
            .map(|level| vec![false; level.nodes.len()])
            .collect();
        for depth in (0..levels.len() - 1).rev() {
            for (at, range) in children[depth].iter().enumerate() {
                read_below[depth][at] = range.clone().any(|child| {
                    read_below[depth + 1][child] || is_read(&levels[depth + 1].nodes[child])
                });
            }
        }
        let selected = levels
            .iter()
            .zip((0..levels.len()).rev())
            .flat_map(|(level, height)| level.nodes.iter().map(move |node| (height, node)))
            .filter(|(_, node)| node.state == NodeState::Selected)
            .collect();
        Ok(Self {
            levels,
            children,
            read_below,
            selected,
        })
    }

    fn node(&self, depth: usize, at: usize) -> &Node {
        &self.levels[depth].nodes[at]
    }

    /// The number of tokens.
    fn leaves(&self) -> usize {
        self.node(0, 0).leaves
    }

    fn height(&self, depth: usize) -> usize {
        self.levels.len() - 1 - depth
    }

    /// Whether the tree is small enough to draw every node.
    fn is_whole(&self) -> bool {
        self.levels
            .last()
            .is_some_and(|level| level.nodes.len() <= WHOLE)
    }

    /// The colour of a selected node.
    fn colour(&self, height: usize) -> RGBColor {
        let highest = self.selected.first().map_or(0, |(height, _)| *height);
        if height == 0 || highest <= 1 {
            return RAMP[height.min(1)];
        }
        // Heights from 1 up share what the leaves leave.
        let at = (height - 1) as f64 / (highest - 1) as f64 * (RAMP.len() - 2) as f64;
        let from = (at as usize).min(RAMP.len() - 3);
        let [RGBColor(a, b, c), RGBColor(d, e, f)] = [RAMP[1 + from], RAMP[2 + from]];
        let mix = |from: u8, to: u8, share: f64| {
            (f64::from(from) * (1.0 - share) + f64::from(to) * share).round() as u8
        };
        let share = at - from as f64;
        RGBColor(mix(a, d, share), mix(b, e, share), mix(c, f, share))
    }

    /// For each leaf, the height of the selected node over it.
    fn cover(&self) -> Vec<Option<usize>> {
        let mut cover = vec![None; self.leaves()];
        for &(height, node) in &self.selected {
            let end = (node.first_leaf + node.leaves).min(cover.len());
            cover[node.first_leaf.min(end)..end].fill(Some(height));
        }
        cover
    }
}

/// A node that is drawn.
struct Spot {
    depth: usize,
    at: usize,
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
struct Drawing {
    /// Parents come before their children.
    spots: Vec<Spot>,
    width: i32,
    row: i32,
}

impl Drawing {
    fn new(tree: &Tree, sequence: Option<&SequenceInset>) -> Self {
        let mut drawing = Self {
            spots: Vec::new(),
            width: 0,
            row: if tree.levels.len() > 10 { 50 } else { 62 },
        };
        drawing.place(tree, sequence, None, 0, 0, (0, 1));
        let columns = |spots: &[Spot]| spots.iter().map(|spot| spot.column).sum::<i32>();
        let wanted = columns(&drawing.spots);
        if wanted > WIDEST {
            for spot in &mut drawing.spots {
                spot.column = (spot.column * WIDEST / wanted).max(4);
                let (text, size) = fit(&spot.label, SMALL, spot.column);
                spot.label = if size < SMALL { String::new() } else { text };
                spot.has_index = false;
            }
        }
        let mut left = OVERHANG;
        for spot in &mut drawing.spots {
            spot.x = left + spot.column / 2;
            left += spot.column;
        }
        drawing.width = left + OVERHANG;
        // Children come after their parents, so backwards all children are placed before a parent is.
        for parent in (0..drawing.spots.len()).rev() {
            let children = || {
                drawing
                    .spots
                    .iter()
                    .filter(|spot| spot.parent == Some(parent))
            };
            let ends = children()
                .map(|spot| spot.x)
                .min()
                .zip(children().map(|spot| spot.x).max());
            if let Some((first, last)) = ends {
                drawing.spots[parent].x = (first + last) / 2;
            }
        }
        drawing
    }

    fn place(
        &mut self,
        tree: &Tree,
        sequence: Option<&SequenceInset>,
        parent: Option<usize>,
        depth: usize,
        at: usize,
        sibling: (usize, usize),
    ) {
        let node = tree.node(depth, at);
        let children = tree.children[depth][at].clone();
        let is_open =
            tree.is_whole() || tree.read_below[depth][at] || node.state == NodeState::Descended;
        let height = tree.height(depth);
        let label = match (height, sequence) {
            _ if node.leaves == 0 => String::new(),
            (0, Some(sequence)) => sequence.labels[node.first_leaf].clone(),
            (0, None) => node.first_leaf.to_string(),
            _ => node.leaves.to_string(),
        };
        let (label, size) = fit(&label, SMALL, 88);
        let has_index = height == 0 && node.leaves > 0 && sequence.is_some() && !tree.is_whole();
        let index = node.first_leaf.to_string();
        let widest = text_width(&label, size).max(if has_index {
            text_width(&index, SMALL)
        } else {
            0.0
        });
        let needed = (widest as i32 + 12).max(COLUMN);
        // Higher triangles are a little wider, or they look like needles.
        let needed = if is_open && height == 0 {
            needed
        } else {
            needed + 5 * height as i32
        };
        let spot = self.spots.len();
        self.spots.push(Spot {
            depth,
            at,
            parent,
            x: 0,
            column: if is_open && !children.is_empty() {
                0
            } else {
                needed
            },
            is_folded: !is_open && !children.is_empty() && node.leaves > 0,
            sibling,
            label,
            has_index,
        });
        if is_open {
            let count = children.len();
            for (slot, child) in children.enumerate() {
                self.place(tree, sequence, Some(spot), depth + 1, child, (slot, count));
            }
        }
    }

    /// Draws the tree and returns where it ends.
    fn draw(&self, scene: &mut Scene, tree: &Tree, [left, top]: Place) -> i32 {
        let y = |depth: usize| top + 12 + depth as i32 * self.row;
        let bottom = y(tree.levels.len() - 1);
        for depth in 0..tree.levels.len() {
            let name = match tree.height(depth) {
                0 => "leaves".into(),
                height => format!("height {height}"),
            };
            let at = [left + OVERHANG / 2 - 8, y(depth)];
            let label = Label::new(name, SMALL, HPos::Right, at);
            scene.labels.push(label.coloured(READ_EDGE));
        }
        for spot in self.spots.iter().filter(|spot| spot.is_folded) {
            let (x, half) = (left + spot.x, (spot.column / 2 - 4).max(2));
            scene.shapes.push(Shape::Polygon {
                corners: vec![[x, y(spot.depth)], [x + half, bottom], [x - half, bottom]],
                colour: SUBTREE,
            });
            let at = [x, bottom - 10];
            scene
                .labels
                .push(Label::new(&*spot.label, SMALL, HPos::Center, at));
        }
        // Edges of the path last, above the others.
        let state = |spot: &Spot| tree.node(spot.depth, spot.at).state;
        for (wanted, width, colour) in [
            (None, 1, EDGE),
            (Some(NodeState::Selected), 2, READ_EDGE),
            (Some(NodeState::Descended), 4, DESCENDED),
        ] {
            let edge = |spot: &&Spot| match wanted {
                Some(wanted) => state(spot) == wanted,
                None => matches!(state(spot), NodeState::Untouched | NodeState::Ghost),
            };
            for spot in self.spots.iter().filter(edge) {
                let Some(parent) = spot.parent.map(|parent| &self.spots[parent]) else {
                    continue;
                };
                scene.shapes.push(Shape::Line {
                    from: [left + parent.x, y(parent.depth)],
                    to: [left + spot.x, y(spot.depth)],
                    width,
                    colour,
                });
            }
        }
        for spot in &self.spots {
            let node = tree.node(spot.depth, spot.at);
            let at = [left + spot.x, y(spot.depth)];
            let is_leaf = spot.depth + 1 == tree.levels.len();
            if is_leaf && !spot.label.is_empty() {
                let below = [at[0], at[1] + 20];
                let label = Label::new(&*spot.label, SMALL, HPos::Center, below);
                scene.labels.push(match node.state {
                    NodeState::Untouched => label.coloured(READ_EDGE),
                    _ => label,
                });
                if spot.has_index {
                    let index = node.first_leaf.to_string();
                    let below = [at[0], at[1] + 37];
                    let label = Label::new(index, SMALL, HPos::Center, below);
                    scene.labels.push(label.coloured(READ_EDGE));
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
                let (align, aside) = if is_left {
                    (HPos::Right, -12)
                } else {
                    (HPos::Left, 12)
                };
                let down = match node.state {
                    NodeState::Selected if is_inner => 10,
                    _ => -10,
                };
                let beside = [at[0] + aside, at[1] + down];
                let label = Label::new(share(probability), SMALL, align, beside);
                let [from, to] = label.columns();
                if down < 0 {
                    scene.shapes.push(Shape::Rectangle {
                        from: [from, beside[1] - 7],
                        to: [to, beside[1] + 7],
                        colour: PAPER,
                    });
                }
                scene.labels.push(match node.state {
                    NodeState::Descended => label.coloured(DESCENDED),
                    _ => label,
                });
            }
        }
        for spot in &self.spots {
            let at = [left + spot.x, y(spot.depth)];
            mark(scene, state(spot), tree.colour(tree.height(spot.depth)), at);
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
fn mark(scene: &mut Scene, state: NodeState, colour: RGBColor, [x, y]: Place) {
    let mut circle = |radius: i32, colour: RGBColor| {
        scene.shapes.push(Shape::Circle {
            centre: [x, y],
            radius,
            colour,
        });
    };
    match state {
        NodeState::Descended => circle(8, DESCENDED),
        NodeState::Untouched => circle(4, UNTOUCHED),
        NodeState::Ghost => {
            circle(4, GHOST);
            circle(2, PAPER);
        }
        NodeState::Selected => {
            for (reach, colour) in [(8, OUTLINE), (6, colour)] {
                scene.shapes.push(Shape::Rectangle {
                    from: [x - reach, y - reach],
                    to: [x + reach, y + reach],
                    colour,
                });
            }
        }
    }
}

/// Lines of marks and what they mean; returns where they end.
fn legend(scene: &mut Scene, tree: &Tree, drawing: &Drawing, top: i32) -> i32 {
    let heights: BTreeSet<usize> = tree.selected.iter().map(|(height, _)| *height).collect();
    let has = |state: NodeState| {
        let mut spots = drawing.spots.iter();
        spots.any(|spot| tree.node(spot.depth, spot.at).state == state)
    };
    let is_folded = drawing.spots.iter().any(|spot| spot.is_folded);
    let mut items = Vec::new();
    if has(NodeState::Descended) {
        items.push((
            NodeState::Descended,
            RAMP[0],
            "read, and descended into".to_owned(),
        ));
    }
    for &height in &heights {
        let text = match height {
            0 => "selected leaf".to_owned(),
            // The row goes on; only its first node of each kind is spelt out.
            _ if items
                .iter()
                .any(|(.., text)| text.starts_with("selected node")) =>
            {
                height.to_string()
            }
            _ => format!("selected node of height {height}"),
        };
        items.push((NodeState::Selected, tree.colour(height), text));
    }
    if is_folded || has(NodeState::Untouched) {
        let text = match is_folded {
            true => "never read: a subtree, with its number of leaves",
            false => "never read",
        };
        items.push((NodeState::Untouched, RAMP[0], text.to_owned()));
    }
    if has(NodeState::Ghost) {
        items.push((NodeState::Ghost, RAMP[0], "over no token".to_owned()));
    }
    let (mut x, mut y) = (MARGIN, top + 10);
    for (state, colour, text) in items {
        let width = 30 + text_width(&text, SMALL) as i32;
        if x > MARGIN && x + width > scene.size[0] - MARGIN {
            (x, y) = (MARGIN, y + 24);
        }
        let centre = [x + 8, y];
        if state == NodeState::Untouched && is_folded {
            scene.shapes.push(Shape::Polygon {
                corners: vec![[x + 8, y - 8], [x + 17, y + 8], [x - 1, y + 8]],
                colour: SUBTREE,
            });
        } else {
            mark(scene, state, colour, centre);
        }
        scene
            .labels
            .push(Label::new(text, SMALL, HPos::Left, [x + 22, y]));
        x += width + 14;
    }
    y + 12
}

/// All leaves to scale, coloured by what covers them, with words up to the column `end`; returns where
/// it ends.
fn strip(
    scene: &mut Scene,
    tree: &Tree,
    drawing: &Drawing,
    sequence: Option<&SequenceInset>,
    [left, top]: Place,
    end: i32,
) -> i32 {
    let leaves = tree.leaves();
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
    let caption = match (leaves, sequence) {
        (1, Some(_)) => "the only token".into(),
        (1, None) => "the only leaf".into(),
        (_, Some(_)) => format!("all {leaves} tokens, to scale"),
        (_, None) => format!("all {leaves} leaves, to scale"),
    };
    let at = [from, top];
    scene
        .labels
        .push(Label::new(caption, SMALL, HPos::Left, at));
    // Room for the mark of the answer between caption and strip.
    let has_answer = sequence.is_some_and(|sequence| sequence.answer.is_some());
    let top = top + if has_answer { 24 } else { 12 };
    let bottom = top + STRIP;
    scene.shapes.push(Shape::Rectangle {
        from: [from, top],
        to: [bounds[leaves], bottom],
        colour: SUBTREE,
    });
    for &(height, node) in &tree.selected {
        let after = (node.first_leaf + node.leaves).min(leaves);
        let (first, last) = (bounds[node.first_leaf.min(after)], bounds[after]);
        // Leaves come last and stay visible where they are narrower than a pixel. Wide cells are apart.
        let gap = i32::from(last - first > 6);
        scene.shapes.push(Shape::Rectangle {
            from: [first, top],
            to: [(last - gap).max(first + 2), bottom],
            colour: tree.colour(height),
        });
    }
    let mut y = bottom + 12;
    for leaf in BTreeSet::from([0, leaves / 4, leaves / 2, leaves * 3 / 4, leaves - 1]) {
        if tree.is_whole() {
            break;
        }
        let x = (bounds[leaf] + bounds[leaf + 1]) / 2;
        scene.shapes.push(Shape::Line {
            from: [x, bottom],
            to: [x, bottom + 4],
            width: 1,
            colour: READ_EDGE,
        });
        let label = Label::new(leaf.to_string(), SMALL, HPos::Center, [x, y + 2]);
        scene.labels.push(label.coloured(READ_EDGE));
    }
    if !tree.is_whole() {
        y += 18;
    }
    let Some(sequence) = sequence else {
        return y;
    };
    let mut lines = vec![format!("query: {}", sequence.query)];
    if let Some(answer) = sequence.answer {
        let x = (bounds[answer] + bounds[answer + 1]) / 2;
        scene.shapes.push(Shape::Polygon {
            corners: vec![[x, top - 1], [x - 7, top - 13], [x + 7, top - 13]],
            colour: DESCENDED,
        });
        let found = match tree.cover()[answer] {
            Some(0) => "a selected leaf".to_owned(),
            Some(height) => format!("inside a selected node of height {height}"),
            None => "under no selected node".to_owned(),
        };
        lines.push(format!(
            "answer (blue mark): token {answer}, {}: {found}",
            sequence.labels[answer]
        ));
    }
    y += 6;
    for line in lines {
        for line in wrap(&line, TEXT, end - from) {
            scene
                .labels
                .push(Label::new(line, TEXT, HPos::Left, [from, y]));
            y += 21;
        }
    }
    y
}

impl ImageInset {
    /// By how much the image is enlarged.
    fn scale(&self) -> usize {
        (IMAGE / self.height.max(self.width)).clamp(1, 24)
    }

    /// The length, as drawn, of a number of pixels.
    fn side(&self, pixels: usize) -> i32 {
        (pixels * self.scale()) as i32
    }
}

/// The image, and the same with each leaf in the colour of the node that covers it; returns where they
/// end.
fn draw_image(scene: &mut Scene, tree: &Tree, image: &ImageInset, [left, top]: Place) -> i32 {
    let cover = tree.cover();
    let mut covered = vec![UNSEEN; image.height * image.width];
    for (&(row, column), height) in image.leaves.iter().zip(&cover) {
        covered[row * image.width + column] =
            height.map_or(UNTOUCHED, |height| tree.colour(height));
    }
    let shown = image.pixels.chunks(image.channels).map(|values| {
        let [red, green, blue] = pixel_colour(values).0;
        RGBColor(red, green, blue)
    });
    let room = scene.size[0] - left - MARGIN;
    let mut y = top;
    for (caption, colours) in [
        ("image, with the queried pixel framed", shown.collect()),
        (MAP, covered),
    ] {
        for line in wrap(caption, SMALL, room) {
            scene
                .labels
                .push(Label::new(line, SMALL, HPos::Left, [left, y + 8]));
            y += 18;
        }
        paste(scene, image, &colours, [left, y]);
        let mut frame = |pixel, outer, inner, colour| {
            frame(scene, image, pixel, [left, y], [outer, inner], colour);
        };
        if caption == MAP {
            for (&pixel, height) in image.leaves.iter().zip(&cover) {
                if *height == Some(0) {
                    frame(pixel, 1, 0, OUTLINE);
                }
            }
            // Inside, so that it hides no neighbour.
            frame(image.query, 0, -2, DESCENDED);
        } else {
            frame(image.query, 4, 3, PAPER);
            frame(image.query, 3, 1, DESCENDED);
            frame(image.query, 1, 0, PAPER);
        }
        y += image.side(image.height) + 14;
    }
    y
}

/// Enlarges an image into the scene, equal neighbours in one piece.
fn paste(scene: &mut Scene, image: &ImageInset, colours: &[RGBColor], [left, top]: Place) {
    for (row, colours) in colours.chunks(image.width).enumerate() {
        let mut column = 0;
        for run in colours.chunk_by(|one, next| one == next) {
            scene.shapes.push(Shape::Rectangle {
                from: [left + image.side(column), top + image.side(row)],
                to: [
                    left + image.side(column + run.len()),
                    top + image.side(row + 1),
                ],
                colour: run[0],
            });
            column += run.len();
        }
    }
}

/// A frame around a pixel, between two distances out from its border.
fn frame(
    scene: &mut Scene,
    image: &ImageInset,
    (row, column): (usize, usize),
    [left, top]: Place,
    [outer, inner]: [i32; 2],
    colour: RGBColor,
) {
    let [x0, y0] = [left + image.side(column), top + image.side(row)];
    let [x1, y1] = [x0 + image.side(1), y0 + image.side(1)];
    let inner = inner.max(-(image.side(1) + 1) / 2);
    for (from, to) in [
        ([x0 - outer, y0 - outer], [x1 + outer, y0 - inner]),
        ([x0 - outer, y1 + inner], [x1 + outer, y1 + outer]),
        ([x0 - outer, y0 - inner], [x0 - inner, y1 + inner]),
        ([x1 + inner, y0 - inner], [x1 + outer, y1 + inner]),
    ] {
        // The sides of a frame inside a small pixel have no length.
        if from[0] < to[0] && from[1] < to[1] {
            scene.shapes.push(Shape::Rectangle { from, to, colour });
        }
    }
}

fn check_image(image: &ImageInset, leaves: usize) -> Result<()> {
    let ImageInset {
        height,
        width,
        channels,
        ..
    } = *image;
    ensure!(
        height > 0 && width > 0,
        "image: expected at least one pixel, got {height}x{width}"
    );
    ensure!(
        [1, 3].contains(&channels),
        "image: expected 1 or 3 channels, got {channels}"
    );
    let values = height * width * channels;
    ensure!(
        image.pixels.len() == values,
        "image: pixels: expected {values} values, got {}",
        image.pixels.len()
    );
    ensure!(
        image.leaves.len() == leaves,
        "image: leaves: expected {leaves} pixels, got {}",
        image.leaves.len()
    );
    for &(row, column) in image.leaves.iter().chain([&image.query]) {
        ensure!(
            row < height && column < width,
            "image: expected a pixel of {height}x{width}, got row {row}, column {column}"
        );
    }
    Ok(())
}

fn check_sequence(sequence: &SequenceInset, leaves: usize) -> Result<()> {
    ensure!(
        sequence.labels.len() == leaves,
        "sequence: labels: expected {leaves}, got {}",
        sequence.labels.len()
    );
    if let Some(answer) = sequence.answer {
        ensure!(
            answer < leaves,
            "sequence: answer: expected a token below {leaves}, got {answer}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arbora::tree::Layout;

    use super::*;

    /// The search that ends at a leaf, with made-up probabilities.
    fn search(shape: TokenTreeShape, length: usize, leaf: usize) -> Vec<Level> {
        let height = shape.height();
        let path: Vec<usize> = (0..=shape.decisions())
            .map(|depth| shape.ancestor(leaf, height - depth))
            .collect();
        let probabilities: Vec<Vec<f32>> = (0..shape.decisions())
            .map(|depth| {
                let children = shape.children(height - depth, path[depth]);
                let others = (children.len() - 1).max(1) as f32;
                let probability = |child| match child == path[depth + 1] {
                    true => 0.9,
                    false => 0.1 / others,
                };
                children.map(probability).collect()
            })
            .collect();
        levels(&shape, length, &path, &probabilities)
    }

    fn picture(tokens: usize, branching: usize, leaf: usize) -> RetrievalPicture {
        let shape = TokenTreeShape::new(tokens, branching, Layout::LeftFilled);
        RetrievalPicture {
            title: format!("{tokens} tokens"),
            levels: search(shape, tokens, leaf),
            ..RetrievalPicture::default()
        }
    }

    fn image(leaves: usize) -> ImageInset {
        let (height, width) = (20, 30);
        ImageInset {
            height,
            width,
            channels: 3,
            pixels: (0..height * width * 3)
                .map(|at| at as f32 / 1800.0 - 0.5)
                .collect(),
            leaves: (0..leaves).map(|leaf| (leaf % 20, leaf / 20)).collect(),
            query: (19, 29),
        }
    }

    fn svg(picture: &RetrievalPicture) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("retrieval.svg");
        draw(picture, &path).unwrap();
        fs::read_to_string(path).unwrap()
    }

    fn hex(RGBColor(red, green, blue): RGBColor) -> String {
        format!("fill=\"#{red:02X}{green:02X}{blue:02X}\"")
    }

    /// Elements of a kind and a colour in an SVG.
    fn count(svg: &str, element: &str, colour: RGBColor) -> usize {
        let (start, colour) = (format!("<{element} "), hex(colour));
        svg.lines()
            .filter(|line| line.starts_with(&start) && line.contains(&colour))
            .count()
    }

    #[test]
    fn an_svg_has_a_mark_for_each_node_of_a_small_tree() {
        // 13 leaves under 7, 4, 2 and 1 nodes. The path has 4 nodes; 3 siblings and 2 leaves are
        // selected, at heights 0 to 3. The legend repeats each kind of mark.
        let text = svg(&picture(13, 2, 9));
        assert_eq!(count(&text, "circle", DESCENDED), 4 + 1);
        assert_eq!(count(&text, "rect", OUTLINE), 5 + 4);
        assert_eq!(count(&text, "circle", UNTOUCHED), 27 - 4 - 5 + 1);
        assert_eq!(count(&text, "polygon", SUBTREE), 0);
        assert_eq!(text.matches("0.90").count(), 3);
        assert_eq!(text.matches("0.10").count(), 3);
    }

    #[test]
    fn of_a_large_tree_only_nodes_that_were_read_are_drawn() {
        let picture = picture(512, 2, 301);
        let tree = Tree::new(&picture.levels).unwrap();
        let drawing = Drawing::new(&tree, None);
        // The root and, at each of 8 decisions and at the leaves, two nodes.
        assert_eq!(drawing.spots.len(), 1 + 2 * 8 + 2);
        let folded = drawing.spots.iter().filter(|spot| spot.is_folded);
        let hidden: usize = folded
            .map(|spot| spot.label.parse::<usize>().unwrap())
            .sum();
        assert_eq!(hidden, 510);
        assert!(drawing.width < 800, "{}", drawing.width);
        let text = svg(&picture);
        assert_eq!(count(&text, "circle", DESCENDED), 9 + 1);
        assert_eq!(count(&text, "rect", OUTLINE), 10 + 9);
        assert_eq!(count(&text, "polygon", SUBTREE), 8 + 1);
        assert_eq!(count(&text, "circle", UNTOUCHED), 0);
    }

    #[test]
    fn nothing_overlaps_or_leaves_the_picture() {
        let long = "a title of many words ".repeat(8) + &"unbroken".repeat(20);
        for (tokens, branching) in [
            (1, 2),
            (2, 2),
            (3, 3),
            (5, 2),
            (13, 2),
            (28, 3),
            (32, 2),
            (33, 2),
            (200, 2),
            (200, 3),
            (256, 4),
            (4000, 8),
            (4096, 16),
            (131_072, 2),
        ] {
            for layout in [Layout::LeftFilled, Layout::Published] {
                for leaf in [0, tokens / 2, tokens - 1] {
                    let shape = TokenTreeShape::new(tokens, branching, layout);
                    // Leaves on the left leave room for ghosts on the right.
                    let length = tokens - (tokens - 1 - leaf).min(tokens / 5);
                    // Breaking long lines takes most of the time; once per tree is enough.
                    let words = if leaf == 0 { &long } else { "short words" };
                    let picture = RetrievalPicture {
                        title: words.into(),
                        summary: vec![words.into(), "second".into()],
                        levels: search(shape, length, leaf),
                        image: (length <= 600).then(|| image(length)),
                        sequence: Some(SequenceInset {
                            labels: (0..length).map(|leaf| format!("token {leaf}")).collect(),
                            query: words.into(),
                            answer: Some(leaf),
                        }),
                    };
                    let name = format!("N = {tokens}, b = {branching}, {layout:?}, leaf {leaf}");
                    check(&lay_out(&picture).unwrap(), &name);
                    let tree = Tree::new(&picture.levels).unwrap();
                    assert!(tree.cover().iter().all(Option::is_some), "{name}");
                }
            }
        }
    }

    fn check(scene: &Scene, name: &str) {
        let [width, height] = scene.size;
        let places = scene.shapes.iter().flat_map(|shape| match shape {
            Shape::Rectangle { from, to, .. } | Shape::Line { from, to, .. } => vec![*from, *to],
            Shape::Polygon { corners, .. } => corners.clone(),
            Shape::Circle { centre, radius, .. } => {
                vec![centre.map(|at| at - radius), centre.map(|at| at + radius)]
            }
        });
        for [x, y] in places {
            assert!(
                (0..=width).contains(&x) && (0..=height).contains(&y),
                "{name}: {x}, {y}"
            );
        }
        let boxes: Vec<_> = scene
            .labels
            .iter()
            .map(|label| {
                let half = label.size as i32 * 2 / 5;
                let [left, right] = label.columns();
                let text = label.text.as_str();
                (text, left, right, label.at[1] - half, label.at[1] + half)
            })
            .collect();
        for (at, one) in boxes.iter().enumerate() {
            assert!(one.1 >= 0 && one.2 <= width, "{name}: {one:?} of {width}");
            assert!(one.3 >= 0 && one.4 <= height, "{name}: {one:?} of {height}");
            let answer = scene.shapes.iter().filter_map(|shape| match shape {
                Shape::Polygon { corners, colour } if *colour == DESCENDED => Some(corners),
                _ => None,
            });
            for [x, y] in answer.flatten() {
                let hidden = (one.1..=one.2).contains(x) && (one.3..=one.4).contains(y);
                assert!(!hidden, "{name}: {one:?} under the mark of the answer");
            }
            for other in &boxes[at + 1..] {
                let apart =
                    one.2 <= other.1 || other.2 <= one.1 || one.4 <= other.3 || other.4 <= one.3;
                assert!(apart, "{name}: {one:?} on {other:?}");
            }
        }
    }

    #[test]
    fn a_png_shows_the_colours_of_the_tree_in_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("retrieval.PNG");
        let drawn = |image: Option<ImageInset>| {
            let picture = RetrievalPicture {
                image,
                ..picture(200, 2, 77)
            };
            draw(&picture, &path).unwrap();
            let size = lay_out(&picture).unwrap().size;
            let picture = image::open(&path).unwrap().to_rgb8();
            assert_eq!(picture.dimensions(), (size[0] as u32, size[1] as u32));
            let count = |RGBColor(red, green, blue): RGBColor| {
                picture
                    .pixels()
                    .filter(|pixel| pixel.0 == [red, green, blue])
                    .count()
            };
            [count(RAMP[0]), count(RAMP[3]), count(DESCENDED)]
        };
        let bare = drawn(None);
        assert!(bare.iter().all(|count| *count > 50), "{bare:?}");
        // Two leaves are selected, and the highest selected node covers 72; a pixel is enlarged to
        // 9 by 9, and frames may hide some of it.
        let inset = drawn(Some(image(200)));
        let more = [0, 1, 2].map(|at| inset[at] - bare[at]);
        assert!((2 * 49..=2 * 81).contains(&more[0]), "{more:?}");
        assert!((72 * 49..=72 * 81).contains(&more[1]), "{more:?}");
        assert!(more[2] > 20, "{more:?}");
    }

    #[test]
    fn a_sequence_says_where_its_answer_lies() {
        let answer = |answer: Option<usize>| {
            let sequence = Some(SequenceInset {
                labels: (0..13).map(|leaf| format!("t{leaf}")).collect(),
                query: "which?".into(),
                answer,
            });
            svg(&RetrievalPicture {
                sequence,
                ..picture(13, 2, 9)
            })
        };
        let text = answer(Some(8));
        assert!(text.contains("query: which?"));
        assert!(text.contains("token 8, t8: a selected leaf"), "{text}");
        assert_eq!(count(&text, "polygon", DESCENDED), 1);
        assert!(answer(Some(0)).contains("token 0, t0: inside a selected node of height 3"));
        assert_eq!(count(&answer(None), "polygon", DESCENDED), 0);
    }

    #[test]
    fn levels_mark_the_path_its_siblings_and_ghosts() {
        let shape = TokenTreeShape::new(7, 2, Layout::LeftFilled);
        let levels = search(shape, 5, 4);
        let states: Vec<Vec<_>> = levels
            .iter()
            .map(|level| level.nodes.iter().map(|node| node.state).collect())
            .collect();
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
        assert_eq!(levels[1].nodes[1].probability, Some(0.9));
        assert_eq!(
            (levels[0].nodes[0].leaves, levels[2].nodes[2].leaves),
            (5, 1)
        );
    }

    #[test]
    #[should_panic(expected = "levels: path at depth 1: expected one of 0..2, got Some(2)")]
    fn a_path_that_leaves_its_tree_panics() {
        levels(
            &TokenTreeShape::new(8, 2, Layout::LeftFilled),
            8,
            &[0, 2, 0],
            &[],
        );
    }

    #[test]
    fn a_tree_that_nothing_read_is_one_subtree() {
        let mut untouched = picture(512, 2, 0);
        for node in untouched
            .levels
            .iter_mut()
            .flat_map(|level| &mut level.nodes)
        {
            (node.state, node.probability) = (NodeState::Untouched, None);
        }
        let scene = lay_out(&untouched).unwrap();
        check(&scene, "untouched");
        assert!(scene.labels.iter().any(|label| label.text == "512"));
    }

    #[test]
    fn what_is_no_tree_or_does_not_fit_it_is_refused() {
        let path = Path::new("never-written.png");
        let message = |picture: &RetrievalPicture| draw(picture, path).unwrap_err().to_string();
        assert_eq!(
            message(&RetrievalPicture::default()),
            "a picture of a retrieval: level 0: expected one root, got 0"
        );
        let mut odd = picture(13, 2, 9);
        odd.levels[2].nodes.pop();
        assert_eq!(
            message(&odd),
            "a picture of a retrieval: level 2: children of the node at leaf 8: expected 5 leaves, got 4"
        );
        let mut odd = picture(13, 2, 9);
        odd.levels.pop();
        assert_eq!(
            message(&odd),
            "a picture of a retrieval: level 3: expected leaves of one token each"
        );
        let mut odd = picture(1, 2, 0);
        odd.levels[0].nodes[0].leaves = 0;
        assert_eq!(
            message(&odd),
            "a picture of a retrieval: level 0: expected tokens from leaf 0 on, without gaps"
        );
        let mut odd = picture(3, 3, 0);
        odd.levels[1].nodes[2].first_leaf = 7;
        assert_eq!(
            message(&odd),
            "a picture of a retrieval: level 1: expected tokens from leaf 0 on, without gaps"
        );
        let with_image = |image: ImageInset| RetrievalPicture {
            image: Some(image),
            ..picture(13, 2, 9)
        };
        assert_eq!(
            message(&with_image(image(12))),
            "image: leaves: expected 13 pixels, got 12"
        );
        let outside = ImageInset {
            query: (20, 0),
            ..image(13)
        };
        assert_eq!(
            message(&with_image(outside)),
            "image: expected a pixel of 20x30, got row 20, column 0"
        );
        let sequence = RetrievalPicture {
            sequence: Some(SequenceInset::default()),
            ..picture(13, 2, 9)
        };
        assert_eq!(message(&sequence), "sequence: labels: expected 13, got 0");
        assert!(!path.exists());
        let error = draw(&picture(2, 2, 0), Path::new("a.gif")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.gif: expected a name ending in .png or .svg"
        );
    }
}
