//! The numbers of finished runs, and by what they are known again.

use crate::settings::{FIRST_NAMES, read_json};
use anyhow::Result;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// What a run came to on its test items. Nothing in it depends on the machine or the hour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Of [`Origin`].
    pub fingerprint: String,
    /// The line of the table that it belongs to.
    pub line: String,
    pub seed: u64,
    /// The tree and the text, where they are varied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// The commit of the program that measured it.
    pub commit: String,
    pub backend: String,
    /// Of the family's numbers.
    pub version: u32,
    pub steps: u64,
    pub items: u64,
    /// What an item is, in the plural.
    pub of: String,
    pub parameters: u64,
    /// `None` where the run diverged: its training ended because its numbers did, or its quality is no number.
    #[serde(deserialize_with = "read_finite")]
    pub metrics: Option<BTreeMap<String, f64>>,
    /// When the training was this good, for experiments that ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<Reached>,
}

impl Entry {
    /// A number; `None` where it was not measured or the run diverged.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.as_ref()?.get(name).copied()
    }
}

/// When the held-out accuracy of a training first was at least this high.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    pub accuracy: f64,
    /// `None` where it never was.
    pub step: Option<u64>,
}

/// Numbers that are some; `None` where a quality is none.
pub fn finite(mut metrics: BTreeMap<String, f64>) -> Option<BTreeMap<String, f64>> {
    let is_lost = |name: &str| metrics.get(name).is_some_and(|number| !number.is_finite());
    let is_lost = ["loss", "log_likelihood"].into_iter().any(is_lost);
    metrics.retain(|_, number| number.is_finite());
    (!is_lost).then_some(metrics)
}

/// JSON has `null` for numbers that are none.
fn read_finite<'a, D: Deserializer<'a>>(
    from: D,
) -> Result<Option<BTreeMap<String, f64>>, D::Error> {
    let metrics = Option::<BTreeMap<String, Option<f64>>>::deserialize(from)?;
    let number = |(name, number): (String, Option<f64>)| (name, number.unwrap_or(f64::NAN));
    Ok(metrics.and_then(|metrics| finite(metrics.into_iter().map(number).collect())))
}

/// Everything that decides what a run comes to.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    pub family: &'a str,
    /// Of the family's numbers.
    pub version: u32,
    pub backend: &'a str,
    pub settings: &'a Value,
    /// Of the data; `None` where the settings say all.
    pub digest: Option<&'a str>,
    /// How the model is measured: as it learned, walking at random, or while its learning rate is chosen.
    pub route: &'a str,
    /// The fingerprint of the run whose weights it starts from.
    pub from: Option<&'a str>,
}

impl Origin<'_> {
    pub fn fingerprint(&self) -> String {
        let mut settings = self.settings.clone();
        // What is kept of a run changes no number in it.
        for key in ["trainer.checkpoint_every", "trainer.keep_checkpoints"] {
            remove(&mut settings, key);
        }
        if let Some(architecture) = settings.pointer_mut("/architecture") {
            for (name, first) in FIRST_NAMES {
                if let Some(value) = architecture.get(name).cloned() {
                    architecture[first] = value;
                    remove(architecture, name);
                }
            }
        }
        let mut all = json!({
            "family": self.family, "version": self.version, "backend": self.backend, "settings": settings,
            "data": self.digest, "route": self.route, "from": self.from,
        });
        forget_paths(&mut all);
        all.sort_all_objects();
        let hash = Sha256::digest(all.to_string().as_bytes());
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Leaves paths out: the digest of the data covers what they lead to.
fn forget_paths(value: &mut Value) {
    match value {
        Value::Object(object) => object.values_mut().for_each(forget_paths),
        Value::Array(values) => values.iter_mut().for_each(forget_paths),
        Value::String(path) if Path::new(path).is_absolute() => *value = Value::Null,
        _ => {}
    }
}

/// Takes the value at a dotted key out of settings, if there is one.
pub fn remove(settings: &mut Value, key: &str) {
    let (group, last) = match key.rsplit_once('.') {
        Some((groups, last)) => {
            let path = format!("/{}", groups.replace('.', "/"));
            (settings.pointer_mut(&path), last)
        }
        None => (Some(settings), key),
    };
    if let Some(group) = group.and_then(Value::as_object_mut) {
        group.remove(last);
    }
}

/// The entries of a page's numbers, by their fingerprints.
pub type Store = BTreeMap<String, Entry>;

/// What is stored beside a page; nothing where there is no such file.
pub fn read(path: &Path) -> Result<Store> {
    #[derive(Deserialize)]
    struct File {
        runs: Vec<Entry>,
    }
    let file: Option<File> = read_json(path, "not the numbers of a comparison")?;
    Ok(by_fingerprint(file.map_or(Vec::new(), |file| file.runs)))
}

pub fn by_fingerprint(entries: Vec<Entry>) -> Store {
    let entries = entries.into_iter();
    entries
        .map(|entry| (entry.fingerprint.clone(), entry))
        .collect()
}

/// What was measured of a run when it was finished, in its folder: so that no process measures the runs of others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub entries: Vec<Entry>,
    /// Of a forward pass, by its queries; `None` where it was not timed.
    pub seconds_per_query: Option<f64>,
}

/// The file of [`Measured`].
pub const MEASURED: &str = "measured.json";

/// What was measured of the run in a folder, if it was.
pub fn measured(folder: &Path) -> Result<Option<Measured>> {
    let what = "not the numbers of a run; without this file they are measured again";
    read_json(&folder.join(MEASURED), what)
}

/// The commit of the checkout that this program was built from; `+` where its code is another.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.args(["-C", env!("CARGO_MANIFEST_DIR")]).args(args);
        let output = command.output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".into();
    };
    let code = ["status", "--porcelain", "--", ":/Cargo.lock", ":/crates"];
    let changed = git(&code).is_some_and(|changed| !changed.is_empty());
    if changed { commit + "+" } else { commit }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An entry with these numbers.
    pub fn entry(line: &str, seed: u64, metrics: &[(&str, f64)]) -> Entry {
        let metrics = metrics.iter();
        let metrics = metrics.map(|(name, number)| ((*name).to_owned(), *number));
        Entry {
            fingerprint: format!("{line}-{seed}"),
            line: line.into(),
            seed,
            case: None,
            commit: "1a2b3c4".into(),
            backend: "flex".into(),
            version: 1,
            steps: 10,
            items: 100,
            of: "test images".into(),
            parameters: 1_234_567,
            metrics: finite(metrics.collect()),
            reached: Vec::new(),
        }
    }

    #[test]
    fn numbers_that_are_none_are_left_out_and_a_loss_that_is_none_is_no_result() {
        let read = |metrics: &str| {
            let mut whole = serde_json::to_value(entry("a", 0, &[])).unwrap();
            whole["metrics"] = serde_json::from_str(metrics).unwrap();
            serde_json::from_value::<Entry>(whole).unwrap().metrics
        };
        let some = read(r#"{"loss": 2.0, "perplexity": null}"#).unwrap();
        assert_eq!(some, [("loss".to_owned(), 2.0)].into());
        assert_eq!(read(r#"{"loss": null, "perplexity": 1.0}"#), None);
        assert_eq!(read("null"), None);
        let measured = |loss: f64| {
            let numbers = [("loss", loss), ("perplexity", f64::INFINITY)];
            entry("a", 0, &numbers).metrics
        };
        assert_eq!(measured(800.0).unwrap().len(), 1);
        assert_eq!(measured(f64::NAN), None);
    }

    #[test]
    fn a_fingerprint_covers_all_that_decides_a_number_and_nothing_else() {
        let settings = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let own = settings(
            r#"{"data": {"path": "/a/b"}, "trainer": {"seed": 1, "keep_checkpoints": 2}}"#,
        );
        let base = Origin {
            family: "retrieval",
            version: 1,
            backend: "flex",
            settings: &own,
            digest: None,
            route: "learned",
            from: None,
        };
        // The same elsewhere, in another order, with other checkpoints.
        let moved =
            settings(r#"{"trainer": {"keep_checkpoints": 9, "seed": 1}, "data": {"path": "/c"}}"#);
        let same = Origin {
            settings: &moved,
            ..base.clone()
        };
        assert_eq!(base.fingerprint(), same.fingerprint());
        assert_eq!(base.fingerprint().len(), 64);
        let other = settings(r#"{"data": {"path": "/a/b"}, "trainer": {"seed": 2}}"#);
        let assert_other = |change: &dyn Fn(&mut Origin)| {
            let mut changed = base.clone();
            change(&mut changed);
            assert_ne!(base.fingerprint(), changed.fingerprint(), "{changed:?}");
        };
        assert_other(&|origin| origin.family = "language");
        assert_other(&|origin| origin.version = 2);
        assert_other(&|origin| origin.backend = "cuda");
        assert_other(&|origin| origin.digest = Some("1"));
        assert_other(&|origin| origin.route = "random");
        assert_other(&|origin| origin.from = Some("1"));
        let changed = Origin {
            settings: &other,
            ..base.clone()
        };
        assert_ne!(base.fingerprint(), changed.fingerprint());
    }

    #[test]
    fn renamed_settings_keep_their_fingerprint() {
        let fingerprint = |architecture: Value| {
            let settings = json!({ "architecture": architecture });
            let origin = Origin {
                family: "sequence",
                version: 1,
                backend: "flex",
                settings: &settings,
                digest: None,
                route: "learned",
                from: None,
            };
            origin.fingerprint()
        };
        let first = fingerprint(json!({"d_model": 8, "heads": 2, "kv_heads": 1}));
        let renamed = json!({"d_model": 8, "n_heads": 2, "n_kv_heads": 1});
        assert_eq!(fingerprint(renamed), first);
        assert_ne!(
            fingerprint(json!({"d_model": 8, "n_heads": 1, "n_kv_heads": 1})),
            first
        );
    }

    #[test]
    fn keys_are_taken_out_wherever_they_are() {
        let mut config = json!({"a": 1, "b": {"c": {"d": 2, "e": 3}}});
        for key in ["a", "b.c.d", "b.x.y", "z"] {
            remove(&mut config, key);
        }
        assert_eq!(config, json!({"b": {"c": {"e": 3}}}));
    }

    #[test]
    fn what_is_stored_is_found_again_and_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.json");
        assert!(read(&path).unwrap().is_empty());
        let stored = entry("a", 3, &[("accuracy", 0.1 + 0.2)]);
        std::fs::write(&path, json!({ "runs": [stored], "title": "x" }).to_string()).unwrap();
        assert_eq!(read(&path).unwrap()["a-3"], stored);
        std::fs::write(&path, r#"{"runs": 330}"#).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("not the numbers of a comparison"), "{error}");
    }
}
