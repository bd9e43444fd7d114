//! Weights and indices.

use super::Reader;
use anyhow::Result;
use arbora::attention::{Route, StreamingIndex, TreeCrossAttentionConfig, TreeIndex};
use arbora::models::store::{load_weights, save_weights};
use arbora::tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::Path;

pub fn device() -> Result<Device> {
    Ok(arbora_cli::backend::open(Some("flex"))?.1)
}

fn weights(made: &Path, name: &str, words: &'static [&'static str]) -> Result<Reader> {
    let device = device()?;
    let model = LinearConfig::new(3, 4).init(&device);
    let path = made.join(name);
    save_weights(&model, &path)?;
    let file = (name.to_owned(), fs::read(path)?);
    Ok(Reader::new([file], words, move |folder, name| {
        let model = LinearConfig::new(3, 4).init(&device);
        load_weights(model, folder.join(name))?;
        Ok(())
    }))
}

pub fn burnpack(made: &Path) -> Result<Reader> {
    let words = &["dtype", "shape", "data_offsets", "param_id"];
    weights(made, "weights.bpk", words)
}

pub fn safetensors(made: &Path) -> Result<Reader> {
    let words = &[
        "\"dtype\"",
        "\"shape\"",
        "\"data_offsets\"",
        "\"BF16\"",
        "__metadata__",
        "[0,0]",
    ];
    weights(made, "weights.safetensors", words)
}

/// An index alone, and one that trees can be appended to.
pub fn index(made: &Path) -> Result<Reader> {
    let device = device()?;
    let layer = TreeCrossAttentionConfig::new(4, 2).init(&device);
    let tokens = Tensor::<3>::ones([2, 3, 4], &device);
    let shape = TokenTreeShape::new(3, 2, Layout::LeftFilled);
    let order = TokenOrder::Given.permutation(&tokens, None, &shape);
    let tree = TokenTree::build(tokens, None, order, shape, &MeanAggregator);
    layer.index(&tree).save(made.join("index"))?;
    layer
        .stream(tree.with_max_tokens(9))
        .save(made.join("stream"))?;
    let files = ["index", "stream"].map(|name| Ok((name, fs::read(made.join(name))?)));
    let files = files.into_iter().collect::<Result<Vec<_>>>()?;
    let words = &[
        "\"tokens\"",
        "\"branching\"",
        "\"layout\"",
        "\"published\"",
        "\"max_tokens\"",
        "\"lengths\"",
        "\"I64\"",
        "__metadata__",
        "[0,0]",
    ];
    let mut reader = Reader::new(files, words, move |folder, name| {
        let path = folder.join(name);
        let index = match name {
            "stream" => {
                let mut stream = StreamingIndex::load(&path, &layer, &device)?;
                let more = Tensor::ones([stream.tree().nodes().dims()[0], 2, 4], &device);
                // More than there is room for is refused by the numbers, which name no file.
                let _ = stream.append(&layer, more, &MeanAggregator);
                stream.index().clone()
            }
            _ => TreeIndex::load(&path, &layer, &device)?,
        };
        let [batch] = index.lengths().dims();
        let queries = Tensor::<3>::ones([batch, 1, 4], &device);
        layer.search(queries, &index, Route::Greedy);
        Ok(())
    });
    reader.mend = Some(|_, name, bytes| Ok(vec![(name.into(), mend(&bytes).unwrap_or(bytes))]));
    Ok(reader)
}

/// An index with a checksum that agrees; none where it is no safetensors file any more.
fn mend(bytes: &[u8]) -> Option<Vec<u8>> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let (length, header) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    let mut hash = Sha256::new();
    for name in ["tokens", "branching", "layout", "weights", "max_tokens"] {
        if let Some(value) = metadata.get(name) {
            hash.update(format!("{name}={value}\n"));
        }
    }
    for name in ["key", "value", "lengths", "nodes"] {
        if let Ok(tensor) = file.tensor(name) {
            hash.update(tensor.data());
        }
    }
    let sum = format!("{:x}", hash.finalize());
    let old = metadata
        .get("checksum")
        .filter(|old| old.len() == sum.len())?;
    let text = std::str::from_utf8(bytes.get(8..8 + length)?).ok()?;
    let mended = text.replace(old.as_str(), &sum);
    Some([&bytes[..8], mended.as_bytes(), &bytes[8 + length..]].concat())
}
