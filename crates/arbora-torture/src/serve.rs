//! What a server of devices receives: connections that say nothing, half of something or anything, and its own death.

use crate::frame::{Target, Tries};
use crate::runs::{arbora, is_one_line, resident, said};
use anyhow::{Context as _, Result, bail, ensure};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is tried.
pub fn targets() -> Vec<Target> {
    vec![
        Target::new("connections", Connections::begin),
        Target::new("restart", Restart::begin),
    ]
}

/// A server must answer, and a client must see that its server is gone, within this.
const PROMPT: Duration = Duration::from_secs(5);
/// Connections that stay open and say no more.
const HALF_OPEN: usize = 100;
/// The most memory that a server may take.
const MOST_BYTES: u64 = 1 << 30;

/// A process that serves flex; it ends with the value.
struct Server {
    child: Child,
    address: SocketAddr,
    /// What it says on standard error.
    errors: PathBuf,
}

impl Server {
    /// - port: 0 for any
    fn start(folder: &Path, port: u16) -> Result<Self> {
        let errors = folder.join("server.log");
        let mut command = arbora(folder);
        command.args(["serve", "--json", "--address"]);
        command.arg(format!("127.0.0.1:{port}"));
        command.stderr(File::create(&errors)?);
        let mut child = command.spawn().context("cannot start arbora")?;
        let mut line = String::new();
        let output = child.stdout.take().context("output is piped")?;
        BufReader::new(output).read_line(&mut line)?;
        let told: Value = serde_json::from_str(&line).context("serve says where it listens")?;
        let address = told["address"]
            .as_str()
            .and_then(|text| text.strip_prefix("ws://"));
        Ok(Self {
            child,
            address: address.context("an address")?.parse()?,
            errors,
        })
    }

    fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// It is there, answers, and takes a bearable amount of memory.
    fn is_well(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(&self.errors).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            bail!("the server ended: {status}: {last}");
        }
        let answered = || -> std::io::Result<usize> {
            let mut stream = TcpStream::connect_timeout(&self.address, PROMPT)?;
            stream.set_read_timeout(Some(PROMPT))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")?;
            stream.read(&mut [0; 64])
        };
        let answer = answered().context("the server does not answer")?;
        ensure!(answer > 0, "the server closes without an answer");
        let bytes = resident(&self.child).map(|kilobytes| kilobytes << 10);
        let is_bearable = bytes.is_some_and(|bytes| bytes <= MOST_BYTES);
        ensure!(is_bearable, "the server takes {bytes:?} bytes");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A training of two steps by the devices of a server; how it ended.
fn train(folder: &Path, url: &str, out: &str, more: &[&str]) -> std::io::Result<Child> {
    let mut command = arbora(folder);
    command.args(["train", "images", "--config", "settings.json"]);
    command.args(["--backend", url, "--out", out]);
    command.args(more).stdout(Stdio::null()).spawn()
}

/// Images and settings, for a task whose operations burn can send to a server.
fn settings(folder: &Path, steps: u64) -> Result<()> {
    let images = |count: u8| {
        let header = [0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 6, 0, 0, 0, 5];
        let pixels = (0..30 * usize::from(count)).map(|at| (at * 37 % 251) as u8);
        header.into_iter().chain(pixels).collect::<Vec<u8>>()
    };
    fs::write(folder.join("train.idx"), images(12))?;
    fs::write(folder.join("test.idx"), images(8))?;
    let mut settings = crate::runs::copy();
    settings["data"] = json!({"kind": "idx", "train": "train.idx", "test": "test.idx"});
    settings["points"] = json!({"min_context": 3, "min_targets": 3, "max_points": 12});
    settings["trainer"]["steps"] = steps.into();
    let file = folder.join("settings.json");
    Ok(fs::write(file, settings.to_string())?)
}

/// What a client says to a server on one connection: how it begins, and the messages after that.
#[derive(Clone, Debug, Default)]
struct Said {
    request: Vec<u8>,
    messages: Vec<Vec<u8>>,
}

/// A server, and what clients say.
struct Connections {
    folder: PathBuf,
    server: Server,
    said: Vec<Said>,
    open: Vec<TcpStream>,
    tries: u64,
}

impl Connections {
    fn begin(folder: &Path) -> Result<Tries> {
        settings(folder, 2)?;
        let server = Server::start(folder, 0)?;
        let said = overheard(folder, &server)?;
        let mut connections = Self {
            folder: folder.into(),
            server,
            said,
            open: Vec::new(),
            tries: 0,
        };
        Ok(Tries::drawn(move |rng| {
            let result = connections.attempt(rng);
            if result.is_err() {
                connections.open.clear();
                let folder = &connections.folder;
                connections.server = Server::start(folder, 0)?;
            }
            result
        }))
    }

    fn attempt(&mut self, rng: &mut ChaCha8Rng) -> Result<()> {
        // What the server does with a connection is its own: it may close it at any word.
        let _ = self.disturb(rng);
        self.tries += 1;
        self.server.is_well()?;
        if self.tries.is_multiple_of(500) {
            let _ = fs::remove_dir_all(self.folder.join("out"));
            let child = train(&self.folder, &self.server.url(), "out", &[])?;
            let output = child.wait_with_output()?;
            let said = said(&output);
            ensure!(
                output.status.success(),
                "the server does not compute any more: {said}"
            );
        }
        Ok(())
    }

    fn disturb(&mut self, rng: &mut ChaCha8Rng) -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.server.address, PROMPT)?;
        stream.set_read_timeout(Some(Duration::from_millis(2)))?;
        stream.set_write_timeout(Some(PROMPT))?;
        let one = self.said.choose(rng).cloned().unwrap_or_default();
        match rng.random_range(0..8) {
            // Nothing, for ever or not.
            0 => {}
            // Anything.
            1 => {
                let mut bytes = vec![0; rng.random_range(1..2000)];
                rng.fill_bytes(&mut bytes);
                stream.write_all(&bytes)?;
            }
            // Half a request, or a damaged one.
            2 => {
                let end = rng.random_range(0..one.request.len().max(1));
                stream.write_all(&one.request[..end])?;
            }
            3 => stream.write_all(&mutated(&one.request, rng))?,
            // A request, and then anything as a message.
            4 => {
                stream.write_all(&one.request)?;
                let mut bytes = vec![0; rng.random_range(0..2000)];
                rng.fill_bytes(&mut bytes);
                stream.write_all(&framed(&bytes, rng))?;
            }
            // Messages as a client sends them, one of which is another.
            _ => {
                stream.write_all(&one.request)?;
                let _ = stream.read(&mut [0; 512]);
                let count = one.messages.len();
                let damaged = rng.random_range(0..count.max(1));
                for (at, message) in one.messages.iter().enumerate() {
                    if at > damaged + 2 {
                        break;
                    }
                    let message = if at == damaged {
                        mutated(message, rng)
                    } else {
                        message.clone()
                    };
                    stream.write_all(&framed(&message, rng))?;
                }
                let _ = stream.read(&mut [0; 512]);
            }
        }
        match rng.random_range(0..3) {
            0 => {
                self.open.push(stream);
                if self.open.len() > HALF_OPEN {
                    self.open.swap_remove(rng.random_range(0..HALF_OPEN));
                }
            }
            1 => stream.shutdown(Shutdown::Write)?,
            _ => {}
        }
        Ok(())
    }
}

/// Bytes with some of them changed, left out or doubled.
fn mutated(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        let length = rng.random_range(1..=16.min(bytes.len() - at));
        match rng.random_range(0..5) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => {
                bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, 0xc0, 0xdc, 0xcf]
                    .choose(rng)
                    .unwrap_or(&0)
            }
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + length)),
            _ => {
                let again = bytes[at..at + length].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

/// A binary message of a client; now and then with a wrong length or kind.
fn framed(message: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut kind = 0x82;
    let mut length = message.len() as u64;
    if rng.random_bool(0.05) {
        kind = rng.random();
    }
    if rng.random_bool(0.05) {
        length = *[0, 125, 126, 65_535, 1 << 32, u64::MAX >> 1, u64::MAX]
            .choose(rng)
            .unwrap_or(&0);
    }
    let mut frame = vec![kind];
    match length {
        0..126 => frame.push(0x80 | length as u8),
        126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend(length.to_be_bytes());
        }
    }
    // Masked with zeroes: as it is.
    frame.extend([0; 4]);
    frame.extend(message);
    frame
}

/// What a client says to a server, from one that stands between them.
fn overheard(folder: &Path, server: &Server) -> Result<Vec<Said>> {
    let between = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("ws://{}", between.local_addr()?);
    let target = server.address;
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let store = heard.clone();
    // Ends with the process.
    std::thread::spawn(move || {
        for client in between.incoming().flatten() {
            let Ok(server) = TcpStream::connect(target) else {
                return;
            };
            let number = store.lock().map_or(0, |mut all| {
                all.push(Vec::new());
                all.len() - 1
            });
            let (Ok(client_out), Ok(server_out)) = (client.try_clone(), server.try_clone()) else {
                return;
            };
            let store = store.clone();
            std::thread::spawn(move || {
                passed_on(client, server_out, |bytes| {
                    if let Ok(mut all) = store.lock() {
                        all[number].extend(bytes);
                    }
                });
            });
            std::thread::spawn(move || passed_on(server, client_out, |_| {}));
        }
    });
    let output = train(folder, &url, "overheard", &[])?.wait_with_output()?;
    ensure!(output.status.success(), "{}", said(&output));
    let heard = heard
        .lock()
        .map_err(|_| anyhow::anyhow!("a listener panicked"))?;
    let said: Vec<Said> = heard.iter().filter_map(|bytes| parsed(bytes)).collect();
    ensure!(!said.is_empty(), "no client said anything");
    Ok(said)
}

fn passed_on(mut from: TcpStream, mut to: TcpStream, mut heard: impl FnMut(&[u8])) {
    let mut bytes = [0; 16_384];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 || to.write_all(&bytes[..count]).is_err() {
            break;
        }
        heard(&bytes[..count]);
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The request and the messages of a connection.
fn parsed(bytes: &[u8]) -> Option<Said> {
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let mut said = Said {
        request: bytes[..end].to_vec(),
        messages: Vec::new(),
    };
    let mut rest = &bytes[end..];
    while let [_, second, ..] = rest {
        let (length, at) = match second & 0x7f {
            126 => (
                usize::from(u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?)),
                4,
            ),
            127 => (
                u64::from_be_bytes(rest.get(2..10)?.try_into().ok()?) as usize,
                10,
            ),
            length => (usize::from(length), 2),
        };
        let (Some(mask), Some(masked)) = (rest.get(at..at + 4), rest.get(at + 4..at + 4 + length))
        else {
            break;
        };
        let plain = masked
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask);
        said.messages.push(plain.collect());
        rest = &rest[at + 4 + length..];
    }
    Some(said)
}

/// A training whose server dies.
struct Restart {
    folder: PathBuf,
    log: Vec<u8>,
    length: Duration,
}

impl Restart {
    fn begin(folder: &Path) -> Result<Tries> {
        settings(folder, 12)?;
        let server = Server::start(folder, 0)?;
        let begun = Instant::now();
        let output = train(folder, &server.url(), "whole", &[])?.wait_with_output()?;
        ensure!(output.status.success(), "{}", said(&output));
        let restart = Self {
            folder: folder.into(),
            log: fs::read(folder.join("whole/metrics.jsonl"))?,
            length: begun.elapsed(),
        };
        Ok(Tries::drawn(move |rng| restart.attempt(rng)))
    }

    fn attempt(&self, rng: &mut ChaCha8Rng) -> Result<()> {
        let _ = fs::remove_dir_all(self.folder.join("out"));
        let server = Server::start(&self.folder, 0)?;
        let (url, port) = (server.url(), server.address.port());
        let mut child = train(&self.folder, &url, "out", &[])?;
        std::thread::sleep(self.length.mul_f64(rng.random_range(0.0..1.1)));
        drop(server);
        let killed = Instant::now();
        while child.try_wait()?.is_none() {
            // As long as a first read may wait, and what a slow machine adds.
            if killed.elapsed() > 3 * PROMPT {
                child.kill()?;
                child.wait()?;
                bail!("a client does not see that its server is gone");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let waited = killed.elapsed();
        let output = child.wait_with_output()?;
        let is_line =
            is_one_line(&output) && !String::from_utf8_lossy(&output.stderr).contains("panicked");
        match output.status.code() {
            Some(0) => {}
            Some(1 | 2) if is_line && waited <= PROMPT => {}
            _ => bail!("after {} ms: {}", waited.as_millis(), said(&output)),
        }
        ensure!(output.status.signal().is_none(), "{}", said(&output));
        let _server = Server::start(&self.folder, port)?;
        let begun = self.folder.join("out/config.json").try_exists()?;
        let more: &[&str] = if begun { &["--resume"] } else { &[] };
        let output = train(&self.folder, &url, "out", more)?.wait_with_output()?;
        ensure!(output.status.success(), "cannot go on: {}", said(&output));
        let log = fs::read(self.folder.join("out/metrics.jsonl"))?;
        ensure!(log == self.log, "another log");
        Ok(())
    }
}
