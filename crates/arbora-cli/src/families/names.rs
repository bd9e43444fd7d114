//! The three families of tasks and models, by their names.

use super::Family;
use super::language::{LanguageModelKind, LanguageTask};
use super::retrieval::{RetrievalModelKind, RetrievalTask};
use super::sequence::{SequenceModelKind, SequenceTask};
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Named starting points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Our own settings: minutes of training on two cores.
    #[default]
    Small,
    /// The published architecture and schedule: hours to days on a CPU.
    Published,
}

/// The value of a name.
///
/// # Errors
/// If there is none.
pub fn named<V: ValueEnum>(name: &str) -> Result<V> {
    V::from_str(name, false).map_err(|_| {
        let known = names(V::value_variants());
        anyhow!("expected one of {known}, got {name}")
    })
}

/// What is learned, of any family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyTask {
    /// Answering queries from a context.
    Retrieval(RetrievalTask),
    /// Classifying the tokens of a sequence.
    Sequence(SequenceTask),
    /// Predicting each next token of a text.
    Language(LanguageTask),
}

impl AnyTask {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrieval(task) => task.name(),
            Self::Sequence(task) => task.name(),
            Self::Language(task) => task.name(),
        }
    }

    /// Whether both are of one family, whose runs have settings of one form.
    pub fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    /// The task that the settings in a run folder name; `None` where they cannot be read or name none,
    /// which whoever reads them whole will say.
    pub fn of_run(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join(crate::run::CONFIG)).ok()?;
        let settings: serde_json::Value = serde_json::from_str(&text).ok()?;
        Self::from_str(settings["task"].as_str()?, false).ok()
    }
}

impl ValueEnum for AnyTask {
    fn value_variants<'a>() -> &'a [Self] {
        use AnyTask::{Language, Retrieval, Sequence};
        &[
            Retrieval(RetrievalTask::Images),
            Retrieval(RetrievalTask::Copy),
            Retrieval(RetrievalTask::Gp),
            Retrieval(RetrievalTask::Series),
            Retrieval(RetrievalTask::Bandit),
            Sequence(SequenceTask::Recall),
            Sequence(SequenceTask::Needle),
            Language(LanguageTask::Lm),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Retrieval(task) => task.to_possible_value(),
            Self::Sequence(task) => task.to_possible_value(),
            Self::Language(task) => task.to_possible_value(),
        }
    }
}

/// Which model learns, of any family. A name that several families have stands for the model of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyModel {
    /// A model that answers queries from a context.
    Retrieval(RetrievalModelKind),
    /// A transformer over the tokens of a sequence.
    Sequence(SequenceModelKind),
    /// A model that predicts the next token.
    Language(LanguageModelKind),
}

impl AnyModel {
    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrieval(model) => model.name(),
            Self::Sequence(model) => model.name(),
            Self::Language(model) => model.name(),
        }
    }

    /// The name of the model of this name, for a task of a family.
    ///
    /// # Errors
    /// If it is of other families only.
    pub fn of<F: Family>(self) -> Result<&'static str> {
        self.of_family::<F::ModelKind>().map(|_| self.name())
    }

    fn of_family<K: ValueEnum>(self) -> Result<K> {
        let learns = match self {
            Self::Retrieval(_) => "retrieval",
            Self::Sequence(_) => "sequences",
            Self::Language(_) => "language",
        };
        K::from_str(self.name(), false).map_err(|_| {
            anyhow!(
                "--model: {} learns {learns}; here: {}",
                self.name(),
                names(K::value_variants())
            )
        })
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
        use AnyModel::{Language, Retrieval, Sequence};
        &[
            Retrieval(RetrievalModelKind::ReTreever),
            Retrieval(RetrievalModelKind::RandomRoute),
            Retrieval(RetrievalModelKind::OracleRoute),
            Retrieval(RetrievalModelKind::CrossAttention),
            Retrieval(RetrievalModelKind::Perceiver),
            Sequence(SequenceModelKind::Dense),
            Sequence(SequenceModelKind::TreeFine),
            Sequence(SequenceModelKind::TreeFineKary),
            Sequence(SequenceModelKind::TreeCoarse),
            Sequence(SequenceModelKind::Linformer),
            Sequence(SequenceModelKind::BigBird),
            Sequence(SequenceModelKind::Performer),
            Language(LanguageModelKind::TreeCoder),
            Language(LanguageModelKind::LinearActive),
            Language(LanguageModelKind::LinearTotal),
            // `random-route` is above.
            Language(LanguageModelKind::HashRoute),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Retrieval(model) => model.to_possible_value(),
            Self::Sequence(model) => model.to_possible_value(),
            Self::Language(model) => model.to_possible_value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::language::LanguageConfig;
    use crate::families::retrieval::RetrievalConfig;
    use crate::families::sequence::SequenceConfig;

    fn names_of<V: ValueEnum>() -> Vec<String> {
        let values = V::value_variants().iter();
        values
            .map(|value| value.to_possible_value().unwrap().get_name().to_owned())
            .collect()
    }

    #[test]
    fn every_task_of_all_families_can_be_named() {
        let tasks = [
            names_of::<RetrievalTask>(),
            names_of::<SequenceTask>(),
            names_of::<LanguageTask>(),
        ];
        assert_eq!(tasks.concat(), names_of::<AnyTask>());
    }

    #[test]
    fn every_model_of_all_families_can_be_named_once_and_found_by_its_name() {
        let families = [
            names_of::<RetrievalModelKind>(),
            names_of::<SequenceModelKind>(),
            names_of::<LanguageModelKind>(),
        ];
        let all = names_of::<AnyModel>();
        for (at, name) in all.iter().enumerate() {
            assert!(!all[..at].contains(name), "{name} twice");
        }
        for name in families.concat() {
            let model = AnyModel::from_str(&name, false).unwrap();
            let found = [
                model.of::<RetrievalConfig>().ok(),
                model.of::<SequenceConfig>().ok(),
                model.of::<LanguageConfig>().ok(),
            ];
            for (family, found) in families.iter().zip(found) {
                let expected = family.contains(&name).then_some(name.as_str());
                assert_eq!(found, expected, "{name}");
            }
        }
        let line = AnyModel::from_str("dense", false)
            .unwrap()
            .of::<LanguageConfig>()
            .unwrap_err();
        assert_eq!(
            line.to_string(),
            "--model: dense learns sequences; here: tree-coder, linear-active, linear-total, random-route, hash-route"
        );
    }
}
