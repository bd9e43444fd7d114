//! What the log of a run says: when it began, its last evaluation, how long it trained, when it was good enough.

use super::*;
use crate::families::curves::{points, read_log};

/// When a file was written, if it is there.
pub(super) fn written(path: &Path) -> Result<Option<SystemTime>> {
    match path.metadata().and_then(|found| found.modified()) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        time => {
            let time = time.with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Some(time))
        }
    }
}

/// When the run in a folder began, if it did: its settings are as old, also where they were written again since its data
/// moved.
pub(super) fn begun(folder: &Path) -> Result<Option<SystemTime>> {
    written(&folder.join(CONFIG))
}

/// Refuses a run from other weights than its source has now.
pub(super) fn refuse_older(source: &Path, folder: &Path) -> Result<()> {
    ensure!(
        begun(source)? <= begun(folder)?,
        "{}: from: {} was trained again after this run started; move this run away to train it again",
        folder.display(),
        source.display()
    );
    Ok(())
}

/// The measurements of the last evaluation of a training.
pub(super) fn last_evaluation(folder: &Path) -> Result<BTreeMap<String, f64>> {
    let log = read_log(folder)?;
    let last = log.iter().rfind(|line| line["split"] == "valid");
    let number = last.and_then(|line| line["log_likelihood"].as_f64());
    let number = number.unwrap_or(f64::NAN);
    Ok([("log_likelihood".to_owned(), number)].into())
}

/// The step of the first evaluation of a training whose accuracy was at least this high.
pub(super) fn first_reached(folder: &Path, accuracy: f64) -> Option<u64> {
    let log = read_log(folder).ok()?;
    let mut points = points(&log, "valid", "accuracy", 1.0).into_iter();
    let (step, _) = points.find(|(_, found)| *found >= accuracy)?;
    Some(step as u64)
}

/// Wall-clock seconds of the training steps in a timing log up to the step `last`.
pub(super) fn training_seconds(log: &[Value], last: u64) -> f64 {
    let points = points(log, "train", "seconds", 1.0).into_iter();
    let counted = points.filter(|(step, _)| *step <= last as f64);
    counted.map(|(_, seconds)| seconds).sum()
}
