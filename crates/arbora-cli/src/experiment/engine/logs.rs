//! What the log of a run says: when it began, its last evaluation, how long it trained, when it was good enough.

use super::*;

/// When the run in a folder began: its settings are as old, also where they were written again since its data moved.
pub(super) fn begun(folder: &Path) -> Result<SystemTime> {
    let path = folder.join(CONFIG);
    let time = std::fs::metadata(&path).and_then(|file| file.modified());
    time.with_context(|| format!("cannot read {}", path.display()))
}

/// Refuses a run from other weights than its source has now.
pub(super) fn refuse_older(source: &Path, folder: &Path) -> Result<()> {
    if has_any(source, &[CONFIG])? {
        ensure!(
            begun(source)? <= begun(folder)?,
            "{}: from: {} was trained anew after this run began; move it away to train anew",
            folder.display(),
            source.display()
        );
    }
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The lines of a log of one kind.
pub(super) fn lines<'a>(log: &'a str, split: &'a str) -> impl Iterator<Item = Value> + 'a {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(move |line| line["split"] == split)
}

/// The measurements of the last evaluation of a training.
pub(super) fn last_evaluation(folder: &Path) -> Result<BTreeMap<String, f64>> {
    let log = read(&folder.join("metrics.jsonl"))?;
    let last = lines(&log, "valid").last().unwrap_or_default();
    let number = last["log_likelihood"].as_f64().unwrap_or(f64::NAN);
    Ok([("log_likelihood".to_owned(), number)].into())
}

/// The step of the first evaluation of a training whose accuracy was at least this high.
pub(super) fn first_reached(folder: &Path, accuracy: f64) -> Option<u64> {
    let log = read(&folder.join("metrics.jsonl")).ok()?;
    let mut lines = lines(&log, "valid");
    let first = lines.find(|line| {
        line["accuracy"]
            .as_f64()
            .is_some_and(|found| found >= accuracy)
    });
    first?["step"].as_u64()
}

/// Wall-clock seconds of the training steps in a timing log up to the step `last`.
pub(super) fn training_seconds(log: &str, last: u64) -> f64 {
    lines(log, "train")
        .filter(|line| line["step"].as_u64().is_some_and(|step| step <= last))
        .filter_map(|line| line["seconds"].as_f64())
        .sum()
}
