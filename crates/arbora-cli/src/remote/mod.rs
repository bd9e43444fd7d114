//! Devices of other processes, by address: `ws://host:port`, where `arbora serve` listens.
//!
//! Tensors on such a device live in the server's memory, and its backend computes on them. The protocol is
//! burn's, unencrypted: for one machine or a network that one trusts.
//!
//! burn learns of a server that died at the next read, and panics; of one that hangs it never learns. So every
//! server that [`open`] connected is watched: [`lost`] asks each one now, and [`end_on_loss`] keeps asking.

mod watch;

pub use watch::{end_on_loss, finish, lost, saved};

use anyhow::{Context as _, Result, anyhow};
use burn::remote::{ConnectError, RemoteHost};
use burn::tensor::Device;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// The environment variable with what a server asks its clients for, on both sides.
pub const TOKEN: &str = "ARBORA_TOKEN";

/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long a server may take to answer. It answers from threads that do not compute.
const ANSWER_LIMIT: Duration = Duration::from_secs(6);

const SCHEME: &str = "ws://";

/// A device of another process: a server and which of its devices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Name or number of the machine, an IPv6 number in brackets.
    host: String,
    port: u16,
    index: usize,
}

impl Address {
    /// The server's own address, without the device.
    pub fn server(&self) -> String {
        format!("{SCHEME}{}:{}", self.host, self.port)
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || -> Result<Self, &'static str> {
            let rest = text.strip_prefix(SCHEME).ok_or("the protocol is ws")?;
            let (server, index) = rest.split_once('/').unwrap_or((rest, ""));
            let index = match index {
                "" => 0,
                index => index.parse().map_err(|_| "the index is a number from 0")?,
            };
            let (host, port) = server.rsplit_once(':').ok_or("there is no port")?;
            let port = match port.parse::<u16>() {
                Ok(port) if port != 0 => port,
                _ => return Err("the port is a number from 1 to 65535"),
            };
            let is_number = host.starts_with('[') && host.ends_with(']');
            if host.is_empty() || (!is_number && host.contains([':', '@', '?', '#', ' '])) {
                return Err("the host is a name or a number");
            }
            let host = host.into();
            Ok(Self { host, port, index })
        };
        parse().map_err(|reason| {
            anyhow!("{text}: expected ws://HOST:PORT or ws://HOST:PORT/INDEX: {reason}")
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.server())?;
        match self.index {
            0 => Ok(()),
            index => write!(f, "/{index}"),
        }
    }
}

/// Why what is at an address does not answer as a server.
#[derive(Debug, Error)]
enum NoAnswer {
    #[error("cannot be reached: {0}; `arbora serve` starts a server")]
    Unreachable(io::Error),
    #[error("accepts connections but does not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error("something other than `arbora serve` answers there: {0}")]
    OtherServer(String),
}

/// Whether a text is meant as an address and not as the name of a backend.
pub fn is_address(text: &str) -> bool {
    text.contains("://")
}

/// The device at an address, and what to call it.
///
/// # Errors
/// If the text is no address; and as [`open`].
pub fn open_at(address: &str) -> Result<(String, Device)> {
    let address: Address = address.parse()?;
    let device = open(&address)?;
    Ok((address.to_string(), device))
}

/// Connects a device of another process, within seconds, and has its server watched.
///
/// # Errors
/// If nothing listens, nothing answers, or what answers is another program, another version, wants another token
/// or has no such device.
pub fn open(address: &Address) -> Result<Device> {
    let server = address.server();
    let device = connected(address).with_context(|| server)?;
    watch::add(address, &device);
    Ok(device)
}

fn connected(address: &Address) -> Result<Device> {
    answers(address)?;
    let mut host = RemoteHost::websocket(&address.server());
    if let Some(token) = token() {
        host = host.with_credential(token);
    }
    let options = Device::remote_options(&host).device_index(address.index);
    // The answer to the handshake has no limit of its own.
    let connected = within(ANSWER_LIMIT, move || options.init()).map_err(|_| NoAnswer::Silent)?;
    connected.map_err(|error| match error {
        ConnectError::Unauthorized => {
            anyhow!("refused this program's token; set {TOKEN} to the server's")
        }
        ConnectError::NoSuchDevice { device_count } => {
            let index = address.index;
            anyhow!("no device {index}; it serves {device_count}, counted from 0")
        }
        ConnectError::IncompatibleProtocol {
            client_version,
            server_version,
        } => anyhow!(
            "speaks version {server_version} of burn's remote protocol, this program version \
             {client_version}; use one release on both sides"
        ),
        // It answered a moment ago, but not as a server of sessions does.
        ConnectError::Unreachable { reason } => NoAnswer::OtherServer(reason).into(),
        error => anyhow!("no session: {error}"),
    })
}

/// What servers ask for and clients present, where it is set.
pub fn token() -> Option<String> {
    std::env::var(TOKEN).ok().filter(|token| !token.is_empty())
}

/// Asks a server for a page that it does not have. Any answer in the language of web servers will do: sessions
/// begin in it too.
fn answers(address: &Address) -> Result<(), NoAnswer> {
    let asked = address.clone();
    within(CONNECT_LIMIT + ANSWER_LIMIT, move || ask(&asked)).unwrap_or(Err(NoAnswer::Silent))
}

fn ask(address: &Address) -> Result<(), NoAnswer> {
    let mut stream = connect(address).map_err(NoAnswer::Unreachable)?;
    let mut answer = || {
        let Address { host, port, .. } = address;
        let request = format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
        let mut answer = [0; 5];
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(request.as_bytes())?;
        stream.read_exact(&mut answer)?;
        Ok::<_, io::Error>(answer)
    };
    match answer() {
        Ok(answer) if &answer == b"HTTP/" => Ok(()),
        Ok(_) => Err(NoAnswer::OtherServer("no web server".into())),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(NoAnswer::Silent)
        }
        Err(error) => Err(NoAnswer::OtherServer(error.to_string())),
    }
}

fn connect(address: &Address) -> io::Result<TcpStream> {
    let started = Instant::now();
    let mut failed = io::Error::from(ErrorKind::AddrNotAvailable);
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    for place in (host, address.port).to_socket_addrs()? {
        let left = CONNECT_LIMIT.saturating_sub(started.elapsed());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&place, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// What `work` returns, or that it took too long (its thread is then left to itself) or panicked.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RecvTimeoutError> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        watch::in_question();
        // Whoever waited may have gone.
        let _ = sender.send(work());
    });
    receiver.recv_timeout(limit)
}
