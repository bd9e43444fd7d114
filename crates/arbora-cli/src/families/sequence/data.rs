//! From settings to sequences.

use super::config::SequenceTask;
use crate::families::check;
use anyhow::Result;
use arbora::tasks::recall::{Lookup, LookupBatch, NeedleConfig, RecallConfig};
use serde::{Deserialize, Serialize};

/// Where the sequences come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SequenceSource {
    /// Associative recall, drawn.
    Recall(RecallConfig),
    /// Needles in a haystack, drawn.
    Needle(NeedleConfig),
}

impl SequenceSource {
    /// What is learned from them.
    pub fn task(&self) -> SequenceTask {
        match self {
            Self::Recall(_) => SequenceTask::Recall,
            Self::Needle(_) => SequenceTask::Needle,
        }
    }

    /// The sequences; refused where the settings do not fit together.
    pub fn lookup(&self) -> Result<Lookup> {
        let lookup = match self {
            Self::Recall(recall) => Lookup::recall(recall.clone()),
            Self::Needle(needle) => Lookup::needle(needle.clone()),
        };
        check::section("data", lookup)
    }
}

/// Sequences, and how far the training is.
#[derive(Clone, Debug)]
pub struct SequenceBatch {
    pub lookup: LookupBatch,
    /// Share of the training that is done, 0 to 1.
    pub progress: f64,
}
