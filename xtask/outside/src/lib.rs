//! Only tests: see the folder beside.
