//! Which columns the tables of an experiment have, and how their numbers are scaled and titled.

use super::*;

pub(super) fn scientific(rate: Option<f64>) -> String {
    rate.map_or(String::new(), |rate| format!("{rate:e}"))
}

pub(super) fn is_accuracy(name: &str) -> bool {
    name.starts_with("accuracy")
}

pub(super) fn scale_of(metric: &str) -> f64 {
    if is_accuracy(metric) { 100.0 } else { 1.0 }
}

/// The title of a quality's column: what is measured, and on which kind of items.
pub(super) fn title(name: &str) -> String {
    for (metric, text) in [("accuracy", "accuracy, %"), ("log_likelihood", "log-lik")] {
        if let Some(kind) = name.strip_prefix(metric) {
            return match kind.strip_prefix('_') {
                Some(kind) => format!("{text}, {kind}"),
                None => text.into(),
            };
        }
    }
    name.into()
}

impl Column {
    /// The columns of an experiment that names none: what rows are judged by, accuracies first, as far as any of them
    /// has it; what the family shows; and what it takes.
    pub fn automatic<'a>(
        entries: impl Iterator<Item = &'a Entry>,
        family: &[crate::families::Column],
    ) -> Vec<Self> {
        let metric = |metric: &str, title: String, digits| {
            Self::Metric(Metric {
                metric: metric.into(),
                title,
                scale: scale_of(metric),
                digits,
            })
        };
        let names = entries.filter_map(|entry| entry.metrics.as_ref());
        let names: BTreeSet<&String> = names.flat_map(BTreeMap::keys).collect();
        let qualities = ["accuracy", "log_likelihood"]
            .into_iter()
            .flat_map(|quality| {
                let names = names.iter().filter(move |name| name.starts_with(quality));
                names.map(|name| metric(name, title(name), if is_accuracy(name) { 2 } else { 3 }))
            });
        let family = family
            .iter()
            .map(|column| metric(column.metric, column.title.into(), column.digits));
        let plain = [
            Plain::SecondsPerQuery,
            Plain::Parameters,
            Plain::TrainingSeconds,
        ];
        qualities
            .chain(family)
            .chain(plain.map(Self::Plain))
            .collect()
    }

    pub(super) fn title(&self) -> String {
        match self {
            Self::Metric(metric) => metric.title.clone(),
            Self::Plain(Plain::Parameters) => "parameters".into(),
            Self::Plain(Plain::Steps) => "steps".into(),
            Self::Plain(Plain::TrainingSeconds) => "training, s".into(),
            Self::Plain(Plain::SecondsPerQuery) => "µs per query".into(),
            Self::Reached { reached } => {
                // A tenth of a percent is exact in one digit, and the error of the product is not.
                let percent = (reached * 1000.0).round() / 10.0;
                format!("{percent} % accuracy at")
            }
        }
    }
}
