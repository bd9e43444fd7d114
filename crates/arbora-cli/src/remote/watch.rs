//! Watching the servers that this process computes on.

use super::{ANSWER_LIMIT, Address, NoAnswer, answers, within};
use burn::tensor::{Device, Tensor};
use std::cell::Cell;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

/// Between two questions to a server.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a session may take to answer before it counts as busy.
const SESSION_LIMIT: Duration = Duration::from_secs(2);

/// What to do about a lost server. It does not come back.
type End = fn(&str) -> !;

static WATCHED: Mutex<Vec<(Address, Device)>> = Mutex::new(Vec::new());
static END: OnceLock<End> = OnceLock::new();
static SAVED: Mutex<Option<String>> = Mutex::new(None);
/// Held by the thread that ends the process: there is one ending.
static ENDING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this thread asks a server something. Its panics are answers.
    static IN_QUESTION: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn in_question() {
    IN_QUESTION.set(true);
}

/// Has the server of a device watched from now on.
pub(super) fn add(address: &Address, device: &Device) {
    let mut watched = lock(&WATCHED);
    if !watched.iter().any(|(known, _)| known == address) {
        watched.push((address.clone(), device.clone()));
    }
    drop(watched);
    if END.get().is_some() {
        static WATCHING: Once = Once::new();
        WATCHING.call_once(|| {
            std::thread::spawn(watch);
        });
    }
}

/// The first server in use that is gone, hangs or has ended its session, if there is one.
///
/// Takes seconds where a server hangs. A session that is busy is not lost.
pub fn lost() -> Option<String> {
    let watched = lock(&WATCHED).clone();
    // Servers before sessions: one that is gone may have made another end the session.
    unanswered(&watched).or_else(|| ended(&watched))
}

fn unanswered(watched: &[(Address, Device)]) -> Option<String> {
    watched.iter().find_map(|(address, _)| {
        let reason = match answers(address).err()? {
            NoAnswer::Unreachable(reason) => reason.to_string(),
            NoAnswer::OtherServer(reason) => reason,
            NoAnswer::Silent => format!("no answer within {} s", ANSWER_LIMIT.as_secs()),
        };
        Some(format!("lost the server {}: {reason}", address.server()))
    })
}

fn ended(watched: &[(Address, Device)]) -> Option<String> {
    let has_ended = |(_, device): &&(Address, Device)| {
        let device = device.clone();
        let read = move || Tensor::<1>::zeros([1], &device).try_into_data();
        let read = within(SESSION_LIMIT, read);
        !matches!(read, Ok(Ok(_)) | Err(RecvTimeoutError::Timeout))
    };
    let (address, _) = watched.iter().find(has_ended)?;
    let server = address.server();
    let reason = "it ended the session; what it printed says why";
    Some(format!("lost the server {server}: {reason}"))
}

/// Ends the process by `end` as soon as a server in use is lost: when a computation panics over it, and when it
/// has not answered for some seconds. Asked once, before the first device is opened.
///
/// A thread that waits for a server cannot be woken, so there is no going on.
pub fn end_on_loss(end: End) {
    if END.set(end).is_err() {
        return;
    }
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if IN_QUESTION.get() {
            return;
        }
        match lost() {
            // Not by unwinding: tensors that are dropped on the way would panic again.
            Some(lost) => end(&lost),
            None => previous(panic),
        }
    }));
}

fn watch() {
    loop {
        std::thread::sleep(INTERVAL);
        let watched = lock(&WATCHED).clone();
        if let (Some(lost), Some(end)) = (unanswered(&watched), END.get()) {
            end(&lost);
        }
    }
}

/// Says what is kept, for the message about a lost server; or takes the text out.
pub fn saved(text: Option<String>) -> Option<String> {
    std::mem::replace(&mut *lock(&SAVED), text)
}

/// Makes the calling thread the one that ends the process. Any other that tries waits for the end.
pub fn finish() {
    std::mem::forget(lock(&ENDING));
}
