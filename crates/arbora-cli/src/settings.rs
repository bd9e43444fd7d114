//! Settings in layers: a file over a preset, single settings over both.

use crate::families::Family;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use arbora::tasks::{TaskError, text};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Puts a configuration file (JSON, any part of the whole) and single settings (`trainer.steps=100`)
/// over a configuration.
///
/// # Errors
/// If the file cannot be read, a key is unknown (the nearest known one is named) or a value has
/// the wrong type or range, or they change the run to start from.
pub fn layered<F: Family>(base: &F, file: Option<&Path>, settings: &[String]) -> Result<F> {
    let mut value = serde_json::to_value(base)?;
    if let Some(path) = file {
        let text = read_text(path)?;
        let layer: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        if !layer.is_object() {
            bail!("{}: expected a JSON object of settings", path.display());
        }
        put::<F>(&mut value, layer).with_context(|| format!("in {}", path.display()))?;
    }
    for setting in settings {
        let (key, text) = setting
            .split_once('=')
            .ok_or_else(|| anyhow!("--set {setting}: expected key=value"))?;
        // A bare word is a string, so that names need no quotes.
        let layer = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        let layer = key
            .rsplit('.')
            .fold(layer, |inner, part| json!({ part: inner }));
        put::<F>(&mut value, layer).with_context(|| format!("--set {setting}"))?;
    }
    if start(&value)? != start(&serde_json::to_value(base)?)? {
        // The preset of such a run has other settings, below these layers.
        bail!("from: give it as --from RUN");
    }
    serde_json::from_value::<F>(value)?.checked()
}

/// The run whose weights a run with these settings starts from.
fn start(settings: &Value) -> Result<Option<PathBuf>> {
    let from = settings["from"].as_str().map(std::path::absolute);
    from.transpose()
        .context("cannot read the working directory")
}

/// Reads a configuration that a run folder holds.
///
/// # Errors
/// If the file is missing, is no JSON or holds unknown or invalid settings.
pub fn read<F: Family>(path: &Path) -> Result<F> {
    let text = read_text(path)?;
    let config: F = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a configuration of this version", path.display()))?;
    config
        .checked()
        .with_context(|| format!("in {}", path.display()))
}

/// Names of settings, and those that they had when the first runs were made. Fingerprints in checkpoints and of stored
/// numbers are of these.
pub const FIRST_NAMES: [(&str, &str); 2] = [("n_heads", "heads"), ("n_kv_heads", "kv_heads")];

/// The text of a file that people may have written: without the byte order mark that some editors begin it with.
pub fn read_text(path: &Path) -> Result<String> {
    text::read_text(path).map_err(|error| match error {
        TaskError::Read { path, source } => {
            Error::new(source).context(format!("cannot read {}", path.display()))
        }
        error => error.into(),
    })
}

/// What a file of JSON holds; `None` where there is no such file.
///
/// - otherwise: what is wrong with a file that holds something else
pub fn read_json<T: DeserializeOwned>(path: &Path, otherwise: &str) -> Result<Option<T>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_str(without_mark(&text))
        .map(Some)
        .with_context(|| format!("{}: {otherwise}", path.display()))
}

/// Refuses a place within a folder of data that settings name: what is written there would become a part of them.
///
/// - what: names the place in the message
pub fn refuse_within_data(settings: &impl Serialize, place: &Path, what: &str) -> Result<()> {
    let settings = serde_json::to_value(settings)?;
    let place = resolved(place)?;
    let mut found = Vec::new();
    folders(&settings["data"], &mut found)?;
    for data in found {
        if place.starts_with(data.canonicalize()?) {
            bail!(
                "{what}: {} is within the data {}, and would become a part of them",
                place.display(),
                data.display()
            );
        }
    }
    Ok(())
}

/// The folders that settings name.
fn folders<'a>(settings: &'a Value, found: &mut Vec<&'a Path>) -> Result<()> {
    match settings {
        Value::Object(settings) => settings.values().try_for_each(|one| folders(one, found)),
        Value::String(path) if Path::new(path).is_absolute() => match std::fs::metadata(path) {
            Err(error) if !is_missing(&error) => {
                Err(error).with_context(|| format!("cannot read {path}"))
            }
            data => {
                found.extend(
                    data.is_ok_and(|data| data.is_dir())
                        .then(|| Path::new(path)),
                );
                Ok(())
            }
        },
        _ => Ok(()),
    }
}

/// Whether an error says that nothing is at a path.
fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A path that may not be there yet, without links and `..` in what is.
fn resolved(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).context("cannot read the working directory")?;
    for there in path.ancestors() {
        match there.canonicalize() {
            Err(error) if is_missing(&error) => {}
            known => {
                let known = known.with_context(|| format!("cannot read {}", there.display()))?;
                return Ok(known.join(path.strip_prefix(there)?));
            }
        }
    }
    Ok(path)
}

/// A text without a byte order mark, which editors write.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Puts `layer` over the whole configuration `base`, one setting after the other, so that a value of
/// the wrong type is reported with its key.
fn put<C: Serialize + DeserializeOwned>(base: &mut Value, layer: Value) -> Result<()> {
    for (path, value) in collect(base, layer, "")? {
        let mut slot = &mut *base;
        for key in path.split('.') {
            slot = &mut slot[key];
        }
        *slot = value;
        let whole = C::deserialize(&*base).context(path)?;
        // With what a choice left out, so that it is known to the settings after this one.
        *base = serde_json::to_value(whole)?;
    }
    Ok(())
}

/// A setting whose value is one of several forms, some of them objects.
const CHOICE: &str = "architecture.order";

/// The settings of `layer` by their paths in `base`, below a path. A choice that carries settings of its own (an
/// object that names its `kind`, or a value that replaces another type) is one setting; single settings
/// of the choice already made can be changed alone.
fn collect(base: &Value, layer: Value, path: &str) -> Result<Vec<(String, Value)>> {
    let is_choice = |base: &Map<_, _>, layer: &Map<_, _>| {
        path == CHOICE || base.contains_key("kind") && layer.contains_key("kind")
    };
    let (base, layer) = match (base, layer) {
        (Value::Object(base), Value::Object(layer)) if !is_choice(base, &layer) => (base, layer),
        (_, layer) => return Ok(vec![(path.to_owned(), layer)]),
    };
    let below = |key: &String| match path {
        "" => key.clone(),
        path => format!("{path}.{key}"),
    };
    let mut found = Vec::new();
    for (key, value) in layer {
        let renamed = |(name, first): &(&str, &str)| *first == key && base.contains_key(*name);
        let renamed = FIRST_NAMES.into_iter().find(renamed);
        let key = renamed.map_or(key, |(name, _)| name.to_owned());
        let path = below(&key);
        let Some(slot) = base.get(&key) else {
            bail!(
                "unknown key {path}{}",
                nearest(&path, base.keys().map(below))
            );
        };
        found.extend(collect(slot, value, &path)?);
    }
    Ok(found)
}

/// A setting by its dotted path: what is asked for, and what was found.
pub type Difference<'a> = (String, &'a Value, &'a Value);

/// The settings in which `found` is not as `wanted`.
fn differences<'a>(wanted: &'a Value, found: &'a Value) -> Vec<Difference<'a>> {
    let (left, right) = match (wanted, found) {
        (Value::Object(left), Value::Object(right)) => (left, right),
        _ if wanted == found => return Vec::new(),
        _ => return vec![(String::new(), wanted, found)],
    };
    let missing = right.keys().filter(|key| !left.contains_key(*key));
    let within = left.keys().chain(missing).flat_map(|key| {
        let inner = differences(&wanted[key], &found[key]).into_iter();
        inner.map(move |(inner, wanted, found)| match inner.as_str() {
            "" => (key.clone(), wanted, found),
            _ => (format!("{key}.{inner}"), wanted, found),
        })
    });
    within.collect()
}

/// The first setting in which `found` is not as `wanted`.
pub fn difference<'a>(wanted: &'a Value, found: &'a Value) -> Option<Difference<'a>> {
    differences(wanted, found).into_iter().next()
}

/// The first setting in which `found` is not as `wanted`, but for where data lie: they may be the same, moved. A tokenizer is
/// not among them: a run keeps its own.
pub fn difference_but_places<'a>(wanted: &'a Value, found: &'a Value) -> Option<Difference<'a>> {
    let is_place = |value: &Value| {
        value
            .as_str()
            .is_some_and(|path| Path::new(path).is_absolute())
    };
    let mut differences = differences(wanted, found).into_iter();
    differences.find(|(key, wanted, found)| {
        let is_data = key.starts_with("data.") && !key.starts_with("data.tokenizer.");
        !(is_data && is_place(wanted) && is_place(found))
    })
}

/// `; did you mean …?` with the most similar of the known names.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known
        .map(|known| (strsim::damerau_levenshtein(name, &known), known))
        .min()
        .map(|(_, known)| format!("; did you mean {known}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::Preset;
    use crate::families::retrieval::RetrievalConfig;

    fn read(setting: &str) -> Result<RetrievalConfig> {
        let base = RetrievalConfig::preset("images", Preset::Small, None)?;
        layered(&base, None, &[setting.to_owned()])
    }

    #[test]
    fn settings_are_read_as_json_or_as_words() {
        assert_eq!(read("trainer.steps=5").unwrap().trainer.steps, 5);
        let order = |setting| json!(read(setting).unwrap().architecture.order);
        assert_eq!(order("architecture.order=morton"), "morton");
        let axis = order(r#"architecture.order={"axis":0}"#);
        assert_eq!(axis, json!({ "axis": 0 }));
        assert!(read("steps").is_err());
        // By its first name.
        assert_eq!(
            read("architecture.heads=2").unwrap().architecture.n_heads,
            2
        );
    }

    #[test]
    fn left_out_settings_and_number_forms_make_no_difference() {
        let folder = |more: &str| {
            let data = r#"data={"kind":"folder","path":"faces","held_out":3"#;
            read(&format!("{data}{more}}}")).unwrap()
        };
        assert!(folder("") == folder(r#","size":null,"channels":null"#));
        assert!(folder("") != folder(r#","size":[8,8]"#));
        let rate = |text: &str| read(&format!("trainer.learning_rate={text}")).unwrap();
        assert!(rate("1") == rate("1.0") && rate("1") != rate("2"));
    }

    #[test]
    fn the_first_difference_is_named_by_its_key() {
        let one = json!({"a": 1, "b": {"c": 2}});
        assert_eq!(difference(&one, &one), None);
        let key = |other: &Value| difference(&one, other).map(|(key, ..)| key);
        assert_eq!(key(&json!({"a": 1, "b": {"c": 3}})), Some("b.c".into()));
        let longer = json!({"a": 1, "b": {"c": 2, "d": 0}});
        assert_eq!(key(&longer), Some("b.d".into()));

        let places = |key: &str, name: &str| json!({"data": {key: {"path": format!("/{name}")}}});
        let moved = |key: &str| {
            let (one, other) = (places(key, "one"), places(key, "other"));
            difference_but_places(&one, &other).is_none()
        };
        assert!(
            moved("source") && !moved("tokenizer"),
            "a run keeps its tokenizer"
        );
    }
}
