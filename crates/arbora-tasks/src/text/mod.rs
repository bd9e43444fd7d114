//! Text for language models: corpora, tokenizers, and windows of tokens that predict their next ones.
//!
//! - [`Corpus`]: documents from a file, from a folder or bundled, and their split for validation
//! - [`Tokenizer`]: bytes, byte-pair encoding trained on a corpus, or the `tokenizer.json` of another program
//! - [`DecodeStream`]: the text of tokens that come one by one, as far as it is certain
//! - [`Text`]: both parts of a corpus as windows, in batches
//!
//! # Example
//! ```
//! use arbora_tasks::text::{Corpus, Document, Text, TextConfig, Tokenizer};
//! # fn main() -> Result<(), arbora_tasks::TaskError> {
//! # let device = burn::tensor::Device::default();
//! let corpus = Corpus::from_documents(vec![Document {
//!     name: "pangram".into(),
//!     text: "the quick brown fox jumps over the lazy dog. ".repeat(20),
//! }])?;
//! let config = TextConfig::default().with_window(16);
//! let (train, _) = corpus.split(config.validation)?;
//! let tokenizer = Tokenizer::train_bpe(300, train.texts())?;
//! let text = Text::new(&corpus, tokenizer, config)?;
//! let (seed, step) = (0, 0);
//! let batch = text.batch(seed, step, 4, &device)?;
//! assert_eq!(batch.tokens.dims(), [4, 16]);
//! # Ok(())
//! # }
//! ```

mod corpus;
mod decode_stream;
#[cfg(feature = "sample")]
pub mod sample;
mod tokenizer;
mod windows;

pub use crate::files::read_text;
pub use corpus::{Corpus, Document};
pub use decode_stream::{DecodeStream, DecodedText};
pub use tokenizer::{Encoded, Tokenizer};
pub use windows::{Text, TextBatch, TextConfig};
