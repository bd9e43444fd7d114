//! burn-remote: devices of another process. The operators run as their reference bodies, so that a server
//! needs to know nothing of Arbora: what travels are burn's own operations.

use crate::ops::TreeAttentionOps;
use burn_remote::RemoteChannel;
use burn_router::BackendRouter;

impl TreeAttentionOps for BackendRouter<RemoteChannel> {}
