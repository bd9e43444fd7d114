//! Devices of other processes: what they compute, and what happens when they go.
#![cfg(all(feature = "remote", feature = "flex", unix))]

mod common;

use arbora::attention::{AttentionKindConfig, TreeFineConfig};
use arbora::models::tree_coder::{
    LeafHead, Placement, RouteOn, SelectorConfig, SelectorKind, TreeCoder, TreeCoderConfig,
    TreeCoderOptions,
};
use arbora::rl::clip_global_norm;
use arbora_cli::remote::{self, Address};
use arbora_testing::{assert_close, random};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor};
use common::{Place, parse, stderr};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
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
            panic!(
                "still there after {seconds} s: {:?}",
                child.wait_with_output()
            );
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
    let numbers = |run: &str| {
        place.eval(run, &[])["metrics"]["log_likelihood"]
            .as_f64()
            .unwrap()
    };
    let (here, there) = (numbers("here"), numbers("there"));
    assert!((here - there).abs() < 1e-3, "{here} {there}");
}

#[test]
fn sequences_train_on_another_process_as_here() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let common = json!({
        "batch_size": 4, "eval_batch_size": 4, "eval_items": 4, "test_items": 8,
        "trainer": { "steps": 4, "eval_every": 4, "checkpoint_every": 2, "warmup_steps": 0 },
    });
    let with = |data, architecture| {
        let mut settings = common.clone();
        settings["data"] = data;
        settings["architecture"] = architecture;
        settings.to_string()
    };
    let copy = with(
        json!({ "kind": "copy", "length": 8 }),
        json!({ "d_model": 8, "d_ff": 8, "n_heads": 2, "encoder_layers": 1 }),
    );
    let recall = with(
        json!({ "kind": "recall", "length": 16, "pairs": 4, "keys": 6, "values": 3, "curriculum": [] }),
        json!({ "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "layers": 2, "d_ff": 8 }),
    );
    std::fs::write(place.path("copy.json"), copy).unwrap();
    std::fs::write(place.path("recall.json"), recall).unwrap();
    for (task, model) in [
        ("copy", "retreever"),
        ("recall", "tree-fine"),
        ("recall", "tree-coarse"),
        ("recall", "performer"),
    ] {
        let numbers = |more: &[&str], run: &str| {
            let (config, run) = (format!("{task}.json"), format!("{model}-{run}"));
            let args = ["train", task, "--model", model, "--config", &config];
            place.succeed(&[&args[..], &["--out", &run], more].concat());
            let found = place.eval(&run, &[])["metrics"]["log_likelihood"].as_f64();
            found.unwrap()
        };
        let here = numbers(&[], "here");
        let there = numbers(&["--backend", &server.address], "there");
        assert!(
            (here - there).abs() < 1e-3,
            "{task} {model}: {here} {there}"
        );
    }
}

/// A training on the server that has written a checkpoint and goes on.
fn training(place: &Place, server: &Server) -> Child {
    let settings = ["trainer.steps=1000000", "trainer.eval_every=0"];
    let mut args = vec!["train", "images", "--config", "tiny.json", "--out", "out"];
    args.extend(["--backend", &server.address]);
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let child = place.command(args).spawn().unwrap();
    has_saved(place, "out/checkpoints/step-00000002");
    child
}

/// Waits for a file or folder of a run.
fn has_saved(place: &Place, name: &str) {
    let started = Instant::now();
    while !place.path(name).try_exists().unwrap() {
        assert!(started.elapsed() < Duration::from_secs(60), "no {name}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn assert_lost(output: &Output, server: &Server) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| !line.contains(" on ")).collect();
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
    assert!(
        place.eval("out", &["--backend", &other.address])["metrics"]["log_likelihood"].is_number()
    );
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
    assert!(Tensor::<1>::ones([3], &device).try_into_data().is_err());
    let lost = remote::lost().unwrap();
    assert!(lost.starts_with("lost the server ws://"), "{lost}");
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
    assert!(
        message.contains(&format!("cannot listen on {taken}")),
        "{message}"
    );
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
            let mut stream = stream.unwrap();
            let mut begun = [0; 6];
            while stream.peek(&mut begun).unwrap() < begun.len() {}
            if &begun == b"GET / " {
                // The question whether anyone is there, as a web server answers it.
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            let mut socket = tungstenite::accept(stream).unwrap();
            let _ = socket.read();
            let _ = socket.send(tungstenite::Message::Binary(reply.clone().into()));
            let _ = socket.read();
        }
    });
    address
}

#[test]
fn a_server_of_another_version_is_refused() {
    // MessagePack of burn's reply: a refusal with the version that the server speaks, and an id.
    let mut reply = vec![0x92];
    let map = |name: &str| [&[0x81, 0xa0 | name.len() as u8][..], name.as_bytes()].concat();
    reply.extend(map("InitRefused"));
    reply.extend(map("IncompatibleProtocol"));
    reply.extend([0x91, 0x2a, 0x00]);
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

/// A tree of seven nodes over bytes that reads the first four tokens.
fn tree() -> TreeCoderConfig {
    TreeCoderConfig::new(256, 24)
        .with_d_model(16)
        .with_d_ff(vec![32])
        .with_route_on(RouteOn::FirstN { tokens: 4 })
        .with_head(LeafHead::PerLeaf)
}

/// Sequences that reach every leaf, `[8, 24]`, and the leaves.
fn sequences(device: &Device) -> (Tensor<2, Int>, TreeCoderOptions) {
    let tokens = random::<2>([8, 24], 3, device) * 127.0 + 128.0;
    let leaves = Some(vec![0, 1, 2, 3, 3, 2, 1, 0]);
    (tokens.int(), TreeCoderOptions { seed: 0, leaves })
}

fn placed(model: TreeCoder, nodes: &[(&str, &Device)]) -> TreeCoder {
    let placement = nodes
        .iter()
        .fold(Placement::new(), |placement, (node, device)| {
            placement.with(node.parse().unwrap(), (*device).clone())
        });
    model.place(&placement).unwrap()
}

#[test]
fn nodes_on_other_processes_give_the_logits_of_local_ones() {
    let place = Place::new();
    let (near, far) = (
        Server::start(&place, &[]),
        Server::start(&place, &["--devices", "2"]),
    );
    let home = Device::flex();
    let devices = [near.device(0), far.device(0), far.device(1)];
    for head in [LeafHead::Shared, LeafHead::PerLeaf] {
        let local = tree().with_head(head).with_seed(7).init(&home);
        let nodes = [
            ("0", &devices[0]),
            ("0.1", &devices[1]),
            ("1.0", &devices[2]),
        ];
        let spread = placed(local.clone(), &nodes);
        assert_eq!(spread.node(1, 0).device(), devices[0]);
        assert_eq!(spread.node(2, 0).device(), devices[0]);
        assert_eq!(spread.node(2, 1).device(), devices[1]);
        assert_eq!(spread.node(2, 2).device(), devices[2]);
        assert_eq!(spread.node(2, 3).device(), home);
        let logits = |model: &TreeCoder, options: &TreeCoderOptions| {
            let (tokens, _) = sequences(&home);
            model.forward(tokens, None, options)
        };
        let (_, options) = sequences(&home);
        for options in [TreeCoderOptions::default(), options] {
            let (expected, got) = (logits(&local, &options), logits(&spread, &options));
            assert_eq!(got.routing.leaves, expected.routing.leaves);
            assert_close(got.logits, expected.logits, 1e-5, 0.0);
        }
    }
}

#[test]
fn decoding_with_leaves_on_another_process_gives_the_logits_of_local_ones() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let far = server.device(0);
    for head in [LeafHead::Shared, LeafHead::PerLeaf] {
        // By chance, so that some go to each leaf.
        let selector = SelectorConfig::new().with_kind(SelectorKind::Random);
        let local = tree().with_head(head).with_selector(selector);
        let local = local.with_seed(7).init(&Device::flex());
        let spread = placed(local.clone(), &[("0.1", &far), ("1", &far)]);
        let fed = |model: &TreeCoder| {
            let mut decoder = model.decoder().unwrap();
            let sequences: Vec<usize> = (0..12).map(|seed| decoder.add(seed)).collect();
            let mut logits = Vec::new();
            for tokens in [&[3, 1, 4, 2][..], &[5], &[0]] {
                let fed: Vec<_> = sequences.iter().map(|&at| (at, tokens)).collect();
                logits.extend(decoder.feed(&fed).unwrap().concat());
            }
            let leaves = sequences.iter().flat_map(|&at| decoder.leaves(at).to_vec());
            (logits, leaves.collect::<Vec<_>>())
        };
        let ((expected, leaves), (got, same)) = (fed(&local), fed(&spread));
        assert_eq!(leaves, same);
        assert!((0..4).all(|leaf| leaves.contains(&leaf)), "{leaves:?}");
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
        }
        assert_eq!(got.len(), expected.len());
    }
}

#[test]
fn losses_of_attention_on_another_process_come_home() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let home = Device::flex().autodiff();
    let attention = AttentionKindConfig::TreeFine(TreeFineConfig::new([2]));
    // Not clones, which would share the trees' running state.
    let model = || {
        tree()
            .with_attention(attention.clone())
            .with_seed(7)
            .init(&home)
    };
    let (local, spread) = (model(), placed(model(), &[("0.1", &server.device(0))]));
    let loss = |model: &TreeCoder| {
        let (tokens, options) = sequences(&home);
        let reports = model.forward(tokens, None, &options).routing.attention;
        let losses = reports
            .into_iter()
            .map(|report| report.balance_loss.unwrap());
        let losses: Vec<Tensor<1>> = losses.collect();
        assert_eq!(losses.len(), 7);
        assert!(losses.iter().all(|loss| loss.device() == home));
        Tensor::cat(losses, 0)
    };
    let got = loss(&spread);
    assert_close(got.clone(), loss(&local), 1e-5, 0.0);
    // What computed it learns from it.
    let gradients = got.sum().backward();
    let leaf = &spread.node(2, 1).blocks[0].attention;
    assert!(leaf.query.weight.val().grad(&gradients).is_some());
}

/// All float parameters, by the place in the module.
fn parameters(model: &TreeCoder) -> Vec<(Tensor<1>, Device)> {
    struct Flat(Vec<(Tensor<1>, Device)>);
    impl ModuleVisitor for Flat {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().without_autodiff();
            let device = value.device();
            let value = value.reshape([-1]).to_device(&Device::flex());
            self.0.push((value, device));
        }
    }
    let mut flat = Flat(Vec::new());
    model.visit(&mut flat);
    flat.0
}

/// One step of AdamW with the norm of all gradients clipped.
fn stepped(model: TreeCoder, home: &Device) -> (TreeCoder, f32) {
    let model = model.train();
    let (tokens, options) = sequences(&home.clone().autodiff());
    let logits = model.forward(tokens, None, &options).logits;
    let gradients = logits.square().mean().backward();
    let gradients = GradientsParams::from_grads(gradients, &model);
    let (gradients, norm) = clip_global_norm(gradients, &model, 0.1);
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-3).init();
    (optimizer.step(0.01, model, gradients), norm)
}

#[test]
fn a_step_of_nodes_on_two_processes_is_the_local_one_and_leaves_them_there() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let (home, far) = (Device::flex(), server.device(0));
    let local = tree().with_seed(7).init(&home);
    let spread = placed(local.clone(), &[("1", &far)]);
    let before = parameters(&spread);
    let ((local, expected), (spread, norm)) = (stepped(local, &home), stepped(spread, &home));
    assert!(
        (norm - expected).abs() < 1e-4 * expected,
        "{norm} {expected}"
    );
    let mut moved = 0.0f32;
    for ((got, device), ((expected, _), (old, there))) in parameters(&spread)
        .into_iter()
        .zip(parameters(&local).into_iter().zip(before))
    {
        assert_eq!(device, there);
        moved = moved.max((got.clone() - old).abs().max().into_scalar::<f32>());
        assert_close(got, expected, 1e-5, 1e-5);
    }
    assert!(moved > 1e-3);
    assert_eq!(spread.node(2, 3).device().without_autodiff(), far);
}

/// A text, and settings of a language model of seven nodes.
fn language(place: &Place) {
    let text = "The whale swam by the ship, and the sailors saw it go down. ".repeat(40);
    std::fs::write(place.path("text.txt"), text).unwrap();
    let settings = json!({
        "data": {
            "source": "text.txt", "tokenizer": { "kind": "bytes" }, "window": 24, "validation": 0.25,
        },
        "batch_size": 8,
        "eval_batch_size": 8,
        "eval_items": 8,
        "architecture": {
            "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "branching": 2, "height": 2, "blocks": [1],
            "d_ff": [32], "route_on": { "kind": "first-n", "tokens": 4 }, "head": "per-leaf",
        },
        "trainer": {
            "steps": 6, "eval_every": 3, "checkpoint_every": 2, "warmup_steps": 0,
            "learning_rate": 0.01,
        },
    });
    std::fs::write(place.path("language.json"), settings.to_string()).unwrap();
}

const LANGUAGE: [&str; 6] = ["train", "lm", "--config", "language.json", "--out", "out"];

#[test]
fn a_tree_on_two_processes_trains_and_speaks_as_a_local_one() {
    let place = Place::new();
    language(&place);
    let server = Server::start(&place, &[]);
    let text = json!({ "0": server.address, "0.1": "flex" }).to_string();
    std::fs::write(place.path("placement.json"), text).unwrap();
    let further = format!("1.1={}", server.address);
    let spread = ["--placement", "placement.json", "--place", &further];
    let train = |out: &str, more: &[&str]| {
        place.succeed(&[&LANGUAGE[..5], &[out], more].concat());
    };
    train("here", &[]);
    train("there", &spread);
    let measured = |run: &str, more: &[&str]| place.eval(run, more)["metrics"]["loss"].clone();
    let here = measured("here", &[]).as_f64().unwrap();
    for (run, more) in [("here", &spread[..]), ("there", &[]), ("there", &spread)] {
        let found = measured(run, more).as_f64().unwrap();
        assert!(
            (found - here).abs() < 1e-3 * here,
            "{run} {more:?}: {found} {here}"
        );
    }
    let speak = |more: &[&str]| {
        let args = [
            "generate",
            "here",
            "--prompt",
            "The whale",
            "--tokens",
            "8",
            "--temperature",
            "0",
        ];
        place.succeed(&[&args, more].concat())
    };
    assert_eq!(speak(&spread), speak(&[]));
}

#[test]
fn a_server_that_is_killed_ends_the_training_of_a_tree_with_one_line() {
    let place = Place::new();
    language(&place);
    let mut server = Server::start(&place, &[]);
    let node = format!("1={}", server.address);
    let settings = [
        "--set",
        "trainer.steps=1000000",
        "--set",
        "trainer.eval_every=0",
    ];
    let args = [&LANGUAGE[..], &settings, &["--place", &node]].concat();
    let child = place.command(args).spawn().unwrap();
    has_saved(&place, "out/checkpoints/step-00000002");
    server.child.kill().unwrap();
    assert_lost(&ends_within(10, child), &server);
}

#[test]
fn placements_that_do_not_fit_are_refused() {
    let place = Place::new();
    language(&place);
    let refuse = |more: &[&str]| place.refuse(&[&LANGUAGE, more].concat());
    let message = refuse(&["--place", "0.0.1=flex"]);
    assert!(
        message.contains("node 0.0.1: the tree has none"),
        "{message}"
    );
    assert!(message.contains("such as 1.1"), "{message}");
    let message = refuse(&["--place", "2=flex"]);
    assert!(message.contains("numbers from 0 to 1"), "{message}");
    let message = refuse(&["--place", "first=flex"]);
    assert!(
        message.contains("first: expected the name of a node"),
        "{message}"
    );
    let message = refuse(&["--place", "1=nowhere"]);
    assert!(message.contains("unknown backend nowhere"), "{message}");
    let message = place.refuse_training(&["--place", "1=flex"]);
    assert!(
        message.contains("only the trees of language models"),
        "{message}"
    );
}

#[test]
fn addresses_name_a_server_and_a_device() {
    for (text, server, whole) in [
        (
            "ws://127.0.0.1:3000",
            "ws://127.0.0.1:3000",
            "ws://127.0.0.1:3000",
        ),
        (
            "ws://127.0.0.1:3000/",
            "ws://127.0.0.1:3000",
            "ws://127.0.0.1:3000",
        ),
        (
            "ws://gpu-7.local:80/3",
            "ws://gpu-7.local:80",
            "ws://gpu-7.local:80/3",
        ),
        ("ws://[::1]:3000/1", "ws://[::1]:3000", "ws://[::1]:3000/1"),
    ] {
        let address: Address = text.parse().unwrap();
        assert_eq!(
            (address.server().as_str(), address.to_string().as_str()),
            (server, whole)
        );
        assert_eq!(whole.parse::<Address>().unwrap(), address);
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
        let message = text.parse::<Address>().unwrap_err().to_string();
        assert!(message.starts_with(text), "{message}");
        assert!(message.contains("expected ws://HOST:PORT"), "{message}");
        assert!(message.contains(reason), "{message}");
    }
}

/// A listener of this process, and its address.
fn listener() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("ws://{}", listener.local_addr().unwrap());
    (listener, address.parse().unwrap())
}

/// Fails unless the device at an address is refused, within so many seconds, in these words.
fn assert_refused(address: &Address, seconds: u64, words: &str) {
    let started = Instant::now();
    let message = format!("{:#}", remote::open(address).unwrap_err());
    assert!(
        message.starts_with(&address.server()) && message.contains(words),
        "{message}"
    );
    assert!(started.elapsed() < Duration::from_secs(seconds));
}

#[test]
fn an_address_where_nothing_listens_is_refused_at_once() {
    let (listener, address) = listener();
    drop(listener);
    assert_refused(&address, 3, "cannot be reached");
}

#[test]
fn a_listener_that_never_answers_is_given_up_within_seconds() {
    let (_listener, address) = listener();
    assert_refused(&address, 10, "does not answer within");
}

#[test]
fn another_kind_of_server_is_named_as_such() {
    let (listener, address) = listener();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"220 mail ready\r\n"));
        }
    });
    assert_refused(
        &address,
        10,
        "something other than `arbora serve` answers there",
    );
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
    assert_refused(
        &address,
        10,
        "something other than `arbora serve` answers there",
    );
}
