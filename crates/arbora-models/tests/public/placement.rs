//! Names of nodes.

use arbora_models::tree_coder::{NodeName, PlacementError};
use std::str::FromStr;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

#[test]
fn names_are_paths_of_child_numbers() {
    assert_eq!(name("root").path(), [0; 0]);
    assert_eq!(name("2.0.11").path(), [2, 0, 11]);
    for text in ["root", "0", "1.0", "2.0.11"] {
        assert_eq!(name(text).to_string(), text);
    }
    let huge = "9".repeat(20);
    for text in [
        "", "0.", ".0", "0..1", "-1", "+1", "Root", "0.a", "0 .1", &huge,
    ] {
        let error = NodeName::from_str(text).unwrap_err();
        assert!(matches!(error, PlacementError::Name { .. }), "{text}");
    }
}
