//! Which layer an index belongs to, indices as files, and indices shared by threads.

use crate::mean_tree;
use crate::two_pass::layer;
use arbora_attention::{
    GhostNodes, IndexError, Route, StreamingIndex, TreeCrossAttention, TreeCrossAttentionConfig,
    TreeIndex,
};
use arbora_testing::{assert_close, autodiff_device, device, random, values};
use arbora_tree::{Layout, MeanAggregator};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use std::path::Path;

fn index(layer: &TreeCrossAttention) -> TreeIndex {
    layer.index(&mean_tree(
        random([2, 9, 6], 1, &device()),
        &[9, 5],
        2,
        Layout::LeftFilled,
    ))
}

fn context(layer: &TreeCrossAttention, index: &TreeIndex) -> Tensor<3> {
    let queries = random([2, 4, 6], 2, &device());
    layer.search(queries, index, Route::Greedy).context
}

#[test]
fn clones_and_equal_weights_may_use_an_index() {
    let layer = layer(GhostNodes::Masked, &device());
    let index = index(&layer);
    index.check(&layer.clone()).unwrap();
    // Equal weights in other memory: what a loaded model has.
    let mut equal = layer.clone();
    for weight in [
        &mut equal.attention.key.weight,
        &mut equal.attention.value.weight,
    ] {
        *weight = Param::from_tensor(Tensor::from_data(weight.val().into_data(), &device()));
    }
    index.check(&equal).unwrap();
    index.check(&layer).unwrap();
    assert_close(context(&equal, &index), context(&layer, &index), 1e-6, 1e-6);
}

#[test]
fn only_the_weights_of_keys_and_values_bind_an_index() {
    let mut layer = layer(GhostNodes::Masked, &device());
    let index = index(&layer);
    layer.attention.query.weight = Param::from_tensor(random([6, 6], 9, &device()));
    index.check(&layer).unwrap();
    let key = layer.attention.key.weight.clone();
    layer.attention.key.weight = Param::from_tensor(random([6, 6], 9, &device()));
    assert_eq!(
        index.check(&layer).unwrap_err().to_string(),
        "the index is not of this layer: its key weights are not those of the layer as it is now; \
         index the trees again"
    );
    layer.attention.key.weight = key;
    layer.attention.value.weight = Param::from_tensor(random([6, 6], 9, &device()));
    assert!(
        index
            .check(&layer)
            .unwrap_err()
            .to_string()
            .contains("value weights")
    );
}

/// Changes every parameter as burn's optimisers do.
struct Step;

impl ModuleMapper for Step {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let tensor = Tensor::from_inner(tensor.inner() * 0.9).require_grad();
        Param::from_mapped_value(id, tensor, mapper)
    }
}

#[test]
fn a_training_step_makes_an_index_stale() {
    let layer = layer(GhostNodes::Masked, &autodiff_device());
    let tree = mean_tree(
        random([1, 9, 6], 1, &autodiff_device()),
        &[9],
        2,
        Layout::LeftFilled,
    );
    let index = layer.index(&tree);
    index.check(&layer.valid()).unwrap();
    // The parameters keep their identifiers through the step.
    let trained = layer.clone().map(&mut Step);
    let id = |layer: &TreeCrossAttention| layer.attention.key.weight.id;
    assert_eq!(id(&trained), id(&layer));
    let stale = index.check(&trained);
    assert!(matches!(stale, Err(IndexError::OtherLayer { .. })));
    index.check(&layer).unwrap();
}

#[test]
#[should_panic(expected = "tree_cross_attention: the index is not of this layer")]
fn a_search_with_a_stale_index_is_refused() {
    let layer = layer(GhostNodes::Masked, &device());
    let index = index(&layer);
    context(&TreeCrossAttentionConfig::new(6, 2).init(&device()), &index);
}

#[test]
#[should_panic(expected = "the index is not of this layer: heads: expected 2, got 3")]
fn attending_to_the_leaves_of_another_layer_is_refused() {
    let index = index(&layer(GhostNodes::Masked, &device()));
    let other = TreeCrossAttentionConfig::new(6, 3).init(&device());
    other.attend_leaves(random([2, 4, 6], 2, &device()), &index);
}

#[test]
fn threads_find_the_bits_that_one_thread_finds() {
    fn shareable<T: Send + Sync>() {}
    shareable::<TreeIndex>();
    shareable::<StreamingIndex>();

    let layer = layer(GhostNodes::Masked, &device());
    let index = index(&layer);
    let expected = context(&layer, &index).into_data();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (layer, index) = (layer.clone(), &index);
                scope.spawn(move || {
                    let found = (0..4).map(|_| context(&layer, index).into_data());
                    found.collect::<Vec<_>>()
                })
            })
            .collect();
        for thread in threads {
            let found = thread.join().unwrap();
            assert!(found.iter().all(|found| *found == expected));
        }
    });
}

#[test]
fn a_loaded_index_finds_what_the_saved_one_finds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.safetensors");
    let layer = layer(GhostNodes::Masked, &device());
    for layout in [Layout::LeftFilled, Layout::Published] {
        let tree = mean_tree(random([2, 9, 6], 1, &device()), &[9, 5], 4, layout);
        let saved = layer.index(&tree);
        saved.save(&path).unwrap();
        let loaded = TreeIndex::load(&path, &layer, &device()).unwrap();
        assert_eq!(loaded.shape(), saved.shape());
        assert_close(
            context(&layer, &loaded),
            context(&layer, &saved),
            1e-6,
            1e-6,
        );
        let queries = random([2, 4, 6], 2, &device());
        assert_close(
            layer.attend_leaves(queries.clone(), &loaded),
            layer.attend_leaves(queries, &saved),
            1e-6,
            1e-6,
        );
    }
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "nothing else is left beside the file");
    let error = StreamingIndex::load(&path, &layer, &device()).unwrap_err();
    assert!(matches!(error, IndexError::NoTree { .. }));
}

#[test]
fn a_loaded_stream_goes_on_where_the_saved_one_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.safetensors");
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(
        random([2, 4, 6], 1, &device()),
        &[4, 2],
        2,
        Layout::LeftFilled,
    );
    let mut memory = layer.stream(tree).with_max_tokens(6);
    memory.save(&path).unwrap();
    let mut loaded = StreamingIndex::load(&path, &layer, &device()).unwrap();
    let tokens = random([2, 2, 6], 3, &device());
    for memory in [&mut memory, &mut loaded] {
        memory
            .append(&layer, tokens.clone(), &MeanAggregator)
            .unwrap();
        assert!(
            memory
                .append(&layer, tokens.clone(), &MeanAggregator)
                .is_err()
        );
    }
    assert_eq!(values(loaded.tree().nodes()), values(memory.tree().nodes()));
    assert_close(
        context(&layer, loaded.index()),
        context(&layer, memory.index()),
        1e-6,
        1e-6,
    );
    // Without the trees it is an index as any other.
    TreeIndex::load(&path, &layer, &device()).unwrap();
}

#[test]
fn an_index_loads_into_no_other_layer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.safetensors");
    let layer = layer(GhostNodes::Masked, &device());
    index(&layer).save(&path).unwrap();
    let reason = |layer: &TreeCrossAttention| {
        let error = TreeIndex::load(&path, layer, &device()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("index.safetensors: "), "{text}");
        text
    };
    let other = |width, heads| TreeCrossAttentionConfig::new(width, heads).init(&device());
    assert!(reason(&other(6, 3)).contains("heads: expected 2, got 3"));
    assert!(reason(&other(8, 2)).contains("width: expected 6, got 8"));
    assert!(reason(&other(6, 2)).contains("key or value weights"));
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.safetensors");
    let layer = layer(GhostNodes::Masked, &device());
    let tree = mean_tree(random([1, 3, 6], 1, &device()), &[2], 2, Layout::LeftFilled);
    layer.stream(tree).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        StreamingIndex::load(&path, &layer, &device()).map(|_| ())
    };
    load(&whole).unwrap();
    for length in (0..whole.len()).step_by(7) {
        let error = load(&whole[..length]).unwrap_err();
        assert!(
            matches!(error, IndexError::Damaged { .. }),
            "cut at {length}: {error}"
        );
    }
    for at in (0..whole.len()).step_by(5) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0b1000;
        assert!(load(&bytes).is_err(), "byte {at} changed");
    }
    let text = String::from_utf8_lossy(&whole[8..]).into_owned();
    let at = 8 + text.find("\"arbora_tree_index\":\"1\"").unwrap();
    let mut newer = whole.clone();
    newer[at + "\"arbora_tree_index\":\"".len()] = b'2';
    assert!(matches!(
        load(&newer).unwrap_err(),
        IndexError::Version { .. }
    ));
}

#[test]
fn a_missing_file_and_a_missing_folder_are_named() {
    let layer = layer(GhostNodes::Masked, &device());
    let path = Path::new("no-such-folder/index.safetensors");
    for error in [
        index(&layer).save(path).unwrap_err(),
        TreeIndex::load(path, &layer, &device()).unwrap_err(),
    ] {
        assert!(matches!(error, IndexError::File { .. }));
        assert!(error.to_string().starts_with("no-such-folder"));
    }
}
