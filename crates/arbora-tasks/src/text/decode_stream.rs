//! Text that grows token by token.

use tokenizers::Decoder as _;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::strip::Strip;

use super::Tokenizer;
use crate::TaskError;

/// The text of tokens that come one by one behind a prompt, for whoever shows it while it grows.
///
/// What was [certain](DecodeStream::stable_text) once is the beginning of the text forever, whatever tokens follow and
/// whatever tokenizer it is. With many of them a token changes text before it: bytes become a character, or
/// a run of bytes becomes unreadable as a whole, or what was the last word gets a space. Such text is held
/// back until it is decided. With a decoder that may change anything up to the end, that is all of it.
///
/// ```
/// use arbora_tasks::text::{DecodeStream, Tokenizer};
/// # fn main() -> Result<(), arbora_tasks::TaskError> {
/// let bytes = Tokenizer::bytes();
/// let prompt = bytes.encode("caf")?.ids;
/// let stops = ["lait".to_owned()];
/// let mut text = DecodeStream::new(&bytes, &prompt, &stops)?;
/// let certain: Vec<String> = bytes
///     .encode("é au lait")?
///     .ids
///     .into_iter()
///     .map(|token| {
///         text.push(token);
///         text.stable_text()
///     })
///     .collect::<Result<_, _>>()?;
/// assert_eq!(certain[..4], ["", "é", "é ", "é a"]);
/// // It may go on with "lait".
/// assert_eq!(certain[6], "é au ");
/// assert_eq!(text.whole()?.text, "é au ");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// Tokens of the prompt, then the new ones.
    ids: Vec<u32>,
    /// How many are of the prompt.
    prompt: usize,
    /// Bytes of their text.
    begin: usize,
}

/// A text that does not grow any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedText {
    /// The text behind the prompt, up to the first of the texts that end it.
    pub text: String,
    /// The fewest of the new tokens whose text begins with it. Without those of what ends it, but for a token
    /// that is a part of both.
    pub tokens: usize,
    /// Whether one of the texts that end it was there.
    pub is_stopped: bool,
}

impl<'a> DecodeStream<'a> {
    /// Nothing yet behind a prompt.
    ///
    /// The prompt says how the first token is written: some tokenizers write it in another way where a text
    /// begins. Its own text stands, so bytes behind it are no part of its last character.
    ///
    /// - stops: texts that end the continuation. An empty one ends it at once.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    ///
    /// # Panics
    /// As [`Tokenizer::decode`].
    #[track_caller]
    pub fn new(
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        stops: &'a [String],
    ) -> Result<Self, TaskError> {
        // As much of the prompt as no token behind it can change.
        for count in (0..=prompt.len()).rev() {
            let ids = &prompt[..count];
            let text = tokenizer.decode(ids)?;
            if tokenizer.stable_text(ids)? == text {
                return Ok(Self {
                    tokenizer,
                    stops,
                    ids: ids.to_vec(),
                    prompt: count,
                    begin: text.len(),
                });
            }
        }
        unreachable!("DecodeStream::new: no tokens have no text")
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) {
        self.ids.push(token);
    }

    /// As much of the text as is known, whatever tokens follow. Without what may become one of the texts that end it.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    ///
    /// # Panics
    /// As [`Tokenizer::decode`].
    #[track_caller]
    pub fn stable_text(&self) -> Result<String, TaskError> {
        let mut text = self.tokenizer.stable_text(&self.ids)?.split_off(self.begin);
        let may_stop = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&text[*at..]));
        let open = text.char_indices().map(|(at, _)| at).find(may_stop);
        // A stop that is there does not decide while a longer one may begin before it.
        let end = first_of(&text, self.stops).into_iter().chain(open).min();
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }

    /// The text if no token follows. It begins with all that was certain before.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    ///
    /// # Panics
    /// As [`Tokenizer::decode`].
    #[track_caller]
    pub fn whole(&self) -> Result<DecodedText, TaskError> {
        let text = |tokens: usize| {
            let text = self.tokenizer.decode(&self.ids[..self.prompt + tokens]);
            text.map(|mut text| text.split_off(self.begin))
        };
        let all = self.ids.len() - self.prompt;
        let mut whole = text(all)?;
        let Some(end) = first_of(&whole, self.stops) else {
            return Ok(DecodedText {
                text: whole,
                tokens: all,
                is_stopped: false,
            });
        };
        whole.truncate(end);
        let mut tokens = 0;
        // All of them are enough.
        while !text(tokens)?.starts_with(&whole) {
            tokens += 1;
        }
        Ok(DecodedText {
            text: whole,
            tokens,
            is_stopped: true,
        })
    }
}

/// Where the first of some texts begins.
fn first_of(text: &str, stops: &[String]) -> Option<usize> {
    stops
        .iter()
        .filter_map(|stop| text.find(stop.as_str()))
        .min()
}

/// The beginning of the pieces of text that the steps of a decoder hand on, as far as later tokens leave it alone.
pub(super) struct Known {
    pieces: Vec<String>,
    /// Whether the last piece may go on.
    is_open: bool,
}

impl Known {
    /// What is known of any text that begins with these pieces.
    pub(super) fn whole(pieces: Vec<String>) -> Self {
        Self {
            pieces,
            is_open: false,
        }
    }

    fn growing(text: String) -> Self {
        Self {
            pieces: vec![text],
            is_open: true,
        }
    }

    /// What is known behind a step of a decoder.
    pub(super) fn through(self, decoder: &DecoderWrapper) -> tokenizers::Result<Self> {
        match decoder {
            DecoderWrapper::Sequence(steps) => {
                let steps = steps.get_decoders().iter();
                steps.into_iter().try_fold(self, Self::through)
            }
            DecoderWrapper::Fuse(_) => Ok(Self::growing(self.text())),
            DecoderWrapper::Strip(strip) if self.is_open => self.stripped(strip),
            // The last piece has no space behind it, and is the last as long as nothing follows.
            DecoderWrapper::BPE(bpe) => {
                let pieces = self.closed();
                let Some(last) = pieces.last() else {
                    return Ok(Self::whole(pieces));
                };
                let (last, _) = last.split_once(&bpe.suffix).unwrap_or((last, ""));
                let last = last.to_owned();
                let mut pieces = decoder.decode_chain(pieces)?;
                pieces.pop();
                pieces.push(last);
                Ok(Self {
                    pieces,
                    is_open: true,
                })
            }
            // A run of bytes is readable or not as a whole.
            DecoderWrapper::ByteFallback(_) => {
                let mut pieces = self.closed();
                let run = pieces.iter().rev().take_while(|piece| is_byte(piece));
                pieces.truncate(pieces.len() - run.count());
                Ok(Self::whole(decoder.decode_chain(pieces)?))
            }
            DecoderWrapper::ByteLevel(_) => {
                let text = decoder.decode_chain(self.closed())?.concat();
                Ok(Self::growing(complete(text)))
            }
            // Piece by piece, and only the first or the one before makes a difference.
            DecoderWrapper::Replace(_)
            | DecoderWrapper::Strip(_)
            | DecoderWrapper::Metaspace(_)
            | DecoderWrapper::WordPiece(_)
            | DecoderWrapper::CTC(_) => Ok(Self::whole(decoder.decode_chain(self.closed())?)),
        }
    }

    /// The pieces that are whole. Most steps may change all of a piece over its end.
    fn closed(mut self) -> Vec<String> {
        if self.is_open {
            self.pieces.pop();
        }
        self.pieces
    }

    /// The library cuts both ends of every piece; of the last, what follows may become its end.
    fn stripped(mut self, strip: &Strip) -> tokenizers::Result<Self> {
        let last = self.pieces.pop().unwrap_or_default();
        let is_cut = |one: &char| *one == strip.content;
        let bytes = |count: usize| count * strip.content.len_utf8();
        let start = bytes(last.chars().take(strip.start).take_while(is_cut).count());
        let last = &last[start..];
        let stop = bytes(
            last.chars()
                .rev()
                .take(strip.stop)
                .take_while(is_cut)
                .count(),
        );
        self.pieces = strip.decode_chain(self.pieces)?;
        self.pieces.push(last[..last.len() - stop].to_owned());
        Ok(self)
    }

    pub(super) fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// Whether a piece is a byte to the library: `<0x41>`.
fn is_byte(piece: &str) -> bool {
    let digits = piece
        .strip_prefix("<0x")
        .and_then(|it| it.strip_suffix('>'));
    digits.is_some_and(|it| it.len() == 2 && u8::from_str_radix(it, 16).is_ok())
}

/// Text that was read from bytes, without a last character that is unreadable: further bytes may complete it.
pub(super) fn complete(mut text: String) -> String {
    if text.ends_with(char::REPLACEMENT_CHARACTER) {
        text.pop();
    }
    text
}
