//! Text to numbers and back.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
    Trainer as _,
};

use super::decode_stream::{Known, complete};
use crate::{TaskError, files};

const BYTES: usize = 256;
/// Most symbols that a tokenizer may be trained for.
const MOST: usize = 1 << 20;
/// A pair of symbols that occurs once is not worth a symbol of its own.
const LEAST_OCCURRENCES: u64 = 2;

/// Most bytes of what is merged as one word while a tokenizer is trained. The library's training is quadratic in the
/// length of a word. Words of written language, and their runs of spaces or dashes, are shorter; texts without spaces,
/// as of genes, and a few sentences of languages without them, are longer.
const LONGEST_WORD: usize = 1024;

/// Turns text into the numbers of tokens, and back.
///
/// Every tokenizer has one symbol more than its own, the last: the end of a document. It is never in the
/// tokens of a text. Cheap to clone.
///
/// The byte tokenizer and a trained one stand for any text exactly. A tokenizer from a file may change text
/// (capitals, accents, white space), and characters that it does not know become its symbol for unknown
/// ones. If it has none, it leaves them out or refuses the text, as its model does.
#[derive(Clone)]
pub struct Tokenizer {
    kind: Kind,
    /// Without the end of a document.
    symbols: usize,
}

#[derive(Clone)]
enum Kind {
    Bytes,
    Model {
        model: Arc<tokenizers::Tokenizer>,
        /// Every character of a symbol is one byte of the text.
        byte_level: bool,
        /// As it was read or trained. The library writes numbers with gaps only under protest.
        json: Arc<str>,
    },
}

/// A text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The number of each token.
    pub ids: Vec<u32>,
    /// How many bytes of the text each token stands for; together exactly all of them, unless there are no
    /// tokens.
    pub bytes: Vec<u32>,
}

impl Tokenizer {
    /// Every byte is a token: 256 symbols and the end of a document.
    pub fn bytes() -> Self {
        Self {
            kind: Kind::Bytes,
            symbols: BYTES,
        }
    }

    /// Reads a `tokenizer.json` of Hugging Face's tokenizers, or what [`Tokenizer::to_json`] wrote.
    ///
    /// Limits on length, padding, templates around a text (post-processors) and random merges (dropout) that
    /// the file may ask for are turned off: they would lose or invent text. A special token that is spelled out
    /// in a text is that token.
    ///
    /// # Errors
    /// [`TaskError::Read`] if the file cannot be read; [`TaskError::File`] if it is not UTF-8 or holds no
    /// tokenizer, two symbols with one number, or a number of 2^20 or above.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TaskError> {
        let path = path.as_ref();
        let json = files::read_text(path)?;
        Self::parse(&json).map_err(|problem| TaskError::file(path, not_a_tokenizer(problem)))
    }

    /// Reads what [`Tokenizer::to_json`] wrote, or the text of a `tokenizer.json`, as
    /// [`Tokenizer::from_file`] does.
    ///
    /// # Errors
    /// [`TaskError::Text`] if the text is no tokenizer that [`Tokenizer::from_file`] takes.
    pub fn from_json(json: &str) -> Result<Self, TaskError> {
        Self::parse(json).map_err(|problem| TaskError::Text(not_a_tokenizer(problem)))
    }

    /// Trains byte-level byte-pair encoding, as GPT-2 has it: a text is cut into words, numbers and
    /// punctuation, and in them the most frequent pair of neighbouring symbols becomes a symbol, over and
    /// over.
    ///
    /// `vocabulary` counts all symbols: 256 bytes, pairs, and the end of a document. There are fewer if the
    /// texts have too few pairs that occur twice. The same texts give the same tokenizer: of pairs that are
    /// equally frequent, the one whose symbols came first is taken.
    ///
    /// Time and memory grow with the length of the texts, whatever they are. To that end, words of more than 1024
    /// bytes, as texts without spaces have them, are cut into parts of 1024 bytes for training; if there are any, the
    /// tokenizer cuts them in the same way where it encodes, and `tokenizer.json` says so. Others change nothing.
    ///
    /// Source: Sennrich, Haddow and Birch, arXiv 1508.07909; Radford and others, "Language models are
    /// unsupervised multitask learners", 2019, section 2.2.
    ///
    /// # Errors
    /// [`TaskError::Config`] if `vocabulary` is below 257 or above 2^20.
    pub fn train_bpe<'a>(
        vocabulary: usize,
        texts: impl Iterator<Item = &'a str> + Send,
    ) -> Result<Self, TaskError> {
        if !(BYTES + 1..=MOST).contains(&vocabulary) {
            let least = BYTES + 1;
            let expected = format!("{least} (all bytes and the end of a document) to {MOST}");
            return Err(TaskError::config("vocabulary", expected, vocabulary));
        }
        let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary - 1)
            .min_frequency(LEAST_OCCURRENCES)
            .initial_alphabet(alphabet)
            .show_progress(false)
            .build();
        let byte_level = ByteLevel::new(false, false, true);
        let in_parts = Split::new(
            SplitPattern::Regex(format!(".{{1,{LONGEST_WORD}}}")),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .expect("a valid pattern");
        let has_long_words = AtomicBool::new(false);
        let words_of = |text: &str| {
            let mut words = PreTokenizedString::from(text);
            byte_level.pre_tokenize(&mut words)?;
            let is_long = |word: &str| word.chars().nth(LONGEST_WORD).is_some();
            if each(&words).any(is_long) {
                has_long_words.store(true, Ordering::Relaxed);
                in_parts.pre_tokenize(&mut words)?;
            }
            Ok(each(&words).map(str::to_owned).collect())
        };
        let mut bpe = BPE::default();
        trainer
            .feed(texts, words_of)
            .and_then(|()| trainer.train(&mut bpe))
            .map_err(|error| refused("be trained")(error.to_string()))?;
        let mut model = tokenizers::Tokenizer::new(bpe);
        model.with_decoder(Some(byte_level));
        // A text that was cut is also read so, here and by other programs.
        if has_long_words.into_inner() {
            model.with_pre_tokenizer(Some(Sequence::new(vec![
                byte_level.into(),
                in_parts.into(),
            ])))
        } else {
            model.with_pre_tokenizer(Some(byte_level))
        };
        let json = model.to_string(false).map_err(|error| error.to_string());
        let tokenizer = json.and_then(|json| Self::of_model(model, json));
        tokenizer.map_err(|problem| TaskError::Text(not_a_tokenizer(problem)))
    }

    fn parse(json: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        // A tokenizer without a model is written as its kind.
        match whole["kind"].as_str() {
            Some("bytes") => Ok(Self::bytes()),
            Some(other) => Err(format!("expected the kind `bytes` or none, got `{other}`")),
            None => {
                let json = exact(json, whole);
                let model = guarded(|| tokenizers::Tokenizer::from_str(&json))?;
                Self::of_model(model, json)
            }
        }
    }

    /// - json: what the model is read from or written as
    fn of_model(model: tokenizers::Tokenizer, json: String) -> Result<Self, String> {
        // Numbers may have gaps, so the count of symbols is not enough.
        let mut symbols: Vec<(u32, String)> = model
            .get_vocab(true)
            .into_iter()
            .map(|(symbol, number)| (number, symbol))
            .collect();
        symbols.sort_unstable();
        if let Some([(number, one), (_, other)]) = symbols
            .array_windows()
            .find(|[one, other]| one.0 == other.0)
        {
            return Err(format!(
                "{one:?} and {other:?} have the same number {number}"
            ));
        }
        let (last, symbol) = symbols.pop().ok_or("it has no symbols")?;
        if last as usize >= MOST {
            return Err(format!(
                "{symbol:?} has the number {last}: expected numbers below {MOST}"
            ));
        }
        let plain = model.get_normalizer().is_none();
        let is_exact = |step: &PreTokenizerWrapper| matches!(step, PreTokenizerWrapper::ByteLevel(level) if !level.add_prefix_space);
        let byte_level = plain
            && match model.get_pre_tokenizer() {
                // As a trained one cuts long words.
                Some(PreTokenizerWrapper::Sequence(steps)) => {
                    matches!(steps.as_ref(), [level, PreTokenizerWrapper::Split(_)] if is_exact(level))
                }
                Some(step) => is_exact(step),
                None => false,
            };
        Ok(Self {
            kind: Kind::Model {
                model: Arc::new(model),
                byte_level,
                json: json.into(),
            },
            symbols: last as usize + 1,
        })
    }

    /// How many numbers tokens may have, the end of a document included.
    pub fn vocabulary(&self) -> usize {
        self.symbols + 1
    }

    /// The number of the end of a document: the last.
    pub fn end_of_document(&self) -> u32 {
        self.symbols as u32
    }

    /// The tokens of a text, without an end of document.
    ///
    /// Bytes of a text that no token stands for, such as spaces that a tokenizer drops, count for the token
    /// after them, or for the last one at the end. Where several tokens stand for one character and the
    /// tokenizer is not byte-level, the first one has its bytes.
    ///
    /// # Errors
    /// [`TaskError::Text`] if a tokenizer from a file refuses the text.
    pub fn encode(&self, text: &str) -> Result<Encoded, TaskError> {
        let Kind::Model {
            model, byte_level, ..
        } = &self.kind
        else {
            return Ok(Encoded {
                ids: text.bytes().map(u32::from).collect(),
                bytes: vec![1; text.len()],
            });
        };
        let encoding =
            guarded(|| model.encode(text, false)).map_err(refused("encode this text"))?;
        let lengths = || encoding.get_tokens().iter().map(|one| one.chars().count());
        // Tokens that were added to a byte-level vocabulary are written plainly, so the sum is compared.
        let bytes = if *byte_level && lengths().sum::<usize>() == text.len() {
            lengths().map(|length| length as u32).collect()
        } else {
            covered(encoding.get_offsets(), text.len())
        };
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            bytes,
        })
    }

    /// The text of tokens. Ends of documents give nothing. Bytes that are not UTF-8, as at the ends of a
    /// part of a text, become U+FFFD.
    ///
    /// # Errors
    /// [`TaskError::Text`] if the decoder of a tokenizer from a file refuses the tokens.
    ///
    /// # Panics
    /// If a number is not below [`Tokenizer::vocabulary`].
    #[track_caller]
    pub fn decode(&self, ids: &[u32]) -> Result<String, TaskError> {
        if let Some(id) = ids.iter().find(|&&id| id > self.end_of_document()) {
            panic!(
                "Tokenizer::decode: ids: expected numbers below {}, got {id}",
                self.vocabulary()
            );
        }
        let ids = self.within_documents(ids);
        match &self.kind {
            Kind::Bytes => Ok(lossy(&ids)),
            // Some decoders of the library fail over nothing.
            Kind::Model { .. } if ids.is_empty() => Ok(String::new()),
            Kind::Model { model, .. } => {
                guarded(|| model.decode(&ids, false)).map_err(refused("decode these tokens"))
            }
        }
    }

    /// As much of the text of tokens as any further tokens leave alone: the text of these and of any others behind them
    /// begins with it.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`], whose conditions hold.
    #[track_caller]
    pub(super) fn stable_text(&self, ids: &[u32]) -> Result<String, TaskError> {
        let Kind::Model { model, .. } = &self.kind else {
            return Ok(complete(lossy(&self.within_documents(ids))));
        };
        let Some(decoder) = model.get_decoder() else {
            // The library puts spaces between tokens.
            return self.decode(ids);
        };
        let ids = self.within_documents(ids).into_iter();
        let pieces = ids.filter_map(|id| model.id_to_token(id));
        let known = guarded(|| Known::whole(pieces.collect()).through(decoder));
        Ok(known.map_err(refused("decode these tokens"))?.text())
    }

    /// Tokens without ends of documents.
    #[track_caller]
    fn within_documents(&self, ids: &[u32]) -> Vec<u32> {
        let ids = ids.iter().copied();
        ids.filter(|&id| id != self.end_of_document()).collect()
    }

    /// The tokenizer as text for [`Tokenizer::from_json`], which gives the same numbers. That of a trained
    /// tokenizer, or of one from a file, is a `tokenizer.json` that other programs can read, too.
    pub fn to_json(&self) -> String {
        match &self.kind {
            Kind::Bytes => serde_json::json!({ "kind": "bytes" }).to_string(),
            Kind::Model { json, .. } => json.to_string(),
        }
    }

    /// SHA-256 of [`Tokenizer::to_json`] in hexadecimal: tokenizers with the same fingerprint are the same.
    pub fn fingerprint(&self) -> String {
        format!("{:x}", Sha256::digest(self.to_json()))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Bytes => "bytes",
            Kind::Model {
                byte_level: true, ..
            } => "byte-level",
            Kind::Model { .. } => "model",
        };
        formatter
            .debug_struct("Tokenizer")
            .field("kind", &kind)
            .field("vocabulary", &self.vocabulary())
            .finish()
    }
}

/// The words that a text was cut into.
fn each(words: &PreTokenizedString) -> impl Iterator<Item = &str> {
    let words = words.get_splits(OffsetReferential::Original, OffsetType::None);
    words.into_iter().map(|(word, ..)| word)
}

/// The text of tokens that are bytes.
fn lossy(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The text of a tokenizer without what would lose or invent text; unchanged where there is nothing of that, but for
/// CRLF between tokens of JSON, which becomes LF: a file has one fingerprint on all systems.
///
/// - whole: the same, parsed
fn exact(json: &str, mut whole: Value) -> String {
    let mut is_exact = true;
    let mut turn_off = |place: Option<&mut Value>| {
        if let Some(place) = place.filter(|place| !place.is_null()) {
            *place = Value::Null;
            is_exact = false;
        }
    };
    for name in ["truncation", "padding", "post_processor"] {
        turn_off(whole.get_mut(name));
    }
    let model = whole.get_mut("model");
    turn_off(model.and_then(|model| model.get_mut("dropout")));
    if is_exact {
        json.replace("\r\n", "\n")
    } else {
        whole.to_string()
    }
}

/// What the library answers. It panics over some files.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    let panic = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(answer) => return answer.map_err(|error| error.to_string()),
        Err(panic) => panic,
    };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("without a reason");
    Err(format!("its library fails: {text}"))
}

/// What a tokenizer cannot do, given what it said.
fn refused(action: &str) -> impl Fn(String) -> TaskError {
    move |problem| TaskError::Text(format!("the tokenizer cannot {action}: {problem}"))
}

fn not_a_tokenizer(problem: String) -> String {
    format!("not a tokenizer: {problem}")
}

/// The bytes of each token, from where tokens lie in the text: up to its end, from the end of those before.
fn covered(offsets: &[(usize, usize)], length: usize) -> Vec<u32> {
    let mut until = 0;
    let mut bytes: Vec<u32> = offsets
        .iter()
        .map(|&(_, end)| {
            let from = until;
            until = until.max(end.min(length));
            (until - from) as u32
        })
        .collect();
    if let Some(last) = bytes.last_mut() {
        *last += (length - until) as u32;
    }
    bytes
}
