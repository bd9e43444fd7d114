//! Sets of time series, and their classification by windows.
//!
//! - [`SeriesSet`]: series and classes in memory, from `.ts` files, from values or from the sample
//! - [`SeriesClassification`]: standardised windows with the class of the series they are cut from
//! - `sample` (feature `sample`): the bundled BasicMotions and its licence

mod classification;
#[cfg(feature = "sample")]
pub mod sample;
mod set;
mod ts;

pub use classification::{SeriesBatch, SeriesClassification, SeriesConfig};
pub use set::{Series, SeriesSet};
