//! What the authors and others report, to stand beside our numbers.

use crate::families::retrieval::RetrievalModelKind;

/// Published numbers of a task.
pub struct Published {
    /// What the numbers are, with their unit.
    pub quality: &'static str,
    /// Which of our metrics they compare with.
    pub metric: &'static str,
    /// What was learned, one column each.
    pub columns: &'static [&'static str],
    /// The numbers of a model, each with the mark of its source.
    pub rows: &'static [(RetrievalModelKind, &'static [&'static str])],
    /// What a reader has to know besides [`SOURCES`].
    pub remark: &'static str,
}

/// What the marks say.
pub const SOURCES: &str = "[B] the authors' blog post on Tree Cross Attention (the paper is arXiv \
2309.17388); [2] secondary source. All of them with the published network and budget, which are \
larger than those of a default run.";

use RetrievalModelKind::{CrossAttention, Perceiver, ReTreever};

const COPY: Published = Published {
    quality: "accuracy, %",
    metric: "accuracy",
    columns: &["N = 256", "N = 512", "N = 1,024"],
    rows: &[
        (
            CrossAttention,
            &["100.0 ± 0.0 [B]", "100.0 ± 0.0 [B]", "99.9 ± 0.2 [B]"],
        ),
        (
            ReTreever,
            &["100.0 ± 0.0 [B]", "100.0 ± 0.0 [B]", "99.6 ± 0.6 [B]"],
        ),
        (Perceiver, &["15.2 [2]", "", "11.6 [2]"]),
    ],
    remark: "N is the length of the whole sequence (data.length); the context is half of it. Tokens of \
    ReTreever, derived from the method: 6.3, 3.5 and 2.0 %.",
};

const GP: Published = Published {
    quality: "log-likelihood, nats per point",
    metric: "log_likelihood",
    columns: &["RBF"],
    rows: &[
        (CrossAttention, &["1.35 [2]"]),
        (ReTreever, &["1.25 [2]"]),
        (Perceiver, &["1.06 [2]"]),
    ],
    remark: "Tokens of ReTreever, derived from the method: 14.9 %.",
};

const SERIES: Published = Published {
    quality: "accuracy, %",
    metric: "accuracy",
    columns: &["Human Activity"],
    rows: &[
        (CrossAttention, &["89.1 ± 1.3 [2]"]),
        (ReTreever, &["88.9 ± 0.4 [2]"]),
        (Perceiver, &["87.6 ± 0.3 [2]"]),
    ],
    remark: "Other data than ours: only the order of the models can be compared. Tokens of ReTreever, \
    derived from the method: 14 %.",
};

const IMAGES: Published = Published {
    quality: "log-likelihood, nats per pixel",
    metric: "log_likelihood",
    columns: &["CelebA", "EMNIST"],
    rows: &[
        (CrossAttention, &["3.88 ± 0.01 [B]", "1.41 ± 0.00 [B]"]),
        (ReTreever, &["3.52 ± 0.01 [B]", "1.30 ± 0.01 [B]"]),
        (Perceiver, &["3.20 ± 0.01 [B]", "1.25 ± 0.01 [B]"]),
    ],
    remark: "Other data than ours: only the order of the models can be compared. Tokens of ReTreever, \
    derived from the method: 4.6 %.",
};

/// The published numbers of a task, where there are any.
pub fn of(task: &str) -> Option<&'static Published> {
    match task {
        "copy" => Some(&COPY),
        "gp" => Some(&GP),
        "series" => Some(&SERIES),
        "images" => Some(&IMAGES),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::retrieval::RetrievalTask;
    use clap::ValueEnum;

    #[test]
    fn every_published_number_has_its_column_and_a_source() {
        for published in RetrievalTask::value_variants()
            .iter()
            .filter_map(|task| of(task.name()))
        {
            for (model, numbers) in published.rows {
                assert_eq!(numbers.len(), published.columns.len(), "{}", model.name());
                for number in numbers.iter().filter(|number| !number.is_empty()) {
                    let marks = ["[B]", "[2]"];
                    assert!(marks.iter().any(|mark| number.ends_with(mark)), "{number}");
                    assert!(marks.iter().all(|mark| SOURCES.contains(mark)));
                }
            }
        }
    }
}
