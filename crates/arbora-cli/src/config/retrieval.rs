//! Runs of retrieval: what commands need of them.

use super::{ModelKind, RunConfig, Task};
use crate::learner::TaskModel;
use crate::problem::Problem;
use crate::run::{Column, RunSettings, TrainingBatches, common_settings};
use crate::task::{self, TaskData};
use anyhow::Result;
use arbora::tasks::TaskError;
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

impl RunSettings for RunConfig {
    type Task = Task;
    type ModelKind = ModelKind;
    type Data = Arc<dyn TaskData>;
    type Model = TaskModel;
    type Batch = Problem;

    const COLUMNS: &'static [Column] = &[
        Column {
            metric: "tokens_percent",
            title: "% tokens",
            digits: 1,
        },
        Column {
            metric: "nodes_read",
            title: "nodes read",
            digits: 1,
        },
    ];

    common_settings!();

    fn absolute(self) -> std::io::Result<Self> {
        Ok(Self {
            data: self.data.absolute()?,
            ..self
        })
    }

    fn load(&self) -> Result<Self::Data> {
        task::load(self)
    }

    fn check_data(&self, data: &Self::Data) -> Result<()> {
        self.check_features(&data.features())?;
        if self.model == ModelKind::OracleRoute && !data.knows_answers() {
            anyhow::bail!("oracle-route: this task does not know which token answers a query");
        }
        Ok(())
    }

    fn fingerprint(&self, data: &Self::Data) -> Result<String> {
        self.architecture_fingerprint(&data.features())
    }

    fn init(&self, data: &Self::Data, device: &Device) -> Result<TaskModel> {
        Ok(self.blank(data, device))
    }

    fn blank(&self, data: &Self::Data, device: &Device) -> TaskModel {
        TaskModel::new(self, &data.features(), device)
    }

    fn training(&self, data: &Self::Data) -> TrainingBatches<Problem> {
        let (data, batch_size) = (data.clone(), self.batch_size);
        Box::new(move |seed, step, device| data.training(seed, step, batch_size, device))
    }

    fn evaluation(
        &self,
        data: &Self::Data,
        items: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        data.evaluation(items, self.eval_batch_size, device)
    }

    fn items(data: &Self::Data) -> &'static str {
        data.items()
    }

    fn count(data: &Self::Data) -> Option<usize> {
        data.count()
    }

    fn answer(model: &TaskModel, batch: &Problem, rng: &mut ChaCha8Rng) -> usize {
        drop(model.predict(batch, rng));
        let [examples, queries, _] = batch.queries.dims();
        examples * queries
    }
}
