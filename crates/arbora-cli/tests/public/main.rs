//! What the library has for its own tests and benchmarks, and the files of the experiments.

mod experiments;
mod pictures;
