//! Trees that queries searched.

use super::{Colour, Drawn, refused};
use arbora::tree::{Layout, TokenTreeShape};
use arbora_cli::picture::retrieval::{
    ImageInset, RetrievalPicture, SearchedTree, SequenceInset, draw,
};

const DESCENDED: Colour = [0, 114, 178];
/// Around selected nodes.
const OUTLINE: Colour = [70, 24, 10];
const UNTOUCHED: Colour = [176; 3];
const SUBTREE: Colour = [232; 3];
/// Selected leaves, and the highest selected nodes.
const RAMP: [Colour; 2] = [[120, 16, 40], [253, 231, 166]];

/// The search that ends at a leaf, with made-up probabilities.
fn search(shape: TokenTreeShape, length: usize, leaf: usize) -> SearchedTree {
    let height = shape.height();
    let path: Vec<usize> = (0..=shape.decisions())
        .map(|depth| shape.ancestor(leaf, height - depth))
        .collect();
    let probabilities: Vec<Vec<f32>> = (0..shape.decisions())
        .map(|depth| {
            let children = shape.children(height - depth, path[depth]);
            let others = (children.len() - 1).max(1) as f32;
            let probability = |child| {
                if child == path[depth + 1] {
                    0.9
                } else {
                    0.1 / others
                }
            };
            children.map(probability).collect()
        })
        .collect();
    SearchedTree::new(shape, length, &path, &probabilities)
}

fn picture(tokens: usize, branching: usize, leaf: usize) -> RetrievalPicture {
    let shape = TokenTreeShape::new(tokens, branching, Layout::LeftFilled);
    RetrievalPicture {
        title: format!("{tokens} tokens"),
        summary: Vec::new(),
        tree: search(shape, tokens, leaf),
        image: None,
        sequence: None,
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

fn drawn(picture: &RetrievalPicture) -> Drawn {
    Drawn::by(|name| draw(picture, name))
}

#[test]
fn an_svg_has_a_mark_for_each_node_of_a_small_tree() {
    // 13 leaves under 7, 4, 2 and 1 nodes. The path has 4 nodes; 3 siblings and 2 leaves are
    // selected, at heights 0 to 3. The legend repeats each kind of mark.
    let drawn = drawn(&picture(13, 2, 9));
    assert_eq!(drawn.count("circle", DESCENDED), 4 + 1);
    assert_eq!(drawn.count("rect", OUTLINE), 5 + 4);
    assert_eq!(drawn.count("circle", UNTOUCHED), 27 - 4 - 5 + 1);
    assert_eq!(drawn.count("polygon", SUBTREE), 0);
    let counts = ["0.90", "0.10"].map(|share| drawn.svg.matches(share).count());
    assert_eq!(counts, [3, 3]);
}

#[test]
fn of_a_large_tree_only_nodes_that_were_read_are_drawn() {
    let drawn = drawn(&picture(512, 2, 301));
    // Triangles say how many leaves they hide.
    for height in 1..9 {
        assert!(drawn.says(&(1 << height).to_string()), "{height}");
    }
    // The root and, at each of 8 decisions and at the leaves, two nodes.
    assert!(drawn.size()[0] < 932, "{:?}", drawn.size());
    assert_eq!(drawn.count("circle", DESCENDED), 9 + 1);
    assert_eq!(drawn.count("rect", OUTLINE), 10 + 9);
    assert_eq!(drawn.count("polygon", SUBTREE), 8 + 1);
    assert_eq!(drawn.count("circle", UNTOUCHED), 0);
}

#[test]
fn nothing_overlaps_or_leaves_the_picture() {
    let long = "a title of many words ".repeat(8) + &"unbroken".repeat(20);
    let binary = [1, 2, 5, 13, 32, 33, 200, 131_072].map(|tokens| (tokens, 2));
    let others = [(3, 3), (28, 3), (200, 3), (256, 4), (4000, 8), (4096, 16)];
    for (tokens, branching) in binary.into_iter().chain(others) {
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
                    tree: search(shape, length, leaf),
                    image: (length <= 600).then(|| image(length)),
                    sequence: Some(SequenceInset {
                        labels: (0..length).map(|leaf| format!("token {leaf}")).collect(),
                        query: words.into(),
                        answer: Some(leaf),
                    }),
                };
                let name = format!("N = {tokens}, b = {branching}, {layout:?}, leaf {leaf}");
                drawn(&picture).check(&name);
                let selected = picture.tree.selected().into_iter();
                let covered: usize = selected.map(|(_, leaves)| leaves.len()).sum();
                assert_eq!(covered, length, "{name}");
            }
        }
    }
}

#[test]
fn a_png_shows_the_colours_of_the_tree_in_the_image() {
    let inked = |image: Option<ImageInset>| {
        let drawn = drawn(&RetrievalPicture {
            image,
            ..picture(200, 2, 77)
        });
        [RAMP[0], RAMP[1], DESCENDED].map(|colour| drawn.inked(colour))
    };
    let bare = inked(None);
    assert!(bare.iter().all(|count| *count > 50), "{bare:?}");
    // Two leaves are selected, and the highest selected node covers 72; a pixel is enlarged to
    // 9 by 9, and frames may hide some of it.
    let inset = inked(Some(image(200)));
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
        let picture = RetrievalPicture {
            sequence,
            ..picture(13, 2, 9)
        };
        drawn(&picture).svg
    };
    let text = answer(Some(8));
    assert!(text.contains("query: which?") && text.contains('▼'));
    assert!(text.contains("token 8, t8: a selected leaf"), "{text}");
    let text = answer(Some(0));
    assert!(text.contains("token 0, t0: inside a selected node of height 3"));
    assert!(!answer(None).contains('▼'));
}

#[test]
#[should_panic(expected = "searched tree: path at depth 1: expected one of 0..2, got 2")]
fn a_path_that_leaves_its_tree_panics() {
    let shape = TokenTreeShape::new(8, 2, Layout::LeftFilled);
    SearchedTree::new(shape, 8, &[0, 2, 0], &[]);
}

#[test]
fn what_is_no_tree_or_does_not_fit_it_is_refused() {
    let message = |picture: &RetrievalPicture| refused(|name| draw(picture, name));
    let shape = TokenTreeShape::new(13, 2, Layout::LeftFilled);
    for (length, fits) in [(0, false), (13, true), (14, false)] {
        let tree = std::panic::catch_unwind(|| SearchedTree::new(shape, length, &[0; 4], &[]));
        assert_eq!(tree.is_ok(), fits, "{length}");
    }
    let with_image = |image: ImageInset| RetrievalPicture {
        image: Some(image),
        ..picture(13, 2, 9)
    };
    let few = message(&with_image(image(12)));
    assert_eq!(few, "image: leaves: expected 13, got 12");
    let mut outside = image(13);
    outside.query = (20, 0);
    let outside = message(&with_image(outside));
    let expected = "image: expected a pixel of 20x30, got row 20, column 0";
    assert_eq!(outside, expected);
    let sequence = RetrievalPicture {
        sequence: Some(SequenceInset::default()),
        ..picture(13, 2, 9)
    };
    assert_eq!(message(&sequence), "sequence: labels: expected 13, got 0");
}
