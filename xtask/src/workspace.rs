//! What `cargo metadata` says about the workspace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::backend::Backend;
use crate::shell;

/// A member of the workspace.
pub struct Package {
    pub name: String,
    pub folder: PathBuf,
    /// What each feature switches on.
    pub features: BTreeMap<String, Vec<String>>,
    /// Whether the manifest lets it be published: such a crate is embedded by users.
    pub published: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    features: BTreeMap<String, Vec<String>>,
    /// The registries it may go to: none given means any.
    publish: Option<Vec<String>>,
}

/// The members of the workspace.
///
/// # Errors
/// When a manifest is not valid.
pub fn packages() -> Result<Vec<Package>> {
    let text =
        shell::output(shell::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("output of cargo metadata")?;
    let package = |package: MetadataPackage| Package {
        folder: package
            .manifest_path
            .parent()
            .unwrap_or(Path::new(""))
            .to_path_buf(),
        features: package.features,
        published: package
            .publish
            .is_none_or(|registries| !registries.is_empty()),
        name: package.name,
    };
    Ok(metadata.packages.into_iter().map(package).collect())
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
            folder: PathBuf::new(),
            features: features
                .iter()
                .map(|name| (name.to_string(), Vec::new()))
                .collect(),
            published: true,
        };
        let packages = [
            package("a", &["flex", "tch"]),
            package("b", &[]),
            package("c", &["tch"]),
        ];
        assert_eq!(
            features(&packages, &[Backend::Flex, Backend::Tch]),
            "a/flex,a/tch,c/tch"
        );
    }
}
