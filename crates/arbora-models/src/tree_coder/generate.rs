//! Prompts are continued token by token.

use super::config::RouteOn;
use super::decoder::check_tokens;
use super::draws::place_seed;
use super::sampling::{Filters, log_probability, margin, pick};
use super::{TreeCoder, TreeCoderConfig};
use arbora_rl::seed::{Purpose, rng};
use arbora_tree::ConfigError;
use burn::config::Config;
use rand::Rng;
use thiserror::Error;

/// The least margin at which greedy decoding gives the same tokens on every backend, with or without a cache: of the
/// largest logit over the second, and in each selector of the value of the chosen child over the next. Below it rounding
/// may decide: see [`Generated::smallest_margin`] and [`Generated::smallest_route_margin`]. Attention that routes
/// tokens to leaves has no margin here.
///
/// The tests hold logits with and without a cache to within a tenth of it, in single precision.
pub const GREEDY_EPSILON: f64 = 1e-3;

/// How prompts are continued.
#[derive(Config, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Tokens of each continuation, at most.
    #[config(default = 64)]
    pub max_tokens: usize,
    /// Logits are divided by it before a token is drawn. 0 is greedy decoding: the most probable token, of
    /// equal ones the one with the lower id.
    #[config(default = 0.0)]
    pub temperature: f64,
    /// How many of the most probable tokens may be drawn; `None`: all.
    #[config(default = "None")]
    pub top_k: Option<usize>,
    /// Of what `top_k` keeps, the fewest most probable tokens that together have this much of its probability may be
    /// drawn, at least one; `None`: all.
    #[config(default = "None")]
    pub top_p: Option<f64>,
    /// Token sequences that end a continuation. They are looked for in what is generated, not across the end of
    /// the prompt.
    #[config(default = "vec![]")]
    pub stop: Vec<Vec<u32>>,
    /// Seed of sampling: the prompt with index `i` draws as it would alone with `seed + i`.
    #[config(default = 0)]
    pub seed: u64,
    /// After so many new tokens, or when the context is full, a sequence restarts at position 0 with its last tokens as
    /// the prompt, and a new route is chosen from the first of these. Kept is half a context, or of fewer tokens all but
    /// the oldest `reroute`, but never fewer than the route reads ([`RouteOn::FirstN`] and [`RouteOn::PreviousChunk`]): a
    /// sequence with no more than these does not restart. `None`: a full context ends the continuation.
    #[config(default = "None")]
    pub reroute: Option<usize>,
    /// Whether keys and values are kept. Otherwise each token is computed from all tokens before it: slow,
    /// and the same up to rounding.
    #[config(default = true)]
    pub cache: bool,
}

/// A continuation of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, with the stop sequence if there is one.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: FinishReason,
    /// The leaf of each routed item, in order: one, or one for each chunk; after a restart those
    /// of the new context follow.
    pub leaves: Vec<usize>,
    /// Of each new token, the logarithm of its probability before temperature and filters.
    pub log_probabilities: Vec<f64>,
    /// How much the greatest logit was above the second greatest where they were closest. See [`GREEDY_EPSILON`].
    pub smallest_margin: f64,
    /// The same of the probabilities of children, with the bias of loss-free balancing, where a route was decided;
    /// infinite where no selector decided.
    pub smallest_route_margin: f64,
    /// Whether the prompt has fewer tokens than the model was trained to begin with.
    pub short_prompt: bool,
}

impl Generated {
    /// The new tokens without the stop sequence.
    pub fn before_stop(&self) -> &[u32] {
        match self.finish {
            FinishReason::Stop { length } => &self.tokens[..self.tokens.len() - length],
            FinishReason::Length | FinishReason::Context => &self.tokens,
        }
    }
}

/// Why a continuation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// With a stop sequence.
    Stop {
        /// Its tokens, which are the last ones of the continuation.
        length: usize,
    },
    /// It has as many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
}

/// A new token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewToken {
    /// Index of the prompt.
    pub prompt: usize,
    /// The token.
    pub token: u32,
    /// The logarithm of its probability before temperature and filters.
    pub log_probability: f64,
    /// If it is the last one: why.
    pub finish: Option<FinishReason>,
}

/// Why there is no continuation.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GenerateError {
    /// An option is out of range.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Tokens see those after them.
    #[error("the model is not causal: its tokens see those after them")]
    NotCausal,
    /// Routes depend on tokens after those that they are taken for.
    #[error("the model is routed by {route_on:?}, which reads tokens that do not exist yet")]
    RouteNotCausal {
        /// What selectors read.
        route_on: RouteOn,
    },
    /// Classes are not tokens.
    #[error("the model predicts {classes} classes, not the {vocabulary} tokens of its vocabulary")]
    NotALanguageModel {
        /// What it predicts.
        classes: usize,
        /// What it reads.
        vocabulary: usize,
    },
    /// A prompt without tokens.
    #[error("prompt {prompt} is empty: expected at least 1 token")]
    EmptyPrompt {
        /// Its index.
        prompt: usize,
    },
    /// More tokens than positions.
    #[error("prompt {prompt} has {tokens} tokens: expected at most the context of {context}")]
    TooLong {
        /// Its index.
        prompt: usize,
        /// Its tokens.
        tokens: usize,
        /// What the model holds.
        context: usize,
    },
    /// A token that is not in the vocabulary.
    #[error("prompt {prompt} has the token {token}: expected tokens below {vocabulary}")]
    UnknownToken {
        /// Index of the prompt.
        prompt: usize,
        /// The first one.
        token: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
    /// Not a number, or infinite.
    #[error("the logits after {tokens} tokens of prompt {prompt} are not finite")]
    NotFinite {
        /// Index of the prompt.
        prompt: usize,
        /// New tokens before.
        tokens: usize,
    },
}

impl GenerateOptions {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first option that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([
            ("max_tokens", self.max_tokens),
            ("top_k", self.top_k.unwrap_or(1)),
            ("reroute", self.reroute.unwrap_or(1)),
        ])?;
        ConfigError::unless_at_least_0("temperature", self.temperature)?;
        let mass = self.top_p.unwrap_or(1.0);
        let holds = mass > 0.0 && mass <= 1.0;
        ConfigError::unless(holds, "top_p", "above 0 and at most 1", mass)?;
        let holds = !self.stop.iter().any(Vec::is_empty);
        ConfigError::unless(holds, "stop", "sequences of at least 1 token", "none")
    }

    fn filters(&self) -> Filters {
        Filters {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
        }
    }
}

/// [`TreeCoder::generate_each`].
pub(super) fn continued(
    model: &TreeCoder,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    mut on_token: impl FnMut(NewToken),
) -> Result<Vec<Generated>, GenerateError> {
    options.check()?;
    let config = model.config();
    let most = config.kept_on_reroute(config.context + 1, 0);
    if options.reroute.is_some() && most >= config.context {
        let expected = "a context longer than what the route reads";
        let got = format!("a context of {}", config.context);
        return Err(ConfigError::new("reroute", expected, got).into());
    }
    let mut decoder = model.decoder()?;
    if !options.cache {
        decoder = decoder.without_cache();
    }
    check_prompts(prompts, config)?;
    let mut running: Vec<Continuation> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            let seed = options.seed.wrapping_add(index as u64);
            decoder.add(seed);
            Continuation {
                next: prompt.clone(),
                since: 0,
                begun: 0,
                seed,
                done: None,
                found: Generated {
                    tokens: Vec::new(),
                    finish: FinishReason::Length,
                    leaves: Vec::new(),
                    log_probabilities: Vec::new(),
                    smallest_margin: f64::INFINITY,
                    smallest_route_margin: f64::INFINITY,
                    short_prompt: prompt.len() < config.route_on.prompt(),
                },
            }
        })
        .collect();
    loop {
        let fed: Vec<(usize, &[u32])> = running
            .iter()
            .enumerate()
            .filter(|(_, one)| one.done.is_none())
            .map(|(prompt, one)| (prompt, one.next.as_slice()))
            .collect();
        if fed.is_empty() {
            break;
        }
        let logits = decoder.feed(&fed)?;
        let fed: Vec<usize> = fed.into_iter().map(|(prompt, _)| prompt).collect();
        for (prompt, logits) in fed.into_iter().zip(logits) {
            let one = &mut running[prompt];
            let mut new = one.draw(prompt, &logits, options)?;
            let length = decoder.tokens(prompt).len();
            new.finish = one.finish(options, length >= config.context);
            on_token(new);
            one.done = new.finish;
            let kept = options
                .reroute
                .filter(|after| one.since >= *after || length >= config.context)
                .map(|after| config.kept_on_reroute(length + 1, after))
                .filter(|kept| *kept <= length && one.done.is_none());
            one.next = vec![new.token];
            if let Some(kept) = kept {
                let before = decoder.tokens(prompt);
                one.next = [&before[length + 1 - kept..], &one.next].concat();
                one.since = 0;
            }
            let of_routes = &mut one.found.smallest_route_margin;
            *of_routes = of_routes.min(decoder.route_margin(prompt));
            if kept.is_some() || one.done.is_some() {
                one.found.leaves.extend(decoder.leaves(prompt));
                one.begun += 1;
                decoder.clear(prompt);
                decoder.reseed(prompt, place_seed(one.seed, one.begun));
            }
        }
    }
    let finished = running.into_iter().map(|one| Generated {
        finish: one.done.unwrap_or(one.found.finish),
        ..one.found
    });
    Ok(finished.collect())
}

fn check_prompts(prompts: &[Vec<u32>], config: &TreeCoderConfig) -> Result<(), GenerateError> {
    for (prompt, tokens) in prompts.iter().enumerate() {
        if tokens.is_empty() {
            return Err(GenerateError::EmptyPrompt { prompt });
        }
        if tokens.len() > config.context {
            return Err(GenerateError::TooLong {
                prompt,
                tokens: tokens.len(),
                context: config.context,
            });
        }
        check_tokens(prompt, tokens, config.vocabulary)?;
    }
    Ok(())
}

impl TreeCoderConfig {
    /// Tokens that a sequence keeps of so many when it starts again on another route.
    ///
    /// - after: new tokens after which it does
    fn kept_on_reroute(&self, tokens: usize, after: usize) -> usize {
        let read = match self.route_on {
            RouteOn::FirstN { tokens } | RouteOn::PreviousChunk { tokens } => tokens,
            RouteOn::LastToken | RouteOn::MeanAll => 1,
        };
        let most = read.max(self.context / 2);
        if tokens > most {
            most
        } else {
            // Fewer than before, so that the route is one of newer tokens.
            read.max(tokens.saturating_sub(after))
        }
    }
}

/// A prompt that is being continued.
struct Continuation {
    /// What is to be fed next.
    next: Vec<u32>,
    /// New tokens since the sequence began.
    since: usize,
    /// How often the sequence started again, which random routes depend on.
    begun: usize,
    /// Of what is drawn.
    seed: u64,
    done: Option<FinishReason>,
    found: Generated,
}

impl Continuation {
    fn draw(
        &mut self,
        prompt: usize,
        logits: &[f32],
        options: &GenerateOptions,
    ) -> Result<NewToken, GenerateError> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(GenerateError::NotFinite {
                prompt,
                tokens: self.found.tokens.len(),
            });
        }
        let candidates = options.filters().candidates(logits);
        let step = self.found.tokens.len() as u64;
        let uniform = rng(self.seed, Purpose::Evaluation, step).random();
        let token = pick(&candidates, uniform);
        let log_probability = log_probability(logits, token);
        self.since += 1;
        self.found.tokens.push(token);
        self.found.log_probabilities.push(log_probability);
        self.found.smallest_margin = self.found.smallest_margin.min(margin(logits));
        Ok(NewToken {
            prompt,
            token,
            log_probability,
            finish: None,
        })
    }

    /// - is_full: whether the context has no place for the last token
    fn finish(&self, options: &GenerateOptions, is_full: bool) -> Option<FinishReason> {
        let tokens = &self.found.tokens;
        let stopped = options.stop.iter().filter(|stop| tokens.ends_with(stop));
        if let Some(length) = stopped.map(Vec::len).max() {
            return Some(FinishReason::Stop { length });
        }
        if tokens.len() == options.max_tokens {
            return Some(FinishReason::Length);
        }
        (is_full && options.reroute.is_none()).then_some(FinishReason::Context)
    }
}
