//! Tries that may panic, die, hang or take all memory, counted by a process that does none of it.
//!
//! The tries of a target run in a process of their own, which says in a file which one it is at. When it ends before its
//! time, that one has failed, and another process goes on after it. A try is a function of target, seed and index alone.

use crate::counts::{Counts, Failure};
use crate::heap;
use anyhow::{Context as _, Result, bail};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What one try does, by its index and a stream of random numbers of its own; the error is what it did that it must not.
type Attempt = Box<dyn FnMut(u64, &mut ChaCha8Rng) -> Result<()>>;

/// Tries of a target.
pub struct Tries {
    attempt: Attempt,
    /// How many there are.
    count: u64,
}

impl Tries {
    /// As many as one likes, each drawn at random.
    pub fn drawn(mut attempt: impl FnMut(&mut ChaCha8Rng) -> Result<()> + 'static) -> Self {
        Self {
            attempt: Box::new(move |_, rng| attempt(rng)),
            count: u64::MAX,
        }
    }

    /// One for each of `list`, in this order.
    pub fn listed<T: 'static>(
        list: Vec<T>,
        mut attempt: impl FnMut(&T) -> Result<()> + 'static,
    ) -> Self {
        Self {
            count: list.len() as u64,
            attempt: Box::new(move |index, _| {
                let one = list.get(index as usize);
                attempt(one.with_context(|| format!("--index: expected one below {}", list.len()))?)
            }),
        }
    }
}

/// Makes ready for many tries, in a folder.
type Begin = dyn Fn(&Path) -> Result<Tries> + Send + Sync;

/// What is tried.
pub struct Target {
    name: &'static str,
    begin: Box<Begin>,
}

impl Target {
    /// - name: on the command line and in tables
    /// - begin: makes ready for many tries, in a folder that it has for itself and that is in memory
    pub fn new(
        name: &'static str,
        begin: impl Fn(&Path) -> Result<Tries> + Send + Sync + 'static,
    ) -> Self {
        let begin = Box::new(begin);
        Self { name, begin }
    }
}

/// What a call asks of a part.
#[derive(Clone, Debug, clap::Args)]
pub struct Asked {
    /// One target alone.
    #[arg(long)]
    pub target: Option<String>,
    /// Of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// One try alone, with all that it prints.
    #[arg(long, requires = "target")]
    pub index: Option<u64>,
    /// The first try.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// Begin no try after so many seconds of all targets together.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// At most so many tries of each target.
    #[arg(long)]
    pub count: Option<u64>,
    /// A try that takes more seconds hangs.
    #[arg(long, default_value_t = 10.0)]
    pub longest: f64,
    /// Where to say which try is at work: set by the process that counts.
    #[arg(long, hide = true, requires = "target")]
    pub position: Option<PathBuf>,
}

/// A target that ends so many processes is left.
const MOST_ENDS: u64 = 50;
/// Failures that are told, of each target.
const MOST_TOLD: usize = 10;

/// Tries all targets of a part, as many at a time as there are cores; `None` from a process that is one of its own.
///
/// - longest: seconds that one try may take
///
/// # Errors
/// If no target has the name that is asked for, or no process can be started.
pub fn run(
    part: &str,
    targets: &[Target],
    asked: &Asked,
    longest: f64,
) -> Result<Option<Vec<Counts>>> {
    let chosen: Vec<&Target> = targets
        .iter()
        .filter(|target| asked.target.as_ref().is_none_or(|name| name == target.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = targets.iter().map(|target| target.name).collect();
        bail!("--target: expected one of {}", names.join(", "));
    }
    if let Some(index) = asked.index {
        return once(chosen[0], asked.seed, index).map(|()| None);
    }
    if let Some(position) = &asked.position {
        return tries(chosen[0], asked, position).map(|()| None);
    }
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    let workers = workers.min(chosen.len());
    let seconds = asked.seconds * workers as f64 / chosen.len() as f64;
    let next = AtomicUsize::new(0);
    // What is next until there is no more, each with its place.
    let work = || -> Vec<(usize, Result<Counts>)> {
        let one = || {
            let at = next.fetch_add(1, Relaxed);
            let target = chosen.get(at)?;
            Some((at, counted(part, target, asked, seconds, longest)))
        };
        std::iter::from_fn(one).collect()
    };
    let mut found: Vec<(usize, Result<Counts>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let found = workers.into_iter().map(|worker| worker.join());
        found
            .flat_map(|found| found.expect("no worker panics"))
            .collect()
    });
    found.sort_by_key(|(at, _)| *at);
    let counts = found.into_iter().map(|(_, counts)| counts);
    counts.collect::<Result<_>>().map(Some)
}

/// A stream of random numbers for one try.
fn random(target: &Target, seed: u64, index: u64) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    let name = target.name.as_bytes();
    let length = name.len().min(16);
    bytes[16..16 + length].copy_from_slice(&name[..length]);
    ChaCha8Rng::from_seed(bytes)
}

/// A folder for the files of a target: in memory where the system has such a place.
fn scratch() -> Result<tempfile::TempDir> {
    let memory = Some(PathBuf::from("/dev/shm")).filter(|place| place.is_dir());
    let place = memory.unwrap_or_else(std::env::temp_dir);
    let mut builder = tempfile::Builder::new();
    builder.prefix("arbora-torture-");
    builder.tempdir_in(place).context("cannot make a folder")
}

/// One try with all that it prints.
fn once(target: &Target, seed: u64, index: u64) -> Result<()> {
    let folder = scratch()?;
    let mut tries = (target.begin)(folder.path())?;
    (tries.attempt)(index, &mut random(target, seed, index))
        .with_context(|| format!("{} {index}", target.name))?;
    println!("{} {index}: as it should be", target.name);
    Ok(())
}

/// The first panic since the last look.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn panic_seen() -> MutexGuard<'static, Option<String>> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a process of tries prints of one, as a line of JSON: that it failed, or without its index that a panic was contained.
type Told = (Option<u64>, String);

/// Tries until the time is over, in a process that may end before.
fn tries(target: &Target, asked: &Asked, position: &Path) -> Result<()> {
    let folder = position.parent().context("the file is in a folder")?;
    let Tries { mut attempt, count } = (target.begin)(folder)?;
    let position = File::options().write(true).open(position)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let place = place.unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no reason given");
        panic_seen()
            .get_or_insert_with(|| format!("{} ({})", without_numbers(message), short(&place)));
    }));
    heap::limit();
    let begun = Instant::now();
    let seconds = Duration::from_secs_f64(asked.seconds);
    let end = asked
        .count
        .map_or(count, |most| count.min(asked.from + most));
    let mut index = asked.from;
    while index < end && begun.elapsed() < seconds {
        position.write_all_at(&index.to_le_bytes(), 0)?;
        let result = catch_unwind(AssertUnwindSafe(|| {
            attempt(index, &mut random(target, asked.seed, index))
        }));
        let panic = panic_seen().take();
        let told: Option<Told> = match result {
            Ok(Ok(())) => panic.map(|panic| (None, panic)),
            Ok(Err(reason)) => Some((Some(index), format!("{reason:#}"))),
            Err(_) => Some((
                Some(index),
                format!("panics: {}", panic.unwrap_or_default()),
            )),
        };
        if let Some((index, reason)) = told {
            println!("{}", serde_json::to_string(&(index, line(&reason)))?);
        }
        index += 1;
    }
    Ok(position.write_all_at(&index.to_le_bytes(), 0)?)
}

/// Text in one line of a bearable length.
fn line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The tries of a target in processes of their own.
fn counted(
    part: &str,
    target: &Target,
    asked: &Asked,
    seconds: f64,
    longest: f64,
) -> Result<Counts> {
    let begun = Instant::now();
    let mut counts = Counts {
        part: part.into(),
        target: target.name.into(),
        ..Counts::default()
    };
    let end = asked.count.map(|count| asked.from + count);
    let (mut from, mut ends) = (asked.from, 0);
    loop {
        let left = seconds - begun.elapsed().as_secs_f64();
        if left <= 0.0 || end.is_some_and(|end| from >= end) || ends >= MOST_ENDS {
            break;
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args([part, "--target", target.name]);
        command.args(["--seed", &asked.seed.to_string()]);
        command.args(["--from", &from.to_string()]);
        command.args(["--seconds", &left.to_string()]);
        if let Some(end) = end {
            command.args(["--count", &(end - from).to_string()]);
        }
        let (told, at, reason) = process(command, longest)?;
        for (index, reason) in told {
            match index {
                None => *counts.contained.entry(reason).or_default() += 1,
                Some(index) => fail(&mut counts, asked.seed, index, reason),
            }
        }
        counts.tried += at - from;
        from = at;
        let Some(reason) = reason else {
            break;
        };
        counts.tried += 1;
        fail(&mut counts, asked.seed, from, reason);
        from += 1;
        ends += 1;
    }
    counts.seconds = begun.elapsed().as_secs_f64();
    Ok(counts)
}

/// A place in a source without where the sources of libraries are.
fn short(place: &str) -> &str {
    let within = place.split_once("/registry/src/");
    let library = within.and_then(|(_, rest)| rest.split_once('/'));
    library.map_or(place, |(_, rest)| rest)
}

/// A message without what differs between panics at one place.
fn without_numbers(text: &str) -> String {
    let mut kind = String::new();
    for letter in text.chars() {
        if !letter.is_ascii_digit() {
            kind.push(letter);
        } else if !kind.ends_with('N') {
            kind.push('N');
        }
    }
    kind
}

fn fail(counts: &mut Counts, seed: u64, index: u64, reason: String) {
    eprintln!(
        "{} {}: seed {seed}, index {index}: {reason}",
        counts.part, counts.target
    );
    counts.failed += 1;
    if counts.failures.len() < MOST_TOLD {
        counts.failures.push(Failure {
            seed,
            index,
            reason,
        });
    }
}

/// Runs a process of tries to its end. Returns what it told, the try that it came to, and why it ended if that was before its
/// time.
fn process(mut command: Command, longest: f64) -> Result<(Vec<Told>, u64, Option<String>)> {
    let folder = scratch()?;
    let [position, told, said] = ["position", "told", "said"].map(|name| folder.path().join(name));
    fs::write(&position, [])?;
    // Nothing while the process makes ready.
    let at = || -> Result<Option<u64>> {
        let bytes = fs::read(&position)?;
        Ok(bytes.try_into().ok().map(u64::from_le_bytes))
    };
    command
        .arg("--position")
        .arg(&position)
        .stdin(Stdio::null());
    command.stdout(File::create(&told)?);
    command.stderr(File::create(&said)?);
    let mut child = command.spawn().context("cannot start a process")?;
    let mut last = (None, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        let now = at()?;
        if now != last.0 {
            last = (now, Instant::now());
        } else if now.is_some() && last.1.elapsed().as_secs_f64() > longest {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let reason = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(why(status, &String::from_utf8_lossy(&fs::read(said)?))),
        None => Some(format!("hangs: took over {longest} s")),
    };
    let told: Result<Vec<Told>> = fs::read_to_string(told)?
        .lines()
        .map(|line| {
            let told = serde_json::from_str(line);
            told.with_context(|| format!("a process of tries printed {line}"))
        })
        .collect();
    let Some(at) = at()? else {
        let reason = reason.unwrap_or_default();
        bail!("a process of tries did not begin: {reason}")
    };
    Ok((told?, at, reason))
}

/// Why a process ended, by how it did and what it said.
fn why(status: ExitStatus, said: &str) -> String {
    if status.code() == Some(heap::OVER) {
        return "takes over 1 GiB".into();
    }
    let mut lines = said.lines();
    // How AddressSanitizer begins what it has found, and how ThreadSanitizer ends it.
    let of_sanitizer = |line: &&str| line.contains("ERROR:") || line.starts_with("SUMMARY:");
    let told = lines.clone().find(of_sanitizer);
    let told = told.or_else(|| lines.rfind(|line| !line.trim().is_empty()));
    let how = match status.signal() {
        Some(signal) => format!("dies of signal {signal}"),
        None => format!("ends with {status}"),
    };
    match told {
        Some(told) => format!("{how}: {}", line(told)),
        None => how,
    }
}
