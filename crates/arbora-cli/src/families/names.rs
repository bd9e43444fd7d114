//! The three families of tasks and models, by their names.

use super::Family;
use super::language::{LanguageModelKind, LanguageTask};
use super::retrieval::{RetrievalModelKind, RetrievalTask};
use super::sequence::{SequenceModelKind, SequenceTask};
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

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

/// A value of any family. Its names on the command line are those of all families; one that several families have
/// stands for the value of each.
macro_rules! any {
    ($(#[$about:meta])* $any:ident: $retrieval:ident, $sequence:ident, $language:ident) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $any {
            /// Answering queries from a context.
            Retrieval($retrieval),
            /// Classifying the tokens of a sequence.
            Sequence($sequence),
            /// Predicting each next token of a text.
            Language($language),
        }

        impl $any {
            /// The name used on the command line and in files.
            pub fn name(self) -> &'static str {
                match self {
                    Self::Retrieval(value) => value.name(),
                    Self::Sequence(value) => value.name(),
                    Self::Language(value) => value.name(),
                }
            }
        }

        impl ValueEnum for $any {
            fn value_variants<'a>() -> &'a [Self] {
                static ALL: LazyLock<Vec<$any>> = LazyLock::new(|| {
                    let retrieval = $retrieval::value_variants().iter();
                    let sequence = $sequence::value_variants().iter();
                    let language = $language::value_variants().iter();
                    let mut names = BTreeSet::new();
                    (retrieval.map(|value| $any::Retrieval(*value)))
                        .chain(sequence.map(|value| $any::Sequence(*value)))
                        .chain(language.map(|value| $any::Language(*value)))
                        .filter(|value| names.insert(value.name()))
                        .collect()
                });
                &ALL
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                match self {
                    Self::Retrieval(value) => value.to_possible_value(),
                    Self::Sequence(value) => value.to_possible_value(),
                    Self::Language(value) => value.to_possible_value(),
                }
            }
        }
    };
}

any! {
    /// What is learned, of any family.
    AnyTask: RetrievalTask, SequenceTask, LanguageTask
}

any! {
    /// Which model learns, of any family.
    AnyModel: RetrievalModelKind, SequenceModelKind, LanguageModelKind
}

impl AnyTask {
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

impl AnyModel {
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
