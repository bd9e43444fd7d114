//! What `cargo metadata` says about the workspace.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::backend::Backend;
use crate::shell;

/// A member of the workspace.
#[derive(Default, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// What each feature switches on.
    pub features: BTreeMap<String, Vec<String>>,
    /// The registries it may go to: none given means any.
    publish: Option<Vec<String>>,
}

impl Package {
    /// Whether the manifest lets it be published: such a crate is embedded by users.
    pub fn published(&self) -> bool {
        self.publish != Some(Vec::new())
    }
}

/// The members of the workspace.
pub fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let text =
        shell::output(shell::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("output of cargo metadata")?;
    Ok(metadata.packages)
}

/// The value of `--features` that compiles exactly `backends` into every member that knows them.
pub fn features(packages: &[Package], backends: &[Backend]) -> String {
    let mut features = Vec::new();
    for package in packages {
        for backend in backends {
            if package.features.contains_key(backend.name()) {
                features.push(format!("{}/{}", package.name, backend.name()));
            }
        }
    }
    features.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_name_only_packages_that_have_them() {
        let package = |name: &str, features: &[&str]| Package {
            name: name.to_string(),
            features: features.iter().map(|&name| (name.into(), vec![])).collect(),
            ..Package::default()
        };
        let (both, one) = (["flex", "tch"], ["tch"]);
        let packages = [package("a", &both), package("b", &[]), package("c", &one)];
        assert_eq!(
            features(&packages, &[Backend::Flex, Backend::Tch]),
            "a/flex,a/tch,c/tch"
        );
    }
}
