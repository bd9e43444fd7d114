//! Who may write into a run folder.

use std::fs;

use arbora_rl::train::{Claim, TrainError};

const LOCK: &str = "lock";

#[test]
fn a_folder_has_one_claim_at_a_time_and_its_end_frees_it() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("above/run");
    let claim = Claim::begin(&run).unwrap();
    let other = claim.clone();
    let in_use = |claim| matches!(claim, Err(TrainError::InUse { path }) if path == run);
    assert!(in_use(Claim::begin(&run)) && in_use(Claim::resume(&run)));
    drop(claim);
    assert!(in_use(Claim::resume(&run)), "a clone is as good");
    drop(other);
    // The file that a dead process leaves is no obstacle.
    assert!(run.join(LOCK).try_exists().unwrap());
    drop(Claim::begin(&run).unwrap());
    assert_eq!(Claim::resume(&run).unwrap().folder(), run);
}

#[test]
fn what_cannot_be_claimed_stays_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    let missing = Claim::resume(&run);
    assert!(matches!(missing, Err(TrainError::Missing { .. })) && !run.try_exists().unwrap());
    fs::write(&run, "a file").unwrap();
    for claim in [Claim::begin(&run), Claim::resume(&run)] {
        assert!(matches!(claim, Err(TrainError::NotAFolder { .. })));
    }
    for left in ["metrics.jsonl", "checkpoints/step-00000001"] {
        let run = place.path().join(left.split('.').next().unwrap());
        fs::create_dir_all(run.join(left)).unwrap();
        let taken = Claim::begin(&run);
        assert!(matches!(taken, Err(TrainError::RunExists { .. })), "{left}");
        assert!(!run.join(LOCK).try_exists().unwrap(), "{left}");
    }
}
