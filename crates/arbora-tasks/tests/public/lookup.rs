//! Recall and needles.

use std::collections::BTreeMap;

use arbora_tasks::recall::{Lookup, LookupBatch, NeedleConfig, RecallConfig, Stage};
use burn::tensor::{Device, Int, Tensor};
use proptest::prelude::*;

/// Most tokens of a sequence, and most symbols of each sort.
const MOST: usize = 1 << 20;

/// Settings of both tasks: recall where there are no fillers, needles otherwise.
struct Settings {
    length: usize,
    pairs: usize,
    keys: usize,
    values: usize,
    fillers: usize,
    queries: usize,
}

impl Settings {
    fn lookup(&self) -> Lookup {
        let curriculum = Vec::new();
        if self.fillers == 0 {
            return Lookup::recall(RecallConfig {
                length: self.length,
                pairs: self.pairs,
                keys: self.keys,
                values: self.values,
                curriculum,
            })
            .unwrap();
        }
        Lookup::needle(NeedleConfig {
            length: self.length,
            needles: self.pairs,
            keys: self.keys,
            values: self.values,
            fillers: self.fillers,
            queries: self.queries,
            curriculum,
        })
        .unwrap()
    }

    /// Every query's key came once, and with the value that answers it. Returns where the pairs of each
    /// example lie.
    fn assert_consistent(&self, batch: LookupBatch) -> Vec<Vec<usize>> {
        let numbers = |tensor: Tensor<2, Int>| tensor.into_data().iter::<i64>().collect::<Vec<_>>();
        let (tokens, classes) = (numbers(batch.tokens), numbers(batch.classes));
        let examples = tokens.chunks(self.length).zip(classes.chunks(self.length));
        examples
            .map(|(tokens, classes)| self.pairs_of(tokens, classes))
            .collect()
    }

    fn pairs_of(&self, tokens: &[i64], classes: &[i64]) -> Vec<usize> {
        let body = self.length - self.queries;
        let (keys, values) = (self.keys as i64, self.values as i64);
        let vocabulary = keys + values + self.fillers as i64;
        let mut shown = BTreeMap::new();
        let mut places = Vec::new();
        for place in 0..body {
            let token = tokens[place];
            if token < keys {
                let value = tokens[place + 1] - keys;
                assert!((0..values).contains(&value), "a key without a value");
                assert_eq!(shown.insert(token, value), None, "a key came twice");
                places.push(place);
            }
            assert!((0..vocabulary).contains(&token));
        }
        assert_eq!(shown.len(), self.pairs);
        for (key, answer) in tokens[body..].iter().zip(&classes[body..]) {
            assert_eq!(shown.get(key), Some(answer));
        }
        places
    }
}

proptest! {
    #[test]
    fn every_query_asks_for_a_key_that_came_once_with_its_value(
        seed: u64,
        pairs in 1usize..20,
        more in 0usize..9,
        values in 2usize..9,
        fillers in 0usize..4,
        queries in 1usize..9,
    ) {
        let more = if fillers == 0 { 0 } else { more };
        let settings = Settings {
            length: 2 * pairs + more + queries,
            pairs,
            keys: pairs + more,
            values,
            fillers,
            queries,
        };
        let batch = settings.lookup().batch(seed, 0, 1, &Device::flex()).unwrap();
        let places = settings.assert_consistent(batch);
        if fillers == 0 {
            let front: Vec<usize> = (0..pairs).map(|pair| 2 * pair).collect();
            prop_assert_eq!(places, [front]);
        }
    }
}

#[test]
fn needles_lie_everywhere_about_equally_often() {
    let settings = Settings {
        length: 9,
        pairs: 2,
        keys: 4,
        values: 2,
        fillers: 2,
        queries: 2,
    };
    // The ten ways to lay two pairs into seven places: 300 of each are expected, deviation 16.
    let mut counts = BTreeMap::new();
    let batch = settings.lookup().batch(0, 0, 3000, &Device::flex());
    for places in settings.assert_consistent(batch.unwrap()) {
        *counts.entry(places).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 10, "{counts:?}");
    assert!(
        counts.values().all(|count| (220..380).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn the_defaults_are_as_hard_as_the_task_is_meant_to_be() {
    RecallConfig::default().check().unwrap();
    NeedleConfig::default().check().unwrap();
    let recall = Lookup::recall(RecallConfig::default()).unwrap();
    assert_eq!((recall.vocabulary(), recall.classes()), (256, 64));
    let needle = Lookup::needle(NeedleConfig::default()).unwrap();
    assert_eq!((needle.vocabulary(), needle.classes()), (256, 64));
}

#[test]
fn settings_that_leave_no_room_or_repeat_keys_are_refused() {
    let recall = |change: fn(&mut RecallConfig)| {
        let mut config = RecallConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(recall(|c| c.length = 128).starts_with("length: expected 129 to 1048576"));
    assert!(recall(|c| c.length = MOST + 1).starts_with("length: expected 129 to 1048576"));
    assert!(recall(|c| c.pairs = 0).starts_with("pairs: expected 1 to"));
    assert!(recall(|c| c.pairs = usize::MAX).starts_with("pairs: expected 1 to"));
    assert!(recall(|c| c.keys = 63).starts_with("keys: expected 64 to"));
    assert!(recall(|c| c.values = 1).starts_with("values: expected 2 to"));
    let stage = |length, steps| {
        let config = RecallConfig::default().with_curriculum(vec![Stage { length, steps }]);
        let refused = config.check().map_err(|error| error.to_string());
        refused.err().unwrap_or_default()
    };
    assert!(stage(2, 5).starts_with("curriculum: expected lengths from 3 to 512"));
    assert!(stage(513, 5).ends_with("got 513"));
    assert!(stage(64, 0).contains("at least 1 step in every stage"));
    assert_eq!(stage(64, 1), "");
    let needle = |change: fn(&mut NeedleConfig)| {
        let mut config = NeedleConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(needle(|c| c.length = 31).starts_with("length: expected 32 to"));
    assert!(needle(|c| c.needles = 0).starts_with("needles: expected 1 to"));
    assert!(needle(|c| c.fillers = 0).starts_with("fillers: expected 1 to"));
    assert!(needle(|c| c.queries = 0).starts_with("queries: expected 1 to"));
}
