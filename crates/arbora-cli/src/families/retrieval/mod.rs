//! Retrieval: queries are answered from a context.

mod config;
pub mod data;
mod model;
pub mod report;

pub use config::{RetrievalConfig, RetrievalModelKind, RetrievalTask};
pub use model::{RetrievalModel, Search, Strategy, Walk};

use super::{About, Column, Family, FamilyModel, Finished, Preset, TrainingBatches};
use super::{column, common, named};
use anyhow::{Result, bail};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use data::{Problem, TaskData};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

impl Family for RetrievalConfig {
    type Task = RetrievalTask;
    type ModelKind = RetrievalModelKind;
    type Data = Arc<TaskData>;
    type Batch = Problem;
    type Model = RetrievalModel;

    const NAME: &'static str = "retrieval";
    const VERSION: u32 = 1;
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

    fn preset(task: &str, preset: Preset, from: Option<&Path>) -> Result<Self> {
        if from.is_some() {
            bail!("--from: {task} starts from fresh weights");
        }
        Ok(Self::of_task(named(task)?, preset))
    }

    common!();

    fn checked(mut self) -> Result<Self> {
        self.check()?;
        self.data = self.data.absolute()?;
        Ok(self)
    }

    fn load(&self, _run: Option<&Path>) -> Result<Self::Data> {
        let data = data::load(self)?;
        self.check_features(&data.features)?;
        Ok(Arc::new(data))
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
            static_metrics: BTreeMap::new(),
            data_summary: data.data_summary.clone(),
            kept: data.kept()?,
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
        (data.evaluation)(items, self.eval_batch_size, device)
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

impl FamilyModel for RetrievalModel {
    fn timed_forward(&self, batch: &Problem, rng: &mut ChaCha8Rng) -> usize {
        drop(self.predict(batch, rng));
        let [examples, queries, _] = batch.queries.dims();
        examples * queries
    }

    fn walking_at_random(self) -> Result<Self> {
        match self.retreever() {
            Some(_) => Ok(self.with_walk(Walk::Random)),
            None => bail!("walks no tree"),
        }
    }
}
