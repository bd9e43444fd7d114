//! Placements as people write them: nodes and devices by name.

use crate::{backend, settings};
use anyhow::{Context as _, Result, anyhow, ensure};
use arbora::models::tree_coder::{NodeName, Placement};
use burn::tensor::Device;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of commands whose model may be spread over devices.
#[derive(Debug, Default, Args)]
pub struct PlaceArgs {
    /// Compute a node of the tree, and all below it, on another device: a backend compiled in, or
    /// ws://HOST:PORT where `arbora serve` listens. The nodes are root, 0, 1, 0.0, .. May be given several
    /// times; the nearest placed ancestor counts. Everything else computes on the --backend.
    #[arg(long = "place", value_name = "NODE=DEVICE")]
    place: Vec<String>,
    /// A JSON file with the same, as {"NODE": "DEVICE", ..}. --place goes over it.
    #[arg(long, value_name = "FILE")]
    placement: Option<PathBuf>,
}

/// Why other models than those of language cannot be spread.
pub const NOTHING_TO_PLACE: &str =
    "--place: only the trees of language models (task lm) have nodes to place";

impl PlaceArgs {
    /// Refuses placements, for a model without nodes.
    pub fn refuse(&self) -> Result<()> {
        ensure!(self.is_empty(), NOTHING_TO_PLACE);
        Ok(())
    }

    /// Whether nothing is placed.
    pub fn is_empty(&self) -> bool {
        self.place.is_empty() && self.placement.is_none()
    }

    /// Opens the devices that are named.
    pub fn open(&self) -> Result<Placement> {
        let mut devices: BTreeMap<String, Device> = BTreeMap::new();
        let mut placement = Placement::new();
        for (node, name) in self.names()? {
            if !devices.contains_key(&name) {
                let (_, opened) = backend::open(Some(&name))
                    .with_context(|| format!("cannot place node {node}"))?;
                devices.insert(name.clone(), opened);
            }
            placement = placement.with(node, devices[&name].clone());
        }
        Ok(placement)
    }

    /// The nodes and devices that are named, before any is opened.
    fn names(&self) -> Result<BTreeMap<NodeName, String>> {
        let file = self.placement.as_deref().map(read);
        let mut names = file.transpose()?.unwrap_or_default();
        for entry in &self.place {
            let (node, device) = entry
                .split_once('=')
                .ok_or_else(|| anyhow!("--place {entry}: expected NODE=DEVICE"))?;
            let node: NodeName = node.parse().with_context(|| format!("--place {entry}"))?;
            names.insert(node, device.to_owned());
        }
        Ok(names)
    }
}

/// The nodes and devices that a file names.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<NodeName, String>> {
    serde_json::from_str(&settings::read_text(path)?)
        .with_context(|| format!("{}: expected {{\"NODE\": \"DEVICE\", ..}}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &[&str], placement: Option<&Path>) -> Result<BTreeMap<NodeName, String>> {
        let args = PlaceArgs {
            place: place.iter().map(|entry| entry.to_string()).collect(),
            placement: placement.map(PathBuf::from),
        };
        args.names()
    }

    #[test]
    fn flags_go_over_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("placement.json");
        std::fs::write(&file, r#"{"root": "flex", "0.1": "ws://a:1"}"#).unwrap();
        let found = names(&["0.1=ws://b:2/1", "1=flex"], Some(&file)).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("\u{feff}{text}")).unwrap();
        let marked = names(&["0.1=ws://b:2/1", "1=flex"], Some(&file)).unwrap();
        assert_eq!(marked, found, "a byte order mark makes no difference");
        let found: Vec<(String, String)> = found
            .into_iter()
            .map(|(node, device)| (node.to_string(), device))
            .collect();
        let expected = [("root", "flex"), ("0.1", "ws://b:2/1"), ("1", "flex")];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn entries_that_name_no_node_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (text, says) in [
            (r#"{"first": "flex"}"#, "first: expected the name of a node"),
            (r#"{"0": 1}"#, "invalid type"),
            ("[]", "invalid type"),
            ("{", "EOF"),
        ] {
            let file = folder.path().join("placement.json");
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", names(&[], Some(&file)).unwrap_err());
            assert!(
                error.contains("placement.json") && error.contains(says),
                "{error}"
            );
        }
        let missing = names(&[], Some(&folder.path().join("none.json"))).unwrap_err();
        assert!(format!("{missing:#}").contains("cannot read"));
        let error = format!("{:#}", names(&["0.1"], None).unwrap_err());
        assert!(error.contains("expected NODE=DEVICE"), "{error}");
        let error = format!("{:#}", names(&["x=flex"], None).unwrap_err());
        assert!(error.contains("expected the name of a node"), "{error}");
    }
}
