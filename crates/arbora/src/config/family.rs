//! The two families of tasks and models, by their names.

use super::sequence::{SequenceModelKind, SequenceTask};
use super::{ModelKind, Task};
use anyhow::{Result, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use std::path::Path;

/// What is learned, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyTask {
    /// Answering queries from a context.
    Retrieval(Task),
    /// Classifying the tokens of a sequence.
    Sequence(SequenceTask),
}

impl AnyTask {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrieval(task) => task.name(),
            Self::Sequence(task) => task.name(),
        }
    }

    /// Whether it is of the family of sequences.
    pub fn is_sequence(self) -> bool {
        matches!(self, Self::Sequence(_))
    }

    /// The task that the settings in a run folder name; `None` where they cannot be read or name none,
    /// which whoever reads them whole will say.
    pub fn of_run(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
        let settings: serde_json::Value = serde_json::from_str(&text).ok()?;
        Self::from_str(settings["task"].as_str()?, false).ok()
    }
}

impl ValueEnum for AnyTask {
    fn value_variants<'a>() -> &'a [Self] {
        use AnyTask::{Retrieval, Sequence};
        &[
            Retrieval(Task::Images),
            Retrieval(Task::Copy),
            Retrieval(Task::Gp),
            Retrieval(Task::Series),
            Retrieval(Task::Bandit),
            Sequence(SequenceTask::Recall),
            Sequence(SequenceTask::Needle),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Retrieval(task) => task.to_possible_value(),
            Self::Sequence(task) => task.to_possible_value(),
        }
    }
}

/// Which model learns, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyModel {
    /// A model that answers queries from a context.
    Retrieval(ModelKind),
    /// A transformer over the tokens of a sequence.
    Sequence(SequenceModelKind),
}

impl AnyModel {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrieval(model) => model.name(),
            Self::Sequence(model) => model.name(),
        }
    }

    /// The model, for a task of retrieval.
    ///
    /// # Errors
    /// If it is of the other family.
    pub fn retrieval(self) -> Result<ModelKind> {
        match self {
            Self::Retrieval(model) => Ok(model),
            Self::Sequence(model) => bail!(
                "--model: {} learns sequences; here: {}",
                model.name(),
                names(ModelKind::value_variants())
            ),
        }
    }

    /// The model, for a task on sequences.
    ///
    /// # Errors
    /// If it is of the other family.
    pub fn sequence(self) -> Result<SequenceModelKind> {
        match self {
            Self::Sequence(model) => Ok(model),
            Self::Retrieval(model) => bail!(
                "--model: {} learns retrieval; here: {}",
                model.name(),
                names(SequenceModelKind::value_variants())
            ),
        }
    }
}

/// The names of values on the command line.
fn names<V: ValueEnum>(values: &[V]) -> String {
    let names: Vec<String> = values
        .iter()
        .filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
        .collect();
    names.join(", ")
}

impl ValueEnum for AnyModel {
    fn value_variants<'a>() -> &'a [Self] {
        use AnyModel::{Retrieval, Sequence};
        &[
            Retrieval(ModelKind::ReTreever),
            Retrieval(ModelKind::RandomRoute),
            Retrieval(ModelKind::OracleRoute),
            Retrieval(ModelKind::CrossAttention),
            Retrieval(ModelKind::Perceiver),
            Sequence(SequenceModelKind::Dense),
            Sequence(SequenceModelKind::TreeFine),
            Sequence(SequenceModelKind::TreeFineKary),
            Sequence(SequenceModelKind::TreeCoarse),
            Sequence(SequenceModelKind::Linformer),
            Sequence(SequenceModelKind::BigBird),
            Sequence(SequenceModelKind::Performer),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Retrieval(model) => model.to_possible_value(),
            Self::Sequence(model) => model.to_possible_value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_and_model_of_both_families_can_be_named() {
        let tasks = Task::value_variants().iter().map(|task| task.name());
        let tasks = tasks.chain(
            SequenceTask::value_variants()
                .iter()
                .map(|task| task.name()),
        );
        assert!(tasks.eq(AnyTask::value_variants().iter().map(|task| task.name())));
        let count = ModelKind::value_variants().len() + SequenceModelKind::value_variants().len();
        assert_eq!(AnyModel::value_variants().len(), count);
        for model in AnyModel::value_variants() {
            assert_ne!(model.retrieval().is_ok(), model.sequence().is_ok());
        }
    }
}
