//! Devices of other processes: what they compute, and what happens when they go.
#![cfg(all(feature = "cli", feature = "flex", unix))]

mod common;

use arbora::remote::{self, RemoteError};
use arbora_testing::{assert_close, random};
use burn::tensor::{Device, Tensor};
use common::{Place, parse, stderr};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// A process that serves flex; it ends with the value.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(place: &Place, args: &[&str]) -> Self {
        Self::with(place.command([&["serve", "--address", "127.0.0.1:0", "--json"], args].concat()))
    }

    fn with(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = parse(&line)["address"].as_str().unwrap().to_owned();
        Self { child, address }
    }

    fn device(&self, index: usize) -> Device {
        let address = format!("{}/{index}", self.address);
        remote::open(&address.parse().unwrap()).unwrap()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a process; it must end in time.
fn ends_within(seconds: u64, mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(seconds) {
            child.kill().unwrap();
            panic!("still there after {seconds} s: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn devices_of_another_process_compute_what_local_ones_do() {
    let place = Place::new();
    let server = Server::start(&place, &["--devices", "2"]);
    let local = Device::flex();
    let value = |device: &Device| {
        let input = random::<2>([5, 7], 1, device);
        let weight = random::<2>([7, 3], 2, device);
        input.matmul(weight).exp()
    };
    let expected = value(&local);
    for index in 0..2 {
        let got = value(&server.device(index)).to_device(&local);
        assert_close(got, expected.clone(), 1e-6, 1e-6);
    }
}

#[test]
fn gradients_cross_processes() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let local = Device::flex().autodiff();
    let far = server.device(0).autodiff();
    let gradient = |middle: &Device| {
        let input = random::<2>([5, 7], 1, &local).require_grad();
        let weight = random::<2>([7, 3], 2, middle);
        let hidden = input.clone().to_device(middle).matmul(weight).exp();
        let gradients = hidden.to_device(&local).square().sum().backward();
        input.grad(&gradients).unwrap()
    };
    assert_close(gradient(&far), gradient(&local), 1e-5, 1e-5);
}

#[test]
fn training_on_another_process_ends_as_training_here() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    place.train(&["--out", "here"]);
    place.train(&["--out", "there", "--backend", &server.address]);
    let numbers = |run: &str| place.eval(run, &[])["log_likelihood"].as_f64().unwrap();
    let (here, there) = (numbers("here"), numbers("there"));
    assert!((here - there).abs() < 1e-3, "{here} {there}");
}

/// A training on the server that has written a checkpoint and goes on.
fn training(place: &Place, server: &Server) -> Child {
    let settings = ["trainer.steps=1000000", "trainer.eval_every=0"];
    let mut args = vec!["train", "images", "--config", "tiny.json", "--out", "out"];
    args.extend(["--backend", &server.address]);
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let child = place.command(args).spawn().unwrap();
    let started = Instant::now();
    while !place.path("out/checkpoints/step-00000002").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn assert_lost(output: &Output, server: &Server) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text.lines().filter(|l| !l.starts_with("retreever ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    let expected = format!("error: lost the server {}: ", server.address);
    assert!(errors[0].starts_with(&expected), "{text}");
    assert!(errors[0].contains("checkpoints are in out"), "{text}");
}

#[test]
fn a_server_that_is_killed_ends_a_training_with_one_line_and_its_checkpoints() {
    let place = Place::new();
    let mut server = Server::start(&place, &[]);
    let child = training(&place, &server);
    server.child.kill().unwrap();
    assert_lost(&ends_within(10, child), &server);
    let other = Server::start(&place, &[]);
    // With its own settings there are a million steps: the checkpoint is enough to be measured.
    assert!(place.eval("out", &["--backend", &other.address])["log_likelihood"].is_number());
}

#[test]
fn a_server_that_hangs_ends_a_training_with_one_line() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let child = training(&place, &server);
    server.signal("STOP");
    let output = ends_within(15, child);
    server.signal("CONT");
    assert_lost(&output, &server);
}

#[test]
fn a_server_ends_cleanly_when_it_is_asked_to() {
    let place = Place::new();
    let mut server = Server::start(&place, &[]);
    let device = server.device(0);
    Tensor::<1>::ones([3], &device).into_data();
    server.signal("TERM");
    let started = Instant::now();
    let code = loop {
        if let Some(status) = server.child.try_wait().unwrap() {
            break status.code();
        }
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(code, Some(0));
    assert!(matches!(remote::lost(), Some(RemoteError::Lost { .. })));
}

#[test]
fn a_device_that_the_server_does_not_have_is_refused() {
    let place = Place::new();
    let server = Server::start(&place, &["--devices", "2"]);
    let backend = format!("{}/2", server.address);
    let message = place.refuse_training(&["--backend", &backend]);
    assert!(message.contains("no device 2; it serves 2"), "{message}");
}

#[test]
fn addresses_that_cannot_be_used_are_refused() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let serve = |args: &[&str]| place.refuse(&[&["serve"], args].concat());
    let message = serve(&["--address", &taken]);
    assert!(message.contains(&format!("cannot listen on {taken}")), "{message}");
    let message = serve(&["--address", "nowhere"]);
    assert!(message.contains("cannot listen on nowhere"), "{message}");
    let message = serve(&["--backend", "ws://127.0.0.1:1"]);
    assert!(message.contains("cannot be served again"), "{message}");
    drop(listener);
    let backend = format!("ws://{taken}");
    let message = place.refuse_training(&["--backend", &backend]);
    assert!(message.contains("cannot be reached"), "{message}");
    let message = place.refuse_training(&["--backend", "ws://127.0.0.1"]);
    assert!(message.contains("expected ws://HOST:PORT"), "{message}");
}

#[test]
fn only_clients_with_the_token_are_served() {
    let place = Place::new();
    let mut command = place.command(["serve", "--address", "127.0.0.1:0", "--json"]);
    command.env(remote::TOKEN, "secret");
    let server = Server::with(command);
    let train = ["train", "images", "--config", "tiny.json", "--out", "out"];
    let train = [&train[..], &["--backend", &server.address]].concat();
    let message = place.refuse(&train);
    assert!(message.contains("set ARBORA_TOKEN"), "{message}");
    let mut command = place.command(&train);
    let output = command.env(remote::TOKEN, "secret").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// A server of burn's protocol that answers every handshake with these bytes.
fn answering(reply: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // The question whether anyone is there is no handshake.
            let Ok(mut socket) = tungstenite::accept(stream.unwrap()) else {
                continue;
            };
            let _ = socket.read();
            let _ = socket.send(tungstenite::Message::Binary(reply.clone().into()));
            let _ = socket.read();
        }
    });
    address
}

#[test]
fn a_server_of_another_version_is_refused() {
    // MessagePack of burn's reply: an id and a refusal with the version that the server speaks.
    let mut reply = vec![0x92, 0x00];
    let map = |name: &str| [&[0x81, 0xa0 | name.len() as u8][..], name.as_bytes()].concat();
    reply.extend(map("InitRefused"));
    reply.extend(map("IncompatibleProtocol"));
    reply.extend([0x91, 0x2a]);
    let address = answering(reply);
    let place = Place::new();
    let message = place.refuse_training(&["--backend", &address]);
    assert!(message.contains(&address), "{message}");
    assert!(message.contains("speaks version 42"), "{message}");
}

#[test]
fn a_server_whose_reply_makes_no_sense_is_refused() {
    let address = answering(b"good morning".to_vec());
    let place = Place::new();
    let message = place.refuse_training(&["--backend", &address]);
    assert!(message.contains("no session"), "{message}");
}
