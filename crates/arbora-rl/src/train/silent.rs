//! Numbers as burn's renderers read them, and loggers and renderers that write nothing.

use super::Measurement;
use super::strategy::{Measured, Scalars};
use burn::train::logger::{EvaluationProgressLogger, MetricLogger, TrainingProgressLogger};
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
    state::{FormatOptions, NumericMetricState},
};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use std::sync::Arc;

/// A number of a step or an evaluation, by name, for burn's renderers.
#[derive(Clone)]
pub(crate) struct NamedNumber {
    name: MetricName,
    state: NumericMetricState,
}

impl NamedNumber {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: Arc::new(name.into()),
            state: NumericMetricState::default(),
        }
    }

    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name.clone()).precision(4)
    }
}

/// The numbers of a step or a batch with their weights, as burn's metrics take them.
type Weighted = Vec<(String, f64, f64)>;

impl Adaptor<Weighted> for Scalars {
    fn adapt(&self) -> Weighted {
        let named = self.named().into_iter();
        named
            .map(|(name, value)| (name, value.into(), 1.0))
            .collect()
    }
}

impl Adaptor<Weighted> for Measured {
    fn adapt(&self) -> Weighted {
        let mean = |m: &Measurement| (m.name.clone(), m.sum / m.weight, m.weight);
        self.0.iter().map(mean).collect()
    }
}

impl Metric for NamedNumber {
    type Input = Weighted;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: !self.name.contains("loss"),
        }
        .into()
    }

    fn update(
        &mut self,
        item: &Weighted,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, burn::tensor::TensorReadError> {
        if let Some((_, value, weight)) = item.iter().find(|(name, ..)| *name == *self.name) {
            self.state
                .update(*value, (*weight).round().max(1.0) as usize);
        }
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, burn::tensor::TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for NamedNumber {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}

/// A metric logger and renderer that does nothing. burn-train would otherwise write folders per
/// epoch into the run and print every step.
pub(crate) struct Silent;

impl MetricLogger for Silent {
    fn log(&mut self, _update: MetricsUpdate, _epoch: usize, _split: &Split) {}

    fn read_numeric(
        &mut self,
        _name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _definition: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}

impl TrainingProgressLogger for Silent {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}

    fn update_epoch(&mut self, _epoch: usize) {}

    fn start_split(&mut self, _split: &str, _total_items: usize) {}

    fn update_split(&mut self, _items_processed: usize) {}

    fn end_split(&mut self) {}

    fn end(&mut self) {}

    fn log_event_training(&mut self, _event: String) {}
}

impl EvaluationProgressLogger for Silent {
    fn start_global_progress(&mut self, _total_tests: usize) {}

    fn start_test(&mut self, _name: &str, _total_items: usize) {}

    fn update_test_progress(&mut self, _items_processed: usize) {}

    fn end_test(&mut self) {}

    fn end_global_progress(&mut self) {}

    fn log_event_evaluation(&mut self, _event: String) {}
}

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _state: MetricState) {}

    fn update_valid(&mut self, _state: MetricState) {}
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, _definition: MetricDefinition) {}
}
