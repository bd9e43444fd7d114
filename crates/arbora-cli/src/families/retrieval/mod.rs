//! Retrieval: queries are answered from a context.

mod config;
pub mod data;
mod model;
pub mod report;

pub use config::{RetrievalConfig, RetrievalModelKind, RetrievalTask};
pub use model::{RetrievalModel, Search, Strategy};

use super::curves::{self, Curve, PERCENT};
use super::{About, Column, Family, Finished, Kept, TrainingBatches, column, common};
use crate::picture::completion::{self, CompletionRow};
use anyhow::{Result, bail};
use arbora::models::RewardKind;
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
            digest: data
                .provenance
                .as_ref()
                .map(|provenance| provenance.sha256.clone()),
            items: data.items,
            count: data.count,
            data_summary: data.data_summary.clone(),
            kept: data
                .provenance
                .iter()
                .map(Kept::provenance)
                .collect::<Result<_>>()?,
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
        let reward = match self.reward {
            RewardKind::Published if has_classes => ("% of answers right", 100.0),
            RewardKind::Accuracy => ("% of answers right", 100.0),
            RewardKind::Published | RewardKind::LogLikelihood => ("nats per query", 1.0),
            RewardKind::NegativeMse => ("negative squared error", 1.0),
        };
        let nats = ("nats per query", 1.0);
        let per_decision = ("nats per decision", 1.0);
        let tokens = "Share of tokens selected";
        vec![
            Curve("Training loss", ("nats", 1.0), "train", "loss"),
            Curve(tokens, ("%", 1.0), "train", "tokens_percent"),
            Curve("Log-likelihood, training", nats, "train", "log_likelihood"),
            Curve("Log-likelihood, held out", nats, "valid", "log_likelihood"),
            Curve("Accuracy, training", PERCENT, "train", "accuracy"),
            Curve("Accuracy, held out", PERCENT, "valid", "accuracy"),
            Curve("Entropy of the policy", per_decision, "train", "entropy"),
            Curve("Reward", reward, "train", "reward"),
        ]
    }

    /// Also completed images, in `completion.png` and `completion.svg`.
    fn draw(
        runs: &[Finished<'_, Self>],
        data: &Self::Data,
        device: &Device,
        folder: &Path,
    ) -> Result<()> {
        curves::draw(&curves::panels(runs)?, folder)?;
        if let (Some(images), Some(first)) = (&data.images, runs.first()) {
            let models: Vec<&RetrievalModel> = runs.iter().filter_map(|run| run.model).collect();
            let context = report::picture_context(first.config);
            let shown = 0..images.test().count.min(report::PICTURE_ROWS);
            let rows =
                shown.map(|image| report::completed(images, &models, image, context, device));
            let rows: Vec<CompletionRow> = rows.collect::<Result<_, _>>()?;
            let names: Vec<&str> = runs.iter().map(|run| run.name).collect();
            completion::draw(&rows, &names, &folder.join("completion"))?;
        }
        Ok(())
    }
}
