//! Devices of other processes, by address: `ws://host:port`, where `arbora serve` listens.
//!
//! Tensors on such a device live in the server's memory, and its backend computes on them. The protocol is
//! burn's, unencrypted: for one machine or a network that one trusts.
//!
//! burn learns of a server that died at the next read, and panics; of one that hangs it never learns. So every
//! server that [`open`] connected is watched: [`lost`] asks each one now, and [`end_on_loss`] keeps asking.

mod watch;

pub use watch::{end_on_loss, finish, lost, saved};

use burn::remote::{ConnectError, RemoteHost};
use burn::tensor::Device;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
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

/// Why a text is no address of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}: expected ws://HOST:PORT or ws://HOST:PORT/INDEX: {reason}")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

impl Address {
    /// The server's own address, without the device.
    pub fn server(&self) -> String {
        format!("{SCHEME}{}:{}", self.host, self.port)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |reason| AddressError {
            text: text.into(),
            reason,
        };
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| refuse("the protocol is ws"))?;
        let (server, index) = match rest.split_once('/') {
            None | Some((_, "")) => (rest.trim_end_matches('/'), 0),
            Some((server, index)) => (
                server,
                index
                    .parse()
                    .map_err(|_| refuse("the index is a number from 0"))?,
            ),
        };
        let (host, port) = server
            .rsplit_once(':')
            .ok_or_else(|| refuse("there is no port"))?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| refuse("the port is a number from 1 to 65535"))?;
        let is_number = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (!is_number && host.contains([':', '@', '?', '#', ' '])) {
            return Err(refuse("the host is a name or a number"));
        }
        Ok(Self {
            host: host.into(),
            port,
            index,
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

/// What is wrong with a server of devices.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Nothing accepts connections at the address.
    #[error("{server}: cannot be reached: {reason}; `arbora serve` starts a server")]
    Unreachable {
        /// The server.
        server: String,
        /// The system's reason.
        reason: String,
    },
    /// Something accepts connections and then says nothing.
    #[error("{server}: accepts connections but does not answer within {seconds} s")]
    Silent {
        /// The server.
        server: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What answers is not `arbora serve`.
    #[error("{server}: something other than `arbora serve` answers there: {reason}")]
    OtherServer {
        /// The server.
        server: String,
        /// What it said.
        reason: String,
    },
    /// The server speaks another version of burn's protocol.
    #[error(
        "{server}: speaks version {found} of burn's remote protocol, this program version {expected}; use one \
         release on both sides"
    )]
    OtherVersion {
        /// The server.
        server: String,
        /// The server's version.
        found: u16,
        /// Ours.
        expected: u16,
    },
    /// The server has fewer devices.
    #[error("{server}: no device {index}; it serves {devices}, counted from 0")]
    NoSuchDevice {
        /// The server.
        server: String,
        /// Which device was asked for.
        index: usize,
        /// How many there are.
        devices: usize,
    },
    /// The server wants a token that it was not given.
    #[error("{server}: refused this program's token; set {TOKEN} to the server's")]
    Refused {
        /// The server.
        server: String,
    },
    /// The session could not be opened for another reason.
    #[error("{server}: no session: {reason}")]
    NoSession {
        /// The server.
        server: String,
        /// burn's reason.
        reason: String,
    },
    /// A server that was in use is gone, and with it the tensors that it held.
    #[error("lost the server {server}: {reason}")]
    Lost {
        /// The server.
        server: String,
        /// How that showed.
        reason: String,
    },
}

/// Whether a text is meant as an address and not as the name of a backend.
pub fn is_address(text: &str) -> bool {
    text.contains("://")
}

/// The device at an address, and what to call it.
///
/// # Errors
/// If the text is no address; and as [`open`].
pub fn open_at(address: &str) -> anyhow::Result<(String, Device)> {
    let address: Address = address.parse()?;
    let device = open(&address)?;
    Ok((address.to_string(), device))
}

/// Connects a device of another process, within seconds, and has its server watched.
///
/// # Errors
/// If nothing listens, nothing answers, or what answers is another program, another version, wants another token
/// or has no such device.
pub fn open(address: &Address) -> Result<Device, RemoteError> {
    answers(address)?;
    let server = address.server();
    let mut host = RemoteHost::websocket(&server);
    if let Some(token) = token() {
        host = host.with_credential(token);
    }
    let options = Device::remote_options(&host).device_index(address.index);
    // The answer to the handshake has no limit of its own.
    let connected = within(ANSWER_LIMIT, move || options.init());
    let device = connected
        .map_err(|_| silent(address))?
        .map_err(|error| refused(address, error))?;
    watch::add(address, &device);
    Ok(device)
}

/// What servers ask for and clients present, where it is set.
pub fn token() -> Option<String> {
    std::env::var(TOKEN).ok().filter(|token| !token.is_empty())
}

fn refused(address: &Address, error: ConnectError) -> RemoteError {
    let server = address.server();
    match error {
        ConnectError::Unauthorized => RemoteError::Refused { server },
        ConnectError::NoSuchDevice { device_count } => RemoteError::NoSuchDevice {
            server,
            index: address.index,
            devices: device_count,
        },
        ConnectError::IncompatibleProtocol {
            client_version,
            server_version,
        } => RemoteError::OtherVersion {
            server,
            found: server_version,
            expected: client_version,
        },
        // It answered a moment ago, but not as a server of sessions does.
        ConnectError::Unreachable { reason } => RemoteError::OtherServer { server, reason },
        error => RemoteError::NoSession {
            server,
            reason: error.to_string(),
        },
    }
}

fn silent(address: &Address) -> RemoteError {
    RemoteError::Silent {
        server: address.server(),
        seconds: ANSWER_LIMIT.as_secs(),
    }
}

/// Asks a server for a page that it does not have. Any answer in the language of web servers will do: sessions
/// begin in it too.
fn answers(address: &Address) -> Result<(), RemoteError> {
    let asked = address.clone();
    match within(CONNECT_LIMIT + ANSWER_LIMIT, move || ask(&asked)) {
        Ok(answer) => answer,
        Err(_) => Err(silent(address)),
    }
}

fn ask(address: &Address) -> Result<(), RemoteError> {
    let unreachable = |error: std::io::Error| RemoteError::Unreachable {
        server: address.server(),
        reason: error.to_string(),
    };
    let other = |reason: String| RemoteError::OtherServer {
        server: address.server(),
        reason,
    };
    let mut stream = connect(address).map_err(unreachable)?;
    let mut answer = [0; 5];
    let asked = stream
        .set_read_timeout(Some(ANSWER_LIMIT))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER_LIMIT)))
        .and_then(|()| {
            let request = format!(
                "GET / HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n",
                address.host, address.port
            );
            stream.write_all(request.as_bytes())
        })
        .and_then(|()| stream.read_exact(&mut answer));
    match asked {
        Ok(()) if &answer == b"HTTP/" => Ok(()),
        Ok(()) => Err(other("no web server".into())),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(silent(address))
        }
        Err(error) => Err(other(error.to_string())),
    }
}

fn connect(address: &Address) -> std::io::Result<TcpStream> {
    let started = Instant::now();
    let mut failed = std::io::Error::from(ErrorKind::AddrNotAvailable);
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = (host, address.port).to_socket_addrs()?.collect();
    for place in found {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn parse(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    #[test]
    fn addresses_name_a_server_and_a_device() {
        for (text, server, index) in [
            ("ws://127.0.0.1:3000", "ws://127.0.0.1:3000", 0),
            ("ws://127.0.0.1:3000/", "ws://127.0.0.1:3000", 0),
            ("ws://gpu-7.local:80/3", "ws://gpu-7.local:80", 3),
            ("ws://[::1]:3000/1", "ws://[::1]:3000", 1),
        ] {
            let address = parse(text).unwrap();
            assert_eq!((address.server().as_str(), address.index), (server, index));
            assert_eq!(parse(&address.to_string()).unwrap(), address);
        }
    }

    #[test]
    fn texts_that_are_no_address_are_refused_with_the_form_that_is() {
        for (text, reason) in [
            ("http://127.0.0.1:3000", "the protocol is ws"),
            ("wss://127.0.0.1:3000", "the protocol is ws"),
            ("ws://127.0.0.1", "no port"),
            ("ws://127.0.0.1:", "the port is"),
            ("ws://127.0.0.1:0", "the port is"),
            ("ws://127.0.0.1:70000", "the port is"),
            ("ws://127.0.0.1:3000/one", "the index is"),
            ("ws://:3000", "the host is"),
            ("ws://a b:3000", "the host is"),
            ("ws://::1:3000", "the host is"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.starts_with(text), "{message}");
            assert!(message.contains("expected ws://HOST:PORT"), "{message}");
            assert!(message.contains(reason), "{message}");
        }
    }

    /// A listener of this process, and its address.
    fn listener() -> (TcpListener, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = parse(&format!("ws://{}", listener.local_addr().unwrap())).unwrap();
        (listener, address)
    }

    #[test]
    fn an_address_where_nothing_listens_is_refused_at_once() {
        let (listener, address) = listener();
        drop(listener);
        let started = Instant::now();
        let error = open(&address).unwrap_err();
        assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
        assert!(started.elapsed() < CONNECT_LIMIT);
    }

    #[test]
    fn a_listener_that_never_answers_is_given_up_within_seconds() {
        let (_listener, address) = listener();
        let started = Instant::now();
        let error = open(&address).unwrap_err();
        assert!(matches!(error, RemoteError::Silent { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn another_kind_of_server_is_named_as_such() {
        let (listener, address) = listener();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(b"220 mail ready\r\n"));
            }
        });
        let error = open(&address).unwrap_err();
        assert!(matches!(error, RemoteError::OtherServer { .. }), "{error}");
    }

    #[test]
    fn a_web_server_without_sessions_is_named_as_such() {
        let (listener, address) = listener();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let error = open(&address).unwrap_err();
        assert!(matches!(error, RemoteError::OtherServer { .. }), "{error}");
    }
}
