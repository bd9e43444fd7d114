//! What a command line without the feature `remote` says of devices of other processes.
#![cfg(not(feature = "remote"))]

mod common;

use common::Place;

#[test]
fn every_command_that_needs_another_process_names_the_feature() {
    let place = Place::new();
    let calls: [&[&str]; 3] = [
        &["serve"],
        &["train", "images", "--backend", "ws://127.0.0.1:3000"],
        &["train", "lm", "--place", "0=ws://127.0.0.1:3000"],
    ];
    for call in calls {
        let message = place.refuse(call);
        assert!(
            message.ends_with("build with --features remote"),
            "{message}"
        );
    }
}
