//! The FLOPs that the Treeformer paper ([arXiv 2208.09015](https://arxiv.org/abs/2208.09015)) printed, and what the
//! formulas of [`CostShape`] give for them.

use arbora_attention::baselines::BigBirdConfig;
use arbora_attention::flops::{AttentionCost, CostShape};

/// One number of the paper.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedCell {
    /// Where it stands.
    pub place: &'static str,
    /// Row of the table.
    pub model: &'static str,
    /// Column of the table.
    pub column: &'static str,
    /// What is printed, in percent.
    pub published: f64,
    /// What a formula gives, in percent; `None` where it needs what is not published.
    pub ours: Option<f64>,
    /// What `ours` rests on, or what is missing.
    pub basis: String,
}

impl PublishedCell {
    /// `ours / published - 1`
    pub fn difference(&self) -> Option<f64> {
        self.ours.map(|ours| ours / self.published - 1.0)
    }

    /// Whether `ours` is within 3 % of what is printed.
    pub fn is_reproduced(&self) -> bool {
        self.difference()
            .is_some_and(|difference| difference.abs() <= 0.03)
    }
}

/// One LRA task with the sizes of Table 8.
struct Task {
    name: &'static str,
    shape: CostShape,
    mlp: usize,
}

fn tasks() -> [Task; 4] {
    let task = |name, tokens, d_model, heads, mlp| Task {
        name,
        shape: CostShape::new(tokens, d_model, heads),
        mlp,
    };
    [
        task("ListOps", 2048, 512, 4, 1024),
        task("Text", 4096, 256, 4, 1024),
        task("Retrieval", 8192, 128, 4, 512),
        task("Image", 1024, 32, 1, 64),
    ]
}

/// BERT-Base at 512 tokens (Table 6).
const BERT: CostShape = CostShape::new(512, 768, 12);

/// Height of all LRA trees (Table 8).
const LRA_HEIGHT: usize = 6;

/// Number of layers of BERT-Base.
const BERT_LAYERS: f64 = 12.0;

/// Features of Performer in the released code of LRA (`nb_features`), whose models the paper compares with.
const LRA_FEATURES: usize = 256;

fn percent(shape: &CostShape, cost: AttentionCost) -> f64 {
    100.0 * cost.core_ratio(&shape.dense())
}

/// All FLOPs of Tables 2, 3 and 11, the shares of Section 4.2, and those of Table 12 that a formula can be tried on.
pub fn cells() -> Vec<PublishedCell> {
    let mut cells = bert_cells();
    cells.extend(lra_cells());
    cells.extend(average_cells());
    cells.extend(block_cells());
    cells.extend(summarisation_cells());
    cells
}

fn bert_cells() -> Vec<PublishedCell> {
    let shape = BERT;
    let cell = |model, published, ours, basis: &str| PublishedCell {
        place: "Table 2",
        model,
        column: "BERT-Base",
        published,
        ours,
        basis: basis.to_owned(),
    };
    const TREE_LAYERS: f64 = 15.96;
    let mixed = |model, layers: f64, published| {
        let ours = ((BERT_LAYERS - layers) * 100.0 + layers * TREE_LAYERS) / BERT_LAYERS;
        let basis =
            format!("mean over 12 layers, {layers} of them at the 15.96 % of the 12-layer row");
        cell(model, published, Some(ours), &basis)
    };
    let unknown = |model, branching: &[usize], published| {
        let basis = leaves_missing(&shape, branching, published);
        cell(model, published, None, &basis)
    };
    vec![
        cell(
            "Linformer",
            49.59,
            Some(percent(&shape, shape.linformer(128))),
            "k = 128, printed",
        ),
        cell(
            "BigBird",
            100.40,
            Some(percent(&shape, shape.big_bird(&BigBirdConfig::default()))),
            BIG_BIRD,
        ),
        unknown("TF-A, 12 layers", &[2; 2], 29.87),
        mixed("TC-A, 6 layers", 6.0, 57.98),
        mixed("TC-A, 9 layers", 9.0, 36.97),
        cell(
            "TC-A, 12 layers",
            TREE_LAYERS,
            Some(percent(&shape, shape.tree_coarse_all_nodes(&[2; 7]))),
            "all nodes, h = 7; one path would be 2.2 %",
        ),
        unknown("k-ary TF-A, 12 layers", &[100, 10], 25.44),
    ]
}

const BIG_BIRD: &str =
    "blocks of 64, 3 in the window, 3 random, 2 global: the released code of BigBird and of LRA";

/// What a published share of TF-Attention says about its leaves.
fn leaves_missing(shape: &CostShape, branching: &[usize], published: f64) -> String {
    let routing = percent(shape, shape.tree_fine(branching, 0.0));
    let left = published - routing;
    let leaves: usize = branching.iter().product();
    if left <= 0.0 {
        return format!("routing alone is {routing:.1} % by our formula");
    }
    format!(
        "leaf counts are not published; the rest after routing ({routing:.1} %) is what {:.1} equally full leaves of {leaves} cost",
        100.0 / left
    )
}

fn lra_cells() -> Vec<PublishedCell> {
    let rows: [(&str, [f64; 4]); 5] = [
        ("Linformer", [2.98, 2.28, 0.57, 4.44]),
        ("Performer", [28.29, 14.47, 6.76, 51.96]),
        ("BigBird", [31.98, 16.35, 7.74, 52.43]),
        ("TF-A", [37.82, 28.19, 29.48, 41.23]),
        ("TC-A", [4.57, 2.34, 0.61, 4.66]),
    ];
    let mut cells = Vec::with_capacity(20);
    for (model, row) in rows {
        for (task, published) in tasks().into_iter().zip(row) {
            let shape = task.shape;
            let (ours, basis) = match model {
                "Linformer" => {
                    let rank = published / percent(&shape, shape.linformer(1));
                    (None, format!("k is not published; k = {rank:.1} would fit"))
                }
                "Performer" => {
                    let features = published / percent(&shape, shape.performer(1));
                    let basis = format!(
                        "{LRA_FEATURES} features, the default of LRA's code; {features:.0} would fit"
                    );
                    (Some(percent(&shape, shape.performer(LRA_FEATURES))), basis)
                }
                "BigBird" => (
                    Some(percent(&shape, shape.big_bird(&BigBirdConfig::default()))),
                    BIG_BIRD.to_owned(),
                ),
                "TF-A" => (None, leaves_missing(&shape, &[2; LRA_HEIGHT], published)),
                _ => {
                    let path = percent(&shape, shape.tree_coarse(&[2; LRA_HEIGHT]));
                    let ours = percent(&shape, shape.tree_coarse_all_nodes(&[2; LRA_HEIGHT]));
                    let basis =
                        format!("all nodes, h = {LRA_HEIGHT}; one path would be {path:.2} %");
                    (Some(ours), basis)
                }
            };
            cells.push(PublishedCell {
                place: "Table 11",
                model,
                column: task.name,
                published,
                ours,
                basis,
            });
        }
    }
    cells
}

/// The column of Table 3 is the mean of the rows of Table 11.
fn average_cells() -> Vec<PublishedCell> {
    let tasks = lra_cells();
    let averages = [
        ("Linformer", 2.57),
        ("Performer", 25.37),
        ("BigBird", 27.13),
        ("TF-A", 34.18),
        ("TC-A", 3.05),
    ];
    let mut cells: Vec<PublishedCell> = averages
        .into_iter()
        .map(|(model, published)| {
            let row = tasks.iter().filter(|cell| cell.model == model);
            let sum: f64 = row.map(|cell| cell.published).sum();
            PublishedCell {
                place: "Table 3",
                model,
                column: "average",
                published,
                ours: Some(sum / 4.0),
                basis: "mean of the printed cells of Table 11".to_owned(),
            }
        })
        .collect();
    cells.push(PublishedCell {
        place: "Table 3",
        model: "k-ary TF-A",
        column: "average",
        published: 29.82,
        ours: None,
        basis: "no row in Table 11; leaf counts are not published".to_owned(),
    });
    cells
}

/// Share of attention in an encoder block (Section 4.2): the core beside projections and the two feed-forward layers.
fn block_cells() -> Vec<PublishedCell> {
    tasks()
        .into_iter()
        .zip([50.84, 73.3])
        .map(|(task, published)| {
            let cost = task.shape.dense();
            let feed_forward = 4.0 * (task.shape.queries * task.shape.d_model * task.mlp) as f64;
            PublishedCell {
                place: "Section 4.2",
                model: "Transformer, share of the core in a block",
                column: task.name,
                published,
                ours: Some(100.0 * cost.core / (cost.total() + feed_forward)),
                basis: "core, projections and a feed-forward network of the printed width"
                    .to_owned(),
            }
        })
        .collect()
}

fn summarisation_cells() -> Vec<PublishedCell> {
    let shape = CostShape::new(3072, 768, 12);
    let cell = |model, published, cost, basis: &str| PublishedCell {
        place: "Table 12",
        model,
        column: "PubMed, Arxiv",
        published,
        ours: Some(percent(&shape, cost)),
        basis: format!("{basis}; assuming 12 heads of 64"),
    };
    vec![
        cell(
            "BigBird",
            19.25,
            shape.big_bird(&BigBirdConfig::default()),
            BIG_BIRD,
        ),
        cell(
            "TC-A",
            3.09,
            shape.tree_coarse_all_nodes(&[2; LRA_HEIGHT]),
            "all nodes, assuming h = 6",
        ),
    ]
}

/// The table of [`cells`] in Markdown.
pub fn table() -> String {
    let mut table = String::from(
        "| where | model | column | published | ours | difference | basis |\n|---|---|---|---:|---:|---:|---|\n",
    );
    for cell in cells() {
        let (ours, difference) = match (cell.ours, cell.difference()) {
            (Some(ours), Some(difference)) => {
                let difference = match format!("{:+.1} %", 100.0 * difference).as_str() {
                    "+0.0 %" | "-0.0 %" => "0.0 %".to_owned(),
                    other => other.to_owned(),
                };
                (format!("{ours:.2} %"), difference)
            }
            _ => ("not possible".to_owned(), String::new()),
        };
        let difference = if cell.is_reproduced() {
            format!("**{difference}**")
        } else {
            difference
        };
        table += &format!(
            "| {} | {} | {} | {:.2} % | {ours} | {difference} | {} |\n",
            cell.place, cell.model, cell.column, cell.published, cell.basis
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn cell(place: &str, model: &str, column: &str) -> PublishedCell {
        cells()
            .into_iter()
            .find(|cell| cell.place == place && cell.model == model && cell.column == column)
            .expect("there is such a cell")
    }

    #[test]
    fn these_cells_are_within_three_percent_and_no_others() {
        let reproduced: Vec<_> = cells()
            .into_iter()
            .filter(PublishedCell::is_reproduced)
            .map(|cell| (cell.place, cell.model, cell.column))
            .collect();
        let section = "Transformer, share of the core in a block";
        let expected = [
            ("Table 2", "Linformer", "BERT-Base"),
            ("Table 2", "BigBird", "BERT-Base"),
            ("Table 2", "TC-A, 6 layers", "BERT-Base"),
            ("Table 2", "TC-A, 9 layers", "BERT-Base"),
            ("Table 11", "Performer", "Image"),
            ("Table 11", "BigBird", "Retrieval"),
            ("Table 11", "TC-A", "ListOps"),
            ("Table 3", "Linformer", "average"),
            ("Table 3", "Performer", "average"),
            ("Table 3", "BigBird", "average"),
            ("Table 3", "TF-A", "average"),
            ("Table 3", "TC-A", "average"),
            ("Section 4.2", section, "ListOps"),
            ("Section 4.2", section, "Text"),
            ("Table 12", "TC-A", "PubMed, Arxiv"),
        ];
        assert_eq!(reproduced, expected);
    }

    #[test]
    fn mixed_models_are_exact_means_over_layers() {
        for model in ["TC-A, 6 layers", "TC-A, 9 layers"] {
            let cell = cell("Table 2", model, "BERT-Base");
            assert!((cell.ours.expect("it is a mean") - cell.published).abs() < 0.006);
        }
    }

    #[test]
    fn coarse_attention_on_list_ops_is_exact_with_all_nodes_and_nine_times_less_with_one_path() {
        let task = cell("Table 11", "TC-A", "ListOps");
        let ours = task.ours.expect("there is a formula");
        assert!((ours - task.published).abs() < 0.005);
        let shape = tasks()[0].shape;
        let path = percent(&shape, shape.tree_coarse(&[2; LRA_HEIGHT]));
        assert!((path / ours - 40.0 / 378.0).abs() < 1e-9);
    }

    /// The paper says that a tree of height `h` has `2^h` nodes.
    #[test]
    fn with_one_node_more_both_text_tasks_are_within_three_percent() {
        for column in ["ListOps", "Text"] {
            let cell = cell("Table 11", "TC-A", column);
            let ours = cell.ours.expect("there is a formula") * 64.0 / 63.0;
            assert!(
                (ours / cell.published - 1.0).abs() < 0.03,
                "{column} {ours}"
            );
        }
    }

    #[test]
    fn other_heights_do_not_explain_retrieval_and_image() {
        for (task, published) in tasks().into_iter().skip(2).zip([0.61, 4.66]) {
            for height in 1..10 {
                let cost = task.shape.tree_coarse_all_nodes(&vec![2; height]);
                let difference = percent(&task.shape, cost) / published - 1.0;
                assert!(difference.abs() > 0.03, "{} {height}", task.name);
            }
        }
    }

    #[test]
    fn fine_attention_would_be_far_cheaper_with_equally_full_leaves() {
        for (task, published) in tasks().into_iter().zip([37.82, 28.19, 29.48, 41.23]) {
            let balanced = CostShape::balanced_share(&[2; LRA_HEIGHT]);
            let ideal = percent(
                &task.shape,
                task.shape.tree_fine(&[2; LRA_HEIGHT], balanced),
            );
            assert!(ideal < published / 10.0, "{} {ideal}", task.name);
        }
    }

    #[test]
    fn the_guide_has_the_table_that_the_code_prints() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/flops.md");
        let page = std::fs::read_to_string(page).expect("the guide is part of the repository");
        assert!(
            page.contains(&table()),
            "docs/guide/flops.md: replace the table by the output of \
             `cargo run -p arbora-attention --example published_flops --features flex`"
        );
    }
}
