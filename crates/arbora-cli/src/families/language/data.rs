//! From settings to text: where it comes from, how it becomes sequences, and what the folder of a run keeps of it: the
//! tokenizer, and which text it was.

use super::LanguageConfig;
use crate::families::kept::Provenance;
use crate::families::{Family as _, Kept};
use crate::progress::meanwhile;
use anyhow::{Context as _, Result, bail};
use arbora::tasks::TaskError;
use arbora::tasks::text::{Corpus, Text, TextBatch, TextConfig, Tokenizer};
use burn::tensor::{Bool, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum TextSource {
    /// The bundled book, written `moby-dick`.
    MobyDick,
    /// A text file, or a folder of `.txt` and `.md` files.
    Path(PathBuf),
}

const MOBY_DICK: &str = "moby-dick";

impl From<PathBuf> for TextSource {
    fn from(path: PathBuf) -> Self {
        if path == Path::new(MOBY_DICK) {
            Self::MobyDick
        } else {
            Self::Path(path)
        }
    }
}

impl From<TextSource> for PathBuf {
    fn from(source: TextSource) -> Self {
        match source {
            TextSource::MobyDick => MOBY_DICK.into(),
            TextSource::Path(path) => path,
        }
    }
}

impl TextSource {
    fn read(&self) -> Result<Corpus, TaskError> {
        match self {
            Self::MobyDick => Ok(Corpus::moby_dick()),
            Self::Path(path) => Corpus::open(path),
        }
    }
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerSource {
    /// A byte is a token.
    Bytes,
    /// Byte-pair encoding, learned from the training part of the text.
    Bpe {
        /// All tokens: 256 bytes, pairs that are learned, and the end of a document.
        #[serde(default = "default_vocabulary")]
        vocabulary: usize,
    },
    /// A `tokenizer.json` as Hugging Face's library writes it.
    File { path: PathBuf },
}

fn default_vocabulary() -> usize {
    512
}

/// The text of a run, and how it becomes sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageSource {
    pub source: TextSource,
    /// Where the text that is kept back for validation comes from; `None`: a share of `source`, see `validation`.
    #[serde(default)]
    pub validation_source: Option<TextSource>,
    pub tokenizer: TokenizerSource,
    /// Tokens of a sequence: the model's context.
    pub window: usize,
    /// Whether a sequence may have tokens of several documents.
    pub mix_documents: bool,
    /// The share of the text that is kept back for validation. Not used with a `validation_source`.
    pub validation: f64,
}

/// A text as sequences of tokens. Clones share the tokens.
#[derive(Clone, Debug)]
pub struct LanguageData {
    pub text: Text,
    pub training: Corpus,
    pub validation: Corpus,
}

impl LanguageSource {
    /// The same by absolute paths.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        for source in [Some(&mut self.source), self.validation_source.as_mut()] {
            if let Some(TextSource::Path(path)) = source {
                *path = std::path::absolute(&path)?;
            }
        }
        if let TokenizerSource::File { path } = &mut self.tokenizer {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }
}

impl LanguageData {
    /// Tells the text and its tokenizer from others.
    pub fn digest(&self) -> String {
        let tokenizer = self.text.tokenizer().fingerprint();
        let parts = [&self.training, &self.validation].map(Corpus::sha256);
        format!("{}-{}-{tokenizer}", parts[0], parts[1])
    }

    /// What the folder of a run keeps.
    pub fn kept(&self) -> Result<Vec<Kept>> {
        let provenance = TextProvenance {
            training: PartProvenance::of(&self.training),
            validation: PartProvenance::of(&self.validation),
        };
        let tokenizer = self.text.tokenizer().to_json();
        Ok(vec![
            Kept::file(TOKENIZER, tokenizer),
            Kept::provenance(&provenance)?,
        ])
    }

    /// Tokens of the training part and of the validation part that are asked for.
    fn targets(&self, config: &LanguageConfig) -> [usize; 2] {
        let ignored = config.ignored_targets();
        [
            self.text.train_targets_after(ignored),
            self.text.validation_targets_after(ignored),
        ]
    }
}

/// Sequences of text, and which of their tokens are asked for.
#[derive(Clone, Debug)]
pub struct LanguageBatch {
    pub text: TextBatch,
    /// `true` = no loss, for padding and for tokens that choose routes: `[batch, window]`, by target
    pub ignored: Tensor<2, Bool>,
    /// The same on the host, row by row.
    pub skipped: Vec<bool>,
}

impl LanguageBatch {
    /// - prompt: tokens at the start of each sequence that are not asked for
    pub fn new(text: TextBatch, prompt: usize) -> Self {
        let [batch, window] = text.tokens.dims();
        let skipped: Vec<bool> = text
            .counts
            .iter()
            // What is predicted at a token is the next one, which must not be of the prompt.
            .flat_map(|count| (0..window).map(move |at| at >= *count || at + 1 < prompt))
            .collect();
        let data = TensorData::new(skipped.clone(), [batch, window]);
        Self {
            ignored: Tensor::from_data(data, &text.tokens.device()),
            skipped,
            text,
        }
    }

    /// Tokens that are asked for.
    pub fn targets(&self) -> usize {
        self.skipped.iter().filter(|skipped| !**skipped).count()
    }

    /// Bytes of text of the targets.
    pub fn bytes(&self) -> u64 {
        let bytes = self.text.bytes.iter().zip(&self.skipped);
        let asked = bytes.filter(|(_, skipped)| !**skipped);
        asked.map(|(bytes, _)| u64::from(*bytes)).sum()
    }

    /// `true` = padding, `[batch, window]`; `None` where there is none.
    pub fn padding(&self) -> Option<Tensor<2, Bool>> {
        let window = self.text.tokens.dims()[1];
        let whole = self.text.counts.iter().all(|count| *count == window);
        (!whole).then(|| self.text.ignored.clone())
    }
}

impl LanguageConfig {
    pub fn windows(&self) -> TextConfig {
        let data = &self.data;
        TextConfig {
            window: data.window,
            mix_documents: data.mix_documents,
            validation: data.validation,
        }
    }

    /// The text as sequences.
    ///
    /// - tokenizer: the one that the run has; `None` to make it
    pub fn read_text(&self, tokenizer: Option<Tokenizer>) -> Result<LanguageData> {
        let corpus = self.data.source.read()?;
        let (training, validation) = match &self.data.validation_source {
            Some(validation) => (corpus, validation.read()?),
            None => corpus.split(self.data.validation)?,
        };
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => self.make_tokenizer(&training)?,
        };
        let cut = || Text::from_parts(&training, &validation, tokenizer, self.windows());
        let text = meanwhile("cutting the text into tokens", cut)?;
        Ok(LanguageData {
            text,
            training,
            validation,
        })
    }

    fn make_tokenizer(&self, training: &Corpus) -> Result<Tokenizer, TaskError> {
        match &self.data.tokenizer {
            TokenizerSource::Bytes => Ok(Tokenizer::bytes()),
            TokenizerSource::Bpe { vocabulary } => meanwhile("training the tokenizer", || {
                Tokenizer::train_bpe(*vocabulary, training.texts())
            }),
            TokenizerSource::File { path } => Tokenizer::from_file(path),
        }
    }

    /// Refuses a text in which nothing is asked for: its loss would be the mean of nothing.
    pub fn check_text(&self, data: &LanguageData) -> Result<()> {
        for (part, targets) in PARTS.into_iter().zip(data.targets(self)) {
            if targets == 0 {
                bail!(
                    "the {part} text has no token after the first {} of a sequence, which choose its route (architecture.route_on)",
                    self.prompt()
                );
            }
        }
        let text = &data.text;
        for (setting, items) in [
            ("eval_items", self.eval_items),
            ("test_items", self.test_items),
        ] {
            let (batches, size) = (self.eval_batches(data, items), self.eval_batch_size);
            if text.spread_targets_after(batches, size, self.ignored_targets())? == 0 {
                bail!(
                    "{setting}: the {} sequences that are measured have no token after the first {}, which choose the route (architecture.route_on); measure more",
                    self.common()
                        .measured(items, Some(text.validation_windows())),
                    self.prompt()
                );
            }
        }
        Ok(())
    }

    /// How much text there is, in one line.
    pub fn data_summary(&self, data: &LanguageData) -> String {
        let part = |corpus: &Corpus, targets| {
            let (bytes, documents) = (corpus.bytes(), corpus.documents().len());
            format!("{bytes} bytes in {documents} documents, {targets} targets")
        };
        let [training, held_out] = data.targets(self);
        let training = part(&data.training, training);
        let held_out = part(&data.validation, held_out);
        format!("text: training {training}; held out {held_out}")
    }

    /// Batches of an evaluation that asks for so many sequences, all with 0.
    pub(super) fn eval_batches(&self, data: &LanguageData, items: usize) -> usize {
        let windows = data.text.validation_windows();
        self.common().batches(items, Some(windows))
    }

    /// Targets at the start of a sequence that are not asked for. The last token of a prompt predicts one that is.
    fn ignored_targets(&self) -> usize {
        self.prompt().saturating_sub(1)
    }

    /// Tokens at the start of a sequence that are not asked for, since they choose the route of some model.
    pub(crate) fn prompt(&self) -> usize {
        self.architecture.route_on.prompt()
    }
}

const TOKENIZER: &str = "tokenizer.json";
/// The parts of a text.
const PARTS: [&str; 2] = ["training", "held-out"];

/// A part of a text, told from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartProvenance {
    /// [`Corpus::sha256`].
    pub sha256: String,
    pub bytes: usize,
    pub documents: usize,
}

impl PartProvenance {
    fn of(corpus: &Corpus) -> Self {
        Self {
            sha256: corpus.sha256(),
            bytes: corpus.bytes(),
            documents: corpus.documents().len(),
        }
    }
}

impl std::fmt::Display for PartProvenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, documents) = (self.bytes, self.documents);
        write!(f, "{bytes} bytes in {documents} documents with SHA-256 ")?;
        write!(f, "{:.12}…", self.sha256)
    }
}

#[derive(Serialize, Deserialize)]
struct TextProvenance {
    training: PartProvenance,
    validation: PartProvenance,
}

impl Provenance for TextProvenance {
    const FILE: &'static str = "text.json";
    const WHAT: &'static str = "a text";

    fn change(&self, now: &Self) -> Option<String> {
        let had = [&self.training, &self.validation];
        let has = [&now.training, &now.validation];
        let mut parts = PARTS.into_iter().zip(had.into_iter().zip(has));
        let (part, (had, has)) = parts.find(|(_, (had, has))| had != has)?;
        Some(format!(
            "text has changed: the {part} part had {had}, now it has {has}"
        ))
    }
}

/// The tokenizer that a run's folder keeps.
pub fn kept_tokenizer(folder: &Path) -> Result<Tokenizer> {
    Tokenizer::from_file(folder.join(TOKENIZER)).context("the tokenizer of the run")
}
