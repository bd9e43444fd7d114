//! The trainer of models that yield rollouts.
