//! Damage.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Numbers at the ends of what readers count in.
const NUMBERS: &str = "0 -0 -1 1 127 128 255 256 65535 65536 2147483647 2147483648 4294967296 \
    9223372036854775808 18446744073709551615 18446744073709551616 1e308 1e400 -1e-400 0.1";

/// One of them.
fn any_number(rng: &mut ChaCha8Rng) -> &'static str {
    let numbers: Vec<&str> = NUMBERS.split(' ').collect();
    numbers[rng.random_range(0..numbers.len())]
}

/// What text is damaged with, in every format.
const WORDS: [&str; 16] = [
    "\u{feff}",
    "\0",
    "\r\n",
    "\n",
    "\t",
    " ",
    "\"",
    "\\",
    "NaN",
    "null",
    "true",
    "{",
    "]",
    "é",
    "\u{202e}",
    "\u{1f600}",
];

/// Bytes that are almost those of a file.
///
/// - other: another file to take parts of
/// - words: words of the format
pub fn bytes(whole: &[u8], other: &[u8], words: &[&str], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=rng.random_range(0..4) {
        // Most of what a format checks is at its begin.
        let end = if rng.random() {
            bytes.len().min(64)
        } else {
            bytes.len()
        };
        let at = rng.random_range(0..=end);
        let longest = 1 << rng.random_range(0..8);
        let length = rng.random_range(0..=(bytes.len() - at).min(longest));
        let own = || other.len().min(256);
        match rng.random_range(0..10) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 if at < bytes.len() => bytes[at] = [0, 1, 127, 128, 255][rng.random_range(0..5)],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + length)),
            5 => {
                let part = bytes[at..at + length].to_vec();
                let times = rng.random_range(1..4);
                bytes.splice(at..at, part.repeat(times));
            }
            6 => {
                let from = rng.random_range(0..=other.len());
                let to = (from + rng.random_range(0..=own())).min(other.len());
                bytes.splice(at..at + length, other[from..to].iter().copied());
            }
            // A number of one of the widths and orders that files have.
            7 => {
                let number = [0, 1, u64::MAX, 1 << 31, 1 << 63, 1 << 20][rng.random_range(0..6)];
                let wide = if rng.random() {
                    number.to_le_bytes()
                } else {
                    number.to_be_bytes()
                };
                let width = [1, 2, 4, 8][rng.random_range(0..4)];
                let until = (at + width).min(bytes.len());
                bytes.splice(at..until, wide[..width].iter().copied());
            }
            8 => number(&mut bytes, rng),
            _ => {
                let all = WORDS.len() + words.len();
                let word = rng.random_range(0..all);
                let word = WORDS.iter().chain(words).nth(word).expect("it is below");
                bytes.splice(at..at, word.bytes());
            }
        }
    }
    bytes
}

/// Puts another number in the place of one of a text.
fn number(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() {
        return;
    }
    let from = starts[rng.random_range(0..starts.len())];
    let digits = bytes[from..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let to = from + digits.count();
    bytes.splice(from..to, any_number(rng).bytes());
}

/// JSON that is almost that of a file; as it is where that is none.
pub fn json(whole: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(whole) else {
        return whole.to_vec();
    };
    for _ in 0..=rng.random_range(0..3) {
        let (mut paths, mut path) = (Vec::new(), Vec::new());
        collect(&value, &mut path, &mut paths);
        let chosen = |rng: &mut ChaCha8Rng| paths[rng.random_range(0..paths.len())].clone();
        let (one, other) = (chosen(rng), chosen(rng));
        let copy = value.pointer(&other).cloned().unwrap_or_default();
        let Some(place) = value.pointer_mut(&one) else {
            continue;
        };
        match (rng.random_range(0..6), place) {
            (0, place) => *place = copy,
            (1, Value::Object(object)) => {
                let key = object.keys().nth(rng.random_range(0..object.len().max(1)));
                if let Some(key) = key.cloned() {
                    let value = object.remove(&key);
                    if rng.random() {
                        object.insert(key + "x", value.unwrap_or_default());
                    }
                }
            }
            (1, Value::Array(array)) if !array.is_empty() => {
                array.remove(rng.random_range(0..array.len()));
            }
            (2, Value::Array(array)) if !array.is_empty() => {
                let again = array[rng.random_range(0..array.len())].clone();
                array.push(again);
            }
            (_, place) => *place = extreme(rng),
        }
    }
    let text = if rng.random() {
        serde_json::to_vec(&value)
    } else {
        serde_json::to_vec_pretty(&value)
    };
    text.unwrap_or_default()
}

/// The pointers to all values.
fn collect(value: &Value, path: &mut Vec<String>, paths: &mut Vec<String>) {
    paths.push(path.concat());
    let escaped = |key: &str| format!("/{}", key.replace('~', "~0").replace('/', "~1"));
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                path.push(escaped(key));
                collect(value, path, paths);
                path.pop();
            }
        }
        Value::Array(array) => {
            for (at, value) in array.iter().enumerate() {
                path.push(format!("/{at}"));
                collect(value, path, paths);
                path.pop();
            }
        }
        _ => {}
    }
}

fn extreme(rng: &mut ChaCha8Rng) -> Value {
    match rng.random_range(0..12) {
        0 => Value::Null,
        1 => json!(rng.random::<bool>()),
        2 => json!(""),
        3 => json!("\u{feff}a/../\0"),
        4 => json!("x".repeat(1 << rng.random_range(0..12))),
        5 => json!([]),
        6 => Value::Object(Map::new()),
        7 => json!(u64::MAX),
        8 => json!(i64::MIN),
        9 => (0..rng.random_range(1..200)).fold(json!(0), |inner, _| json!([inner])),
        _ => serde_json::from_str(any_number(rng)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn damage_is_almost_the_file_and_the_same_for_the_same_numbers() {
        let whole = br#"{"a": [1, 2, {"b": "c"}], "d": 12}"#;
        let damaged = |seed, damage: &dyn Fn(&mut ChaCha8Rng) -> Vec<u8>| {
            damage(&mut ChaCha8Rng::seed_from_u64(seed))
        };
        let of_bytes = |rng: &mut ChaCha8Rng| bytes(whole, b"other", &["word"], rng);
        let of_json = |rng: &mut ChaCha8Rng| json(whole, rng);
        let mut valid = 0;
        for seed in 0..200 {
            assert_eq!(damaged(seed, &of_bytes), damaged(seed, &of_bytes));
            let text = damaged(seed, &of_json);
            valid += u32::from(serde_json::from_slice::<Value>(&text).is_ok());
        }
        // Nesting goes deeper than a reader follows, at times.
        assert!(valid > 180, "{valid}");
        let unlike = (0..200).filter(|seed| damaged(*seed, &of_bytes) != whole);
        assert!(unlike.count() > 150);
    }
}
