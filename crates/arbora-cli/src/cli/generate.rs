//! `arbora generate`

use crate::backend;
use crate::families::language::{LanguageConfig, kept_tokenizer};
use crate::families::{AnyTask, FamilyModel as _};
use crate::message::tell;
use crate::placement::PlaceArgs;
use crate::run::config_of;
use anyhow::{Context as _, Result, anyhow, bail};
use arbora::models::tree_coder::{
    FinishReason, GenerateError, GenerateOptions, Generated, NewToken,
};
use arbora::rl::train::Checkpoint;
use arbora::tasks::text::{DecodeStream, DecodedText, Tokenizer};
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
    #[arg(
        long = "prompt",
        value_name = "TEXT",
        required = true,
        allow_hyphen_values = true
    )]
    prompts: Vec<String>,
    /// Tokens to generate, at most.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200,
        value_parser = at_least_one,
        allow_negative_numbers = true
    )]
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
    #[arg(long, value_name = "K", value_parser = at_least_one, allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens that have this probability together.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// End before this text. May be given several times. The end of a document always ends.
    #[arg(long = "stop", value_name = "TEXT", allow_hyphen_values = true)]
    stops: Vec<String>,
    /// Seed of what is drawn.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Restart the context after every N new tokens: keep half a context of tokens (of fewer, all but the oldest N)
    /// and choose a new route from them. Text may then be longer than the model's context.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
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
    let untrained = config.untrained_for(tokenizer.vocabulary(), &device);
    let model = checkpoint.load_model(untrained.place(&args.place.open()?)?)?;

    let mut shown = match (&args.prompts[..], &prompts[..]) {
        ([text], [prompt]) if !args.json => {
            let continuation = DecodeStream::new(&tokenizer, prompt, &args.stops)?;
            let out = std::io::stdout();
            Some(Stream::new(text, continuation, &options.stop, out))
        }
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
    let texts = prompts.iter().zip(&found);
    let texts = texts.map(|(prompt, found)| text_of(&tokenizer, prompt, found, &args.stops));
    let texts: Vec<DecodedText> = texts.collect::<Result<_>>()?;
    if let Some(shown) = shown {
        shown.finish(&texts[0])?;
    }
    if args.json {
        let continuations = args.prompts.iter().zip(&texts).zip(&found);
        let continuations =
            continuations.map(|((prompt, text), found)| numbers(prompt, text, found));
        let continuations: Vec<Value> = continuations.collect();
        let value = json!({
            "run": args.run.to_string_lossy(), "model": config.model,
            "step": checkpoint.state().step, "backend": backend, "continuations": continuations,
        });
        super::show(&value.to_string())?;
    } else if args.prompts.len() > 1 {
        let whole = args.prompts.iter().zip(&texts);
        let whole = whole.map(|(prompt, text)| format!("{prompt}{}", text.text));
        super::show(&whole.collect::<Vec<_>>().join("\n---\n"))?;
    }
    if !args.json {
        remarks(&config, &texts, &found);
    }
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
    // The same text may be other tokens where it is generated; `DecodeStream` looks for the text itself.
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
fn remarks(config: &LanguageConfig, texts: &[DecodedText], found: &[Generated]) {
    let prompt = config.prompt();
    if config.model.has_tree() && found.iter().any(|found| found.short_prompt) {
        tell!(
            "a prompt has fewer than the {prompt} tokens that choose the route: the model was not trained for that"
        );
    }
    let mut all = texts.iter().zip(found);
    if all.any(|(text, found)| !text.is_stopped && found.finish == FinishReason::Context) {
        tell!(
            "the context of {} tokens is full; --reroute N goes on beyond it",
            config.data.window
        );
    }
}

/// A continuation up to what it stops at, whether that is a text or a token.
fn text_of(
    tokenizer: &Tokenizer,
    prompt: &[u32],
    found: &Generated,
    stops: &[String],
) -> Result<DecodedText> {
    // Tokens that end it need not have the text that was asked for: a tokenizer may change text.
    let mut text = DecodeStream::new(tokenizer, prompt, stops)?;
    let new = found.before_stop().iter();
    new.for_each(|&token| text.push(token));
    let mut text = text.whole()?;
    text.is_stopped |= matches!(found.finish, FinishReason::Stop { .. });
    Ok(text)
}

/// A continuation for a program. Leaves and margins are of all that was generated, hidden behind a stop or not.
fn numbers(prompt: &str, text: &DecodedText, found: &Generated) -> Value {
    let finish = match found.finish {
        _ if text.is_stopped => "stop",
        FinishReason::Context => "context",
        _ => "length",
    };
    let shown = &found.log_probabilities[..text.tokens];
    let mean = shown.iter().sum::<f64>() / shown.len() as f64;
    let finite = |number: f64| number.is_finite().then_some(number);
    json!({
        "prompt": prompt, "text": text.text, "tokens": found.tokens[..text.tokens], "finish": finish,
        "generated_tokens": found.tokens.len(),
        "leaves": found.leaves,
        "mean_log_probability": finite(mean),
        "smallest_margin": finite(found.smallest_margin),
        "smallest_route_margin": finite(found.smallest_route_margin),
        "short_prompt": found.short_prompt,
    })
}

/// A continuation that is written as it comes, up to the text that it stops at.
struct Stream<'a, W> {
    /// As it was asked for.
    prompt: &'a str,
    text: DecodeStream<'a>,
    /// What ends the continuation, as tokens.
    stop_tokens: &'a [Vec<u32>],
    new: Vec<u32>,
    /// How many of them are in the text.
    pushed: usize,
    /// Bytes of the text that were written.
    written: usize,
    out: W,
    failed: Option<std::io::Error>,
}

impl<'a, W: Write> Stream<'a, W> {
    fn new(prompt: &'a str, text: DecodeStream<'a>, stop_tokens: &'a [Vec<u32>], out: W) -> Self {
        Self {
            prompt,
            text,
            stop_tokens,
            new: Vec::new(),
            pushed: 0,
            written: 0,
            out,
            failed: None,
        }
    }

    fn push(&mut self, token: u32) {
        if self.new.is_empty() {
            // Not before: a prompt may be refused.
            self.write(self.prompt);
        }
        self.new.push(token);
        let until = self.new.len() - held(&self.new, self.stop_tokens);
        let decided = &self.new[self.pushed..until];
        decided.iter().for_each(|&token| self.text.push(token));
        self.pushed = until;
        // Tokens without a text are refused with the whole text.
        if let Ok(text) = self.text.stable_text() {
            self.show(&text);
        }
    }

    /// Writes what a text has more than was written, which it begins with.
    fn show(&mut self, text: &str) {
        self.write(&text[self.written..]);
        self.written = text.len();
    }

    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            let written = self.out.write_all(text.as_bytes());
            self.failed = written.and_then(|()| self.out.flush()).err();
        }
    }

    /// Writes what was held back and does belong to the continuation.
    fn finish(mut self, whole: &DecodedText) -> Result<()> {
        self.show(&whole.text);
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

#[cfg(test)]
mod tests {
    use super::*;

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

    fn generated(tokens: Vec<u32>, finish: FinishReason) -> Generated {
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
        let finish = FinishReason::Stop { length: stop.len() };
        let found = generated(ids("the END"), finish);
        let text = text_of(&lower, &ids("all "), &found, &stops).unwrap();
        assert_eq!((text.text.as_str(), text.is_stopped), ("the ", true));
        let shown = numbers("all ", &text, &found);
        assert_eq!(shown["tokens"], json!(ids("the ")));
        assert_eq!(shown["generated_tokens"], 7);
        assert_eq!(shown["mean_log_probability"], -1.5);
        assert_eq!(shown["finish"], "stop");
    }

    #[test]
    fn numbers_are_those_of_the_text_before_a_stop() {
        let bytes = Tokenizer::bytes();
        let ids = |text: &str| bytes.encode(text).unwrap().ids;
        // In tokens that are not those of the stop, as another way of merging would have them.
        let found = generated(ids("the end of"), FinishReason::Length);
        let text = text_of(&bytes, &ids("x"), &found, &["end".into()]).unwrap();
        let shown = numbers("x", &text, &found);
        assert_eq!(shown["text"], "the ");
        assert_eq!(shown["tokens"], json!(ids("the ")));
        assert_eq!(shown["mean_log_probability"], -1.5);
        let nothing = text_of(&bytes, &ids("x"), &found, &["the".into()]).unwrap();
        let shown = numbers("x", &nothing, &found);
        assert_eq!(shown["tokens"], json!([]));
        assert_eq!(shown["mean_log_probability"], Value::Null);
    }

    /// What generation makes of tokens that a model draws.
    fn until_stop(drawn: &[u32], stops: &[Vec<u32>]) -> Generated {
        for end in 1..=drawn.len() {
            let tokens = &drawn[..end];
            if let Some(stop) = stops.iter().find(|stop| tokens.ends_with(stop)) {
                let finish = FinishReason::Stop { length: stop.len() };
                return generated(tokens.to_vec(), finish);
            }
        }
        generated(drawn.to_vec(), FinishReason::Length)
    }

    #[test]
    fn what_is_shown_is_the_beginning_of_the_text_and_at_the_end_all_of_it() {
        let bytes = Tokenizer::bytes();
        // Every text of six letters of which some end it, as tokens or in other ones; and the halves of an é.
        let letters = [b'a', b'b', 0xc3, 0xa9].map(u32::from);
        let stops = ["ab".to_owned(), "éa".to_owned()];
        let stop_tokens = [vec![256], vec![97, 98], vec![98, 97, 98], vec![98, 0xa9]];
        for number in 0..4_usize.pow(6) {
            let drawn: Vec<u32> = (0..6)
                .map(|place| letters[number / 4_usize.pow(place) % 4])
                .collect();
            let found = until_stop(&drawn, &stop_tokens);
            let whole = text_of(&bytes, &[120], &found, &stops).unwrap();
            let mut out = Vec::new();
            let text = DecodeStream::new(&bytes, &[120], &stops).unwrap();
            let mut shown = Stream::new("x", text, &stop_tokens, &mut out);
            for &token in &found.tokens {
                shown.push(token);
                let text = std::str::from_utf8(&shown.out[1..]).unwrap();
                assert!(whole.text.starts_with(text), "{drawn:?}: {text:?}");
            }
            shown.finish(&whole).unwrap();
            assert_eq!(out, format!("x{}\n", whole.text).as_bytes());
        }
    }
}
