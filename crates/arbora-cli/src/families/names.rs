//! The three families of tasks and models, by their names.

use super::Family;
use super::language::{LanguageModelKind, LanguageTask};
use super::retrieval::{RetrievalModelKind, RetrievalTask};
use super::sequence::{SequenceModelKind, SequenceTask};
use crate::settings;
use anyhow::{Result, anyhow, bail};
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

/// Declares an enum, and the name that each value has on the command line and in files.
macro_rules! kind {
    (
        $(#[$about:meta])*
        $kind:ident { $($(#[$meaning:meta])* $value:ident = $name:literal,)+ }
    ) => {
        $(#[$about])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, ::serde::Serialize, ::serde::Deserialize, ::clap::ValueEnum,
        )]
        pub enum $kind {
            $($(#[$meaning])* #[value(name = $name)] #[serde(rename = $name)] $value,)+
        }

        impl $kind {
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $name,)+
                }
            }
        }
    };
}
pub(crate) use kind;

/// The value of a name.
pub fn named<V: ValueEnum>(name: &str) -> Result<V> {
    let refused = |_| anyhow!("expected one of {}, got {name}", names::<V>().join(", "));
    V::from_str(name, false).map_err(refused)
}

/// A value of any family. Its names on the command line are those of all families; one that several families have
/// stands for the value of each.
macro_rules! any {
    ($(#[$about:meta])* $any:ident: $retrieval:ident, $sequence:ident, $language:ident) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $any {
            Retrieval($retrieval),
            Sequence($sequence),
            Language($language),
        }

        impl $any {
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
        let text = settings::read_text(&folder.join(crate::run::CONFIG)).ok()?;
        let settings: serde_json::Value = serde_json::from_str(&text).ok()?;
        Self::from_str(settings["task"].as_str()?, false).ok()
    }
}

impl AnyModel {
    /// The name of the model, for a task of a family; refused where it is of other families only.
    pub fn of<F: Family>(self) -> Result<&'static str> {
        let (name, known) = (self.name(), names::<F::ModelKind>());
        let learns = match self {
            Self::Retrieval(_) => "retrieval",
            Self::Sequence(_) => "sequences",
            Self::Language(_) => "language",
        };
        if known.iter().any(|other| other == name) {
            Ok(name)
        } else {
            bail!(
                "--model: {name} is for {learns}; expected one of {}",
                known.join(", ")
            )
        }
    }
}

/// The names of all values on the command line.
pub fn names<V: ValueEnum>() -> Vec<String> {
    let values = V::value_variants().iter();
    let name = |value: &V| Some(value.to_possible_value()?.get_name().to_owned());
    values.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::language::LanguageConfig;
    use crate::families::retrieval::RetrievalConfig;
    use crate::families::sequence::SequenceConfig;

    #[test]
    fn every_task_of_all_families_can_be_named() {
        let tasks = [
            names::<RetrievalTask>(),
            names::<SequenceTask>(),
            names::<LanguageTask>(),
        ];
        assert_eq!(tasks.concat(), names::<AnyTask>());
    }

    #[test]
    fn every_model_of_all_families_can_be_named_once_and_found_by_its_name() {
        let families = [
            names::<RetrievalModelKind>(),
            names::<SequenceModelKind>(),
            names::<LanguageModelKind>(),
        ];
        let all = names::<AnyModel>();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
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
    }
}
