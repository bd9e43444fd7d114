//! Pictures, as their files have them.

mod completion;
mod confidence;
mod curves;
mod retrieval;
mod shares;

use resvg::tiny_skia::Pixmap;
use resvg::usvg::{Group, Node, Options, Tree, fontdb::Database};
use std::path::Path;
use std::sync::{Arc, LazyLock};

type Colour = [u8; 3];

const PAPER: Colour = [255; 3];

static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    Arc::new(fonts)
});

/// The two files of a picture.
struct Drawn {
    svg: String,
    png: Vec<u8>,
}

impl Drawn {
    /// What `draw` writes under the name that it is given.
    fn by(draw: impl FnOnce(&Path) -> anyhow::Result<()>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("a.picture");
        draw(&name).unwrap();
        let read = |ending| std::fs::read(name.with_added_extension(ending)).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        Self {
            svg: String::from_utf8(read("svg")).unwrap(),
            png: read("png"),
        }
    }

    /// The pixels, row by row.
    fn pixels(&self) -> Vec<Colour> {
        let picture = Pixmap::decode_png(&self.png).unwrap();
        let pixels = picture.pixels().iter();
        let colours = pixels.map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]);
        colours.collect()
    }

    /// How many pixels have a colour.
    fn inked(&self, colour: Colour) -> usize {
        let pixels = self.pixels().into_iter();
        pixels.filter(|pixel| *pixel == colour).count()
    }

    fn tree(&self) -> Tree {
        let options = Options {
            fontdb: FONTS.clone(),
            font_family: "DejaVu Sans".into(),
            ..Options::default()
        };
        Tree::from_str(&self.svg, &options).unwrap()
    }

    /// Width and height.
    fn size(&self) -> [i32; 2] {
        let size = self.tree().size();
        [size.width(), size.height()].map(|side| side as i32)
    }

    /// Texts, and the boxes that their inked parts fill: left, top, right and bottom.
    fn texts(&self) -> Vec<(String, [f32; 4])> {
        fn visit(group: &Group, boxes: &mut Vec<(String, [f32; 4])>) {
            for node in group.children() {
                match node {
                    Node::Group(group) => visit(group, boxes),
                    Node::Text(text) => {
                        let words = text.chunks().iter().map(|chunk| chunk.text()).collect();
                        let area = text.flattened().abs_bounding_box();
                        let sides = [area.left(), area.top(), area.right(), area.bottom()];
                        boxes.push((words, sides));
                    }
                    _ => (),
                }
            }
        }
        let mut boxes = Vec::new();
        visit(self.tree().root(), &mut boxes);
        boxes
    }

    /// Whether a text is in the picture, alone.
    fn says(&self, words: &str) -> bool {
        self.svg.contains(&format!(">{words}</text>"))
    }

    /// Fails unless all shapes and texts are inside the picture and no text is on another.
    fn check(&self, name: &str) {
        let [width, height] = self.size().map(|side| side as f32);
        let all = self.tree().root().abs_stroke_bounding_box();
        let inside =
            all.left() >= 0.0 && all.top() >= 0.0 && all.right() <= width && all.bottom() <= height;
        assert!(inside, "{name}: {all:?} in {width}x{height}");
        let boxes = self.texts();
        for (at, (text, one)) in boxes.iter().enumerate() {
            for (other_text, other) in &boxes[at + 1..] {
                let apart =
                    (0..2).any(|axis| one[axis + 2] <= other[axis] || other[axis + 2] <= one[axis]);
                assert!(
                    apart,
                    "{name}: {text:?} {one:?} on {other_text:?} {other:?}"
                );
            }
        }
    }

    /// Elements of a kind and a colour.
    fn count(&self, element: &str, [red, green, blue]: Colour) -> usize {
        let (start, colour) = (
            format!("<{element} "),
            format!("#{red:02X}{green:02X}{blue:02X}"),
        );
        let is_one = |line: &&str| line.starts_with(&start) && line.contains(&colour);
        self.svg.lines().filter(is_one).count()
    }
}

/// Why a picture is refused.
fn refused(draw: impl FnOnce(&Path) -> anyhow::Result<()>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let error = draw(&folder.path().join("a.picture")).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    format!("{error:#}")
}
