//! Retrieval: queries are answered from a context.

mod config;
pub mod data;
mod model;
pub mod report;

pub use config::{RetrievalConfig, RetrievalModelKind, RetrievalTask};
pub use model::{RetrievalModel, Search, Strategy};

use super::curves::Curve;
use super::{About, Column, Family, Finished, Kept, TrainingBatches, column, common};
use anyhow::{Result, bail};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use data::{Problem, TaskData};
use std::path::Path;
use std::sync::Arc;

impl Family for RetrievalConfig {
    type ModelKind = RetrievalModelKind;
    type Data = Arc<TaskData>;
    type Batch = Problem;
    type Model = RetrievalModel;

    const NAME: &'static str = "retrieval";
    const VERSION: u32 = 1;
    const PRESETS: &'static str = include_str!("../../../presets/retrieval.json");
    const COLUMNS: &'static [Column] = &[
        column("tokens_percent", "% tokens", 1),
        column("nodes_read", "nodes read", 1),
    ];
    const LIVE: &'static [&'static str] = &[
        "loss",
        "log_likelihood",
        "accuracy",
        "tokens_percent",
        "entropy",
        "reward",
    ];

    common!();

    fn checked(mut self) -> Result<Self> {
        self.check()?;
        self.data = self.data.absolute()?;
        Ok(self)
    }

    fn load(&self, _run: Option<&Path>) -> Result<Self::Data> {
        data::load(self).map(Arc::new)
    }

    fn about(&self, data: &Self::Data) -> Result<About> {
        self.check_features(&data.features)?;
        if self.model == RetrievalModelKind::OracleRoute && !data.knows_answers {
            bail!("oracle-route: this task does not know which token answers a query");
        }
        Ok(About {
            fingerprint: self.architecture_fingerprint(&data.features)?,
            digest: data.facts.as_ref().map(|facts| facts.sha256.clone()),
            items: data.items,
            count: data.count,
            data_summary: data.data_summary.clone(),
            kept: data.facts.iter().map(Kept::facts).collect::<Result<_>>()?,
            ..About::default()
        })
    }

    fn untrained(&self, data: &Self::Data, device: &Device) -> RetrievalModel {
        RetrievalModel::new(self, &data.features, device)
    }

    fn training(&self, data: &Self::Data) -> TrainingBatches<Problem> {
        let (data, batch_size) = (data.clone(), self.batch_size);
        Box::new(move |seed, step, device| (data.training)(seed, step, batch_size, device))
    }

    fn evaluation(
        &self,
        data: &Self::Data,
        items: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        let batches = self.common().batches(items, data.count);
        (data.evaluation)(batches, self.eval_batch_size, device)
    }

    fn curves(&self, has_classes: bool) -> Vec<Curve> {
        report::curves_shown(self.reward, has_classes)
    }

    fn draw(
        runs: &[Finished<'_, Self>],
        data: &Self::Data,
        device: &Device,
        folder: &Path,
    ) -> Result<()> {
        report::draw(runs, data, device, folder)
    }
}
