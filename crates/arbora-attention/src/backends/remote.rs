//! Devices of another process. The operators run as their reference bodies, so that a server needs to know
//! nothing of Arbora: what travels are burn's own operations.
//!
//! With fusion, `Remote` is `Fusion` over a router. That router must have no implementation of its own: the one
//! that is generated for `Fusion` would then apply, and send operators by name to a server that knows none.

use crate::ops::{FeedForwardOps, TreeAttentionOps};
use burn::backend::Remote;

impl TreeAttentionOps for Remote {}

impl FeedForwardOps for Remote {}
