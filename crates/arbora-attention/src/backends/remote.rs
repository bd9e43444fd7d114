//! burn-remote: devices of another process. The operators run as their reference bodies, so that a server
//! needs to know nothing of Arbora: what travels are burn's own operations. With fusion they do not: it sends an operator
//! to the server by name, where nothing handles it, so clients are built without a CubeCL backend.

use crate::ops::TreeAttentionOps;
use burn_remote::RemoteChannel;
use burn_router::BackendRouter;

impl TreeAttentionOps for BackendRouter<RemoteChannel> {}
