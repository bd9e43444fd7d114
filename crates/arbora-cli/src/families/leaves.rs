//! What attention within leaves left out: shares of queries and keys that met nobody, in per cent.

use arbora::attention::RoutingReport;
use burn::tensor::Tensor;

/// The share of queries without a key in their leaf, which a low cost ratio hides.
pub const UNANSWERED: &str = "queries_without_key_percent";
/// The share of keys without a query in their leaf.
pub const UNREAD: &str = "keys_without_query_percent";

/// Both shares by name, the means over layers, examples and trees.
pub fn alone(reports: &[&RoutingReport]) -> [(&'static str, f64); 2] {
    let mean = |share: fn(&RoutingReport) -> &Tensor<2>| {
        let shares = reports.iter().map(|report| mean_of_share(share(report)));
        100.0 * shares.sum::<f64>() / reports.len() as f64
    };
    [
        (UNANSWERED, mean(|report| &report.queries_without_key)),
        (UNREAD, mean(|report| &report.keys_without_query)),
    ]
}

/// The mean of a share over examples and trees.
pub fn mean_of_share(share: &Tensor<2>) -> f64 {
    f64::from(share.clone().mean().into_scalar::<f32>())
}
