//! `arbora generate`

use crate::backend;
use crate::families::AnyTask;
use crate::families::language::{LanguageConfig, kept_tokenizer};
use crate::message::tell;
use crate::placement::PlaceArgs;
use crate::run::config_of;
use anyhow::{Context as _, Result, anyhow, bail};
use arbora::models::tree_coder::{Finish, GenerateError, GenerateOptions, Generated, NewToken};
use arbora::rl::train::Checkpoint;
use arbora::tasks::text::Tokenizer;
use clap::Args;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The run's folder.
    run: PathBuf,
    /// The text to continue. May be given several times; each is continued for itself.
    #[arg(long = "prompt", value_name = "TEXT", required = true)]
    prompts: Vec<String>,
    /// Tokens to generate, at most.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = at_least_one)]
    tokens: usize,
    /// Below 1 makes likely tokens likelier; 0 always takes the likeliest.
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.8,
        allow_negative_numbers = true
    )]
    temperature: f64,
    /// Draw from the K likeliest tokens only.
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens that have this probability together.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// End before this text. May be given several times. The end of a document always ends.
    #[arg(long = "stop", value_name = "TEXT")]
    stops: Vec<String>,
    /// Seed of what is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Begin anew after every N tokens, on the route that the last ones choose: half a context of them, or of
    /// fewer all but the oldest N. Text may then be longer than the model's context.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    reroute: Option<usize>,
    /// Where to compute: a backend compiled in, or ws://HOST:PORT where `arbora serve` listens.
    #[arg(long)]
    backend: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print the continuations as JSON on standard output, whole.
    #[arg(long)]
    json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number of at least 1".into()),
    }
}

pub fn run(args: GenerateArgs) -> Result<ExitCode> {
    if let Some(task) = AnyTask::of_run(&args.run)
        && !matches!(task, AnyTask::Language(_))
    {
        bail!(
            "{}: a run of task {}; generate is for language models (task lm)",
            args.run.display(),
            task.name()
        );
    }
    let config = config_of::<LanguageConfig>(&args.run)?;
    // The text that it learned from is not needed.
    let tokenizer = kept_tokenizer(&args.run)?;
    let prompts = args.prompts.iter();
    let prompts = prompts.map(|prompt| encoded(prompt, &tokenizer, "--prompt", "to begin with"));
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
    let options = options(&args, &tokenizer)?;
    let (checkpoint, passed_over) = Checkpoint::newest(&args.run)?;
    for error in passed_over {
        tell!("{error}; using step {}", checkpoint.state().step);
    }
    checkpoint.expect_fingerprint(&config.fingerprint_with(&tokenizer)?)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let blank = config.blank_for(tokenizer.vocabulary(), &device);
    let model = checkpoint.load_model(blank.place(&args.place.open()?)?)?;

    let mut shown = match &args.prompts[..] {
        [prompt] if !args.json => Some(Stream {
            tokenizer: &tokenizer,
            text: prompt,
            prompt: &prompts[0],
            stops: &args.stops,
            stop_tokens: &options.stop,
            new: Vec::new(),
            written: 0,
            failed: None,
        }),
        _ => None,
    };
    let on_token = |new: NewToken| {
        if let Some(shown) = &mut shown {
            shown.push(new.token);
        }
    };
    let found = model
        .network()
        .generate_each(&prompts, &options, on_token)
        .map_err(|error| refused(&error, &args))?;
    if let Some(shown) = shown {
        shown.finish(&found[0])?;
    }
    let texts: Vec<Text> = prompts
        .iter()
        .zip(&found)
        .map(|(prompt, found)| Text::new(&tokenizer, prompt, found, &args.stops))
        .collect();
    if args.json {
        let continuations: Vec<Value> = args
            .prompts
            .iter()
            .zip(&texts)
            .zip(&found)
            .map(|((prompt, text), found)| text.json(prompt, found))
            .collect();
        super::show(
            &json!({
                "run": args.run.to_string_lossy(), "model": config.model,
                "step": checkpoint.state().step, "backend": backend, "continuations": continuations,
            })
            .to_string(),
        )?;
    } else if args.prompts.len() > 1 {
        let whole = args.prompts.iter().zip(&texts);
        let whole = whole.map(|(prompt, text)| format!("{prompt}{}", text.text));
        super::show(&whole.collect::<Vec<_>>().join("\n---\n"))?;
    }
    remarks(&config, &args, &texts, &found);
    Ok(ExitCode::SUCCESS)
}

/// The tokens of the text of an option; none is refused, with what it would be for.
fn encoded(
    text: &str,
    tokenizer: &Tokenizer,
    option: &'static str,
    what: &str,
) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text).context(option)?.ids;
    if ids.is_empty() {
        bail!("{option}: {text:?} has no token {what}");
    }
    Ok(ids)
}

fn options(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<GenerateOptions> {
    // The same text may be other tokens where it is generated; `Text` and `Stream` look for the text itself.
    let mut stop = vec![vec![tokenizer.end_of_document()]];
    for text in &args.stops {
        stop.push(encoded(text, tokenizer, "--stop", "to stop at")?);
    }
    let options = GenerateOptions::new()
        .with_max_tokens(args.tokens)
        .with_temperature(args.temperature)
        .with_top_k(args.top_k)
        .with_top_p(args.top_p)
        .with_stop(stop)
        .with_seed(args.seed)
        .with_reroute(args.reroute);
    options
        .check()
        .map_err(|error| refused(&GenerateError::Setting(error), args))?;
    Ok(options)
}

/// A refusal that names the option, where it is one.
fn refused(error: &GenerateError, args: &GenerateArgs) -> anyhow::Error {
    match error {
        GenerateError::Setting(error) => {
            let option = error.setting.replace('_', "-");
            anyhow!("--{option}: expected {}, got {}", error.expected, error.got)
        }
        GenerateError::TooLong {
            prompt,
            tokens,
            context,
        } => {
            let start: String = args.prompts[*prompt].chars().take(24).collect();
            anyhow!(
                "--prompt: {start:?}… has {tokens} tokens: expected at most {context}, the context of the model"
            )
        }
        _ => anyhow::Error::new(error.clone()),
    }
}

/// What a person should know of the continuations beside them.
fn remarks(config: &LanguageConfig, args: &GenerateArgs, texts: &[Text], found: &[Generated]) {
    if args.json {
        return;
    }
    let prompt = config.prompt();
    if config.model.has_tree() && found.iter().any(|found| found.short_prompt) {
        tell!(
            "a prompt has fewer than the {prompt} tokens that choose the route: the model was not trained for that"
        );
    }
    let full = texts.iter().zip(found);
    if full
        .into_iter()
        .any(|(text, found)| !text.is_stopped && found.finish == Finish::Context)
    {
        tell!(
            "the context of {} tokens is full; --reroute N goes on beyond it",
            config.data.window
        );
    }
}

/// The text of new tokens that follow a prompt.
///
/// With the prompt before them: some tokenizers write the first token of a text in another way.
fn decoded(tokenizer: &Tokenizer, prompt: &[u32], new: &[u32]) -> String {
    let text = |ids: &[u32]| tokenizer.decode(ids).unwrap_or_default();
    let whole = text(&[prompt, new].concat());
    match whole.strip_prefix(&text(prompt)) {
        Some(rest) => rest.to_owned(),
        None => text(new),
    }
}

/// Where the first of some texts begins.
fn first_of(text: &str, stops: &[String]) -> Option<usize> {
    stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
}

/// A continuation as text.
struct Text {
    /// Up to what it stops at.
    text: String,
    /// The fewest tokens whose text it begins. Without what it stops at, but for a token that is a part of both.
    tokens: usize,
    is_stopped: bool,
}

impl Text {
    fn new(tokenizer: &Tokenizer, prompt: &[u32], found: &Generated, stops: &[String]) -> Self {
        // Tokens that end it need not have the text that was asked for: a tokenizer may change text.
        let new = found.before_stop();
        let mut text = decoded(tokenizer, prompt, new);
        let mut tokens = new.len();
        let end = first_of(&text, stops);
        if let Some(end) = end {
            text.truncate(end);
            let counts: Vec<usize> = (0..tokens).collect();
            tokens = counts
                .partition_point(|count| decoded(tokenizer, prompt, &new[..*count]).len() < end);
        }
        Self {
            text,
            tokens,
            is_stopped: end.is_some() || matches!(found.finish, Finish::Stop { .. }),
        }
    }

    fn json(&self, prompt: &str, found: &Generated) -> Value {
        let finish = match found.finish {
            _ if self.is_stopped => "stop",
            Finish::Context => "context",
            _ => "length",
        };
        let shown = &found.log_probabilities[..self.tokens];
        let mean = shown.iter().sum::<f64>() / shown.len() as f64;
        let finite = |number: f64| number.is_finite().then_some(number);
        // Leaves and margins are of all that was generated, hidden behind a stop or not.
        json!({
            "prompt": prompt, "text": self.text, "tokens": found.tokens[..self.tokens], "finish": finish,
            "generated_tokens": found.tokens.len(),
            "leaves": found.leaves,
            "mean_log_probability": finite(mean),
            "smallest_margin": finite(found.smallest_margin),
            "smallest_route_margin": finite(found.smallest_route_margin),
            "short_prompt": found.short_prompt,
        })
    }
}

/// A continuation that is written as it comes, up to the text that it stops at.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    /// The prompt.
    text: &'a str,
    /// Its tokens.
    prompt: &'a [u32],
    stops: &'a [String],
    /// What ends the continuation, as tokens.
    stop_tokens: &'a [Vec<u32>],
    new: Vec<u32>,
    /// Bytes of the continuation that were written.
    written: usize,
    failed: Option<std::io::Error>,
}

impl Stream<'_> {
    fn push(&mut self, token: u32) {
        if self.new.is_empty() {
            // Not before: a prompt may be refused.
            self.write(self.text);
        }
        self.new.push(token);
        let shown = self.new.len() - held(&self.new, self.stop_tokens);
        let text = decoded(self.tokenizer, self.prompt, &self.new[..shown]);
        self.show(&text, certain(&text, self.stops));
    }

    fn show(&mut self, text: &str, until: usize) {
        if let Some(rest) = text.get(self.written..until) {
            self.write(rest);
            self.written = until;
        }
    }

    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            let mut out = std::io::stdout();
            self.failed = out
                .write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .err();
        }
    }

    /// Writes what was held back and does belong to the continuation.
    fn finish(mut self, found: &Generated) -> Result<()> {
        let text = decoded(self.tokenizer, self.prompt, found.before_stop());
        self.show(&text, first_of(&text, self.stops).unwrap_or(text.len()));
        self.write("\n");
        match self.failed {
            // Whoever stopped reading has seen enough.
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).context("cannot write to standard output")
            }
            _ => Ok(()),
        }
    }
}

/// How many of the last tokens are what ends a continuation, or may become that.
fn held(new: &[u32], stops: &[Vec<u32>]) -> usize {
    let is_held = |count: &usize| {
        let last = &new[new.len() - count..];
        stops.iter().any(|stop| stop.starts_with(last))
    };
    (1..=new.len()).rev().find(is_held).unwrap_or(0)
}

/// Up to where a text that grows is known: before what it stops at, what may become that, and a character that
/// is not whole yet.
fn certain(text: &str, stops: &[String]) -> usize {
    if let Some(end) = first_of(text, stops) {
        return end;
    }
    let whole = text.trim_end_matches('\u{fffd}').len();
    let held = text
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| stops.iter().any(|stop| stop.starts_with(&text[*at..])));
    held.map_or(whole, |held| held.min(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_or_a_character_is_held_back() {
        let stops = ["\n\n".to_owned(), "END".to_owned()];
        for (text, expected) in [
            ("abc", 3),
            ("abc\n", 3),
            ("abc\nd", 5),
            ("abc\n\nd", 3),
            ("abcEN", 3),
            ("abcENd", 6),
            ("abcEND and END", 3),
            ("abc\u{fffd}", 3),
            ("é", 2),
        ] {
            assert_eq!(certain(text, &stops), expected, "{text:?}");
        }
        assert_eq!(certain("abc", &[]), 3);
    }

    #[test]
    fn tokens_that_may_become_a_stop_are_held_back() {
        let stops = [vec![9], vec![1, 2, 3], vec![2, 2]];
        for (new, expected) in [
            (&[][..], 0),
            (&[1], 1),
            (&[1, 2], 2),
            (&[1, 2, 3], 3),
            (&[1, 2, 4], 0),
            (&[1, 2, 2], 2),
            (&[4, 9], 1),
        ] {
            assert_eq!(held(new, &stops), expected, "{new:?}");
        }
    }

    fn generated(tokens: Vec<u32>, finish: Finish) -> Generated {
        Generated {
            log_probabilities: (0..tokens.len()).map(|at| -(at as f64)).collect(),
            tokens,
            finish,
            leaves: vec![0],
            smallest_margin: 1.0,
            smallest_route_margin: 1.0,
            short_prompt: false,
        }
    }

    #[test]
    fn a_stop_is_not_shown_where_its_tokens_have_another_text() {
        let trained = Tokenizer::train_bpe(257, ["text"].into_iter()).unwrap();
        let mut lower: Value = serde_json::from_str(&trained.to_json()).unwrap();
        lower["normalizer"] = json!({ "type": "Lowercase" });
        let lower = Tokenizer::from_json(&lower.to_string()).unwrap();
        let ids = |text: &str| lower.encode(text).unwrap().ids;
        let stops = ["END".to_owned()];
        let stop = ids("END");
        assert_eq!(lower.decode(&stop).unwrap(), "end");
        let finish = Finish::Stop { length: stop.len() };
        let found = generated(ids("the END"), finish);
        let text = Text::new(&lower, &ids("all "), &found, &stops);
        assert_eq!((text.text.as_str(), text.is_stopped), ("the ", true));
        let numbers = text.json("all ", &found);
        assert_eq!(numbers["tokens"], json!(ids("the ")));
        assert_eq!(numbers["generated_tokens"], 7);
        assert_eq!(numbers["mean_log_probability"], -1.5);
        assert_eq!(numbers["finish"], "stop");
    }

    #[test]
    fn numbers_are_those_of_the_text_before_a_stop() {
        let bytes = Tokenizer::bytes();
        let ids = |text: &str| bytes.encode(text).unwrap().ids;
        // In tokens that are not those of the stop, as another way of merging would have them.
        let found = generated(ids("the end of"), Finish::Length);
        let text = Text::new(&bytes, &ids("x"), &found, &["end".into()]);
        let numbers = text.json("x", &found);
        assert_eq!(numbers["text"], "the ");
        assert_eq!(numbers["tokens"], json!(ids("the ")));
        assert_eq!(numbers["mean_log_probability"], -1.5);
        let nothing = Text::new(&bytes, &ids("x"), &found, &["the".into()]);
        let numbers = nothing.json("x", &found);
        assert_eq!(numbers["tokens"], json!([]));
        assert_eq!(numbers["mean_log_probability"], Value::Null);
    }

    #[test]
    fn the_first_stop_in_the_text_counts() {
        let stops = ["late".to_owned(), "early".to_owned()];
        assert_eq!(first_of("an early and a late one", &stops), Some(3));
        assert_eq!(first_of("none", &stops), None);
    }

    #[test]
    fn a_continuation_is_decoded_behind_its_prompt() {
        let bytes = Tokenizer::bytes();
        let ids = |text: &str| bytes.encode(text).unwrap().ids;
        assert_eq!(decoded(&bytes, &ids("caf"), &ids("é au lait")), "é au lait");
        // Half of a character.
        let half = &ids("é")[..1];
        assert_eq!(decoded(&bytes, &ids("caf"), half), "\u{fffd}");
    }
}
