//! Indices as files.
//!
//! A file is safetensors: `key` and `value` `[batch, nodes, heads, head_dim]` in single precision,
//! `lengths` `[batch]` as 64-bit integers, and for a [`StreamingIndex`] `nodes` `[batch, nodes, dim]`. The
//! metadata has the format's version, the trees' shape, a fingerprint of the layer's weights and a
//! checksum of the tensors.

use super::streaming_index::StreamingIndex;
use super::tree_cross_attention::TreeCrossAttention;
use super::tree_index::{ContextWeights, TreeIndex, hexadecimal};
use arbora_tree::{Layout, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The version of the format that this crate writes and reads.
const VERSION: &str = "1";
/// In this order they enter the checksum.
const TENSORS: [&str; 4] = ["key", "value", "lengths", "nodes"];
/// As `TENSORS`, in the metadata.
const ENTRIES: [&str; 5] = ["tokens", "branching", "layout", "weights", "max_tokens"];

/// Why an index cannot be used, saved or loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The index was made with other key and value weights than the layer has now.
    #[error("the index is not of this layer: {reason}; index the trees again")]
    OtherLayer {
        /// What differs.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is no index, or is damaged.
    #[error("{}: not an index, or damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is of a format that this version does not know.
    #[error("{}: index format {found}, expected {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The file has an index and not the trees, which appending needs.
    #[error("{}: saved without its trees, cannot be appended to", path.display())]
    NoTree {
        /// The file.
        path: PathBuf,
    },
}

impl IndexError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            path: path.into(),
            source,
        }
    }
}

impl TreeIndex {
    /// Writes the index to a safetensors file, which loads on every backend. What stood there is
    /// replaced once all is written. Keys and values are stored in single precision.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), IndexError> {
        save(self, None, path.as_ref())
    }

    /// Reads an index that [`save`](Self::save), or [`StreamingIndex::save`], wrote.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, is no index, is of another version, or was made with
    /// other key and value weights than those of `layer`.
    pub fn load(
        path: impl AsRef<Path>,
        layer: &TreeCrossAttention,
        device: &Device,
    ) -> Result<Self, IndexError> {
        Ok(Contents::read(path.as_ref(), layer)?.index(layer, device))
    }
}

impl StreamingIndex {
    /// Writes index and trees to a safetensors file, as [`TreeIndex::save`].
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), IndexError> {
        save(&self.index, Some(&self.tree), path.as_ref())
    }

    /// Reads what [`save`](Self::save) wrote, so that appending can go on.
    ///
    /// # Errors
    /// As [`TreeIndex::load`], and if the file has no trees.
    pub fn load(
        path: impl AsRef<Path>,
        layer: &TreeCrossAttention,
        device: &Device,
    ) -> Result<Self, IndexError> {
        let path = path.as_ref();
        let mut contents = Contents::read(path, layer)?;
        let nodes = contents.nodes.take();
        let nodes = nodes.ok_or_else(|| IndexError::NoTree { path: path.into() })?;
        let lengths = contents.lengths.iter().map(|length| *length as usize);
        let mut tree = TokenTree::from_nodes(
            Tensor::from_data(nodes, device),
            lengths.collect(),
            contents.shape,
        );
        if let Some(max_tokens) = contents.max_tokens {
            tree = tree.with_max_tokens(max_tokens);
        }
        let index = contents.index(layer, device);
        Ok(Self { tree, index })
    }
}

fn save(index: &TreeIndex, tree: Option<&TokenTree>, path: &Path) -> Result<(), IndexError> {
    let lengths = index.lengths().into_data();
    let lengths: Vec<u8> = lengths.iter::<i64>().flat_map(i64::to_le_bytes).collect();
    let single = |data: TensorData| {
        let bytes: Vec<u8> = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        (Dtype::F32, data.shape().to_vec(), bytes)
    };
    let mut tensors = vec![
        single(index.key.clone().into_data()),
        single(index.value.clone().into_data()),
        (Dtype::I64, index.lengths.dims().to_vec(), lengths),
    ];
    tensors.extend(tree.map(|tree| single(tree.nodes().into_data())));
    let shape = index.shape();
    let layout = match shape.layout() {
        Layout::LeftFilled => "left-filled",
        Layout::Published => "published",
    };
    let mut metadata: HashMap<String, String> = [
        ("arbora_tree_index", VERSION.to_string()),
        ("tokens", shape.tokens().to_string()),
        ("branching", shape.branching().to_string()),
        ("layout", layout.to_string()),
        ("weights", index.known_weights().fingerprint()),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into();
    if let Some(max_tokens) = tree.and_then(TokenTree::max_tokens) {
        metadata.insert("max_tokens".into(), max_tokens.to_string());
    }
    let contents = tensors.iter().map(|(.., bytes)| bytes.as_slice());
    let checksum = checksum(&metadata, contents);
    metadata.insert("checksum".into(), checksum);

    let failed = |error: safetensors::SafeTensorError| {
        IndexError::file(path)(io::Error::other(error.to_string()))
    };
    let views = TENSORS
        .iter()
        .zip(&tensors)
        .map(|(name, (dtype, dims, bytes))| {
            Ok((*name, TensorView::new(*dtype, dims.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(failed)?;

    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let written = File::create(&beside)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        // What is left of it is of no use, and the error that counts is the first.
        let _ = fs::remove_file(&beside);
        IndexError::file(path)(error)
    })
}

/// A file's contents, checked.
struct Contents {
    shape: TokenTreeShape,
    key: TensorData,
    value: TensorData,
    lengths: Vec<i64>,
    nodes: Option<TensorData>,
    max_tokens: Option<usize>,
}

impl Contents {
    fn read(path: &Path, layer: &TreeCrossAttention) -> Result<Self, IndexError> {
        let bytes = fs::read(path).map_err(IndexError::file(path))?;
        let damaged = |reason: &dyn ToString| IndexError::Damaged {
            path: path.into(),
            reason: reason.to_string(),
        };
        let other_layer = |reason: &str| IndexError::OtherLayer {
            reason: format!("{}: {reason}", path.display()),
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| {
            let value = metadata.get(name);
            value.ok_or_else(|| damaged(&format!("no entry {name}")))
        };
        let number = |name: &str| {
            let value = entry(name)?;
            let number = value.parse::<usize>();
            number.map_err(|_| damaged(&format!("{name} is {value}")))
        };
        let version = entry("arbora_tree_index")?;
        if version != VERSION {
            return Err(IndexError::Version {
                path: path.into(),
                found: version.clone(),
            });
        }

        let tensors = TENSORS.iter().filter_map(|name| file.tensor(name).ok());
        if *entry("checksum")? != checksum(&metadata, tensors.map(|tensor| tensor.data())) {
            return Err(damaged(&"the checksum differs"));
        }
        let tensor = |name: &str, dtype: Dtype| {
            let view = file.tensor(name).map_err(|error| damaged(&error))?;
            if view.dtype() == dtype {
                Ok(view)
            } else {
                Err(damaged(&format!("{name} is {:?}", view.dtype())))
            }
        };
        let (key, value) = (tensor("key", Dtype::F32)?, tensor("value", Dtype::F32)?);
        let lengths = tensor("lengths", Dtype::I64)?;
        let has_nodes = file.tensor("nodes").is_ok();
        let nodes = has_nodes.then(|| tensor("nodes", Dtype::F32)).transpose()?;

        let &[batch, count, heads, head_dim] = key.shape() else {
            return Err(damaged(&format!("key is {:?}", key.shape())));
        };
        // Before the layer's weights: of another size they differ anyway, and this says how.
        let fits = |name: &str, expected: usize, got: usize| {
            let differs = || other_layer(&format!("{name}: expected {expected}, got {got}"));
            if expected == got {
                Ok(())
            } else {
                Err(differs())
            }
        };
        let width = heads.saturating_mul(head_dim);
        fits("heads", heads, layer.attention.n_heads)?;
        fits("width", width, layer.attention.d_model)?;
        let (tokens, branching) = (number("tokens")?, number("branching")?);
        let layout = match entry("layout")?.as_str() {
            "left-filled" => Layout::LeftFilled,
            "published" => Layout::Published,
            other => return Err(damaged(&format!("layout is {other}"))),
        };
        // A tree has more nodes than tokens; larger numbers would not be countable either.
        if batch == 0 || tokens == 0 || tokens > count || branching < 2 {
            return Err(damaged(&format!(
                "{batch} examples, {tokens} tokens, branching factor {branching}, {count} nodes"
            )));
        }
        let shape = TokenTreeShape::new(tokens, branching, layout);
        let agrees = |name: &str, expected: &[usize], got: &[usize]| {
            let differs = || damaged(&format!("{name}: expected {expected:?}, got {got:?}"));
            if expected == got {
                Ok(())
            } else {
                Err(differs())
            }
        };
        agrees("nodes of key", &[shape.nodes()], &[count])?;
        agrees("value", key.shape(), value.shape())?;
        agrees("lengths", &[batch], lengths.shape())?;
        if let Some(nodes) = &nodes {
            agrees("nodes", &[batch, count, width], nodes.shape())?;
        }
        let (words, _) = lengths.data().as_chunks();
        let lengths: Vec<i64> = words.iter().copied().map(i64::from_le_bytes).collect();
        let real = 0..=tokens as i64;
        if let Some(length) = lengths.iter().find(|length| !real.contains(length)) {
            return Err(damaged(&format!("length {length} of {tokens} tokens")));
        }
        if *entry("weights")? != ContextWeights::of(&layer.attention).fingerprint() {
            return Err(other_layer(
                "its key or value weights are not those of the layer as it is now",
            ));
        }
        let single = |view: TensorView| {
            let (words, _) = view.data().as_chunks();
            let values: Vec<f32> = words.iter().copied().map(f32::from_le_bytes).collect();
            TensorData::new(values, view.shape().to_vec())
        };
        Ok(Self {
            shape,
            key: single(key),
            value: single(value),
            lengths,
            nodes: nodes.map(single),
            max_tokens: (metadata.get("max_tokens"))
                .map(|_| number("max_tokens"))
                .transpose()?,
        })
    }

    fn index(self, layer: &TreeCrossAttention, device: &Device) -> TreeIndex {
        let batch = self.lengths.len();
        let lengths = Tensor::<1, Int>::from_data(TensorData::new(self.lengths, [batch]), device);
        TreeIndex::from_parts(
            &layer.attention,
            self.shape,
            Tensor::from_data(self.key, device),
            Tensor::from_data(self.value, device),
            lengths,
        )
    }
}

/// SHA-256 over what the file says, in hexadecimal.
fn checksum<'a>(
    metadata: &HashMap<String, String>,
    tensors: impl Iterator<Item = &'a [u8]>,
) -> String {
    let mut hash = Sha256::new();
    for name in ENTRIES {
        if let Some(value) = metadata.get(name) {
            hash.update(format!("{name}={value}\n"));
        }
    }
    tensors.for_each(|bytes| hash.update(bytes));
    hexadecimal(hash)
}
