//! What burn-train sees: the model as a learner, the sources as data loaders, and the loop as a
//! learning strategy.

use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress as Position};
use burn::data::dataset::DatasetError;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::lr_scheduler::DynLrScheduler;
use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use burn::train::{
    EventProcessorTraining, InferenceStep, Interrupter, ItemLazy, Learner, LearnerEvent,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainOutput,
    TrainStep, TrainingComponents, TrainingItem, ValidLoader,
};

use super::checkpoint::{self, CheckpointState};
use super::claim::Claim;
use super::log::Log;
use super::measure::{self, Totals};
use super::{
    Decisions, EvaluationReport, Measurement, ParameterGroup, Progress, StepReport, TrainError,
    TrainableModel, TrainerConfig,
};
use crate::seed::{self, Purpose};
use crate::{PolicyGradient, clip_global_norm, global_norm};

/// What the steps of a run share. burn calls a step with `&self`, hence the lock.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) seed: u64,
    pub(crate) lambda_rl: f64,
    pub(crate) policy_gradient: Mutex<PolicyGradient>,
}

impl Shared {
    fn estimator(&self) -> MutexGuard<'_, PolicyGradient> {
        // A panic inside the estimator ends the run; its state is not used again.
        let estimator = self.policy_gradient.lock();
        estimator.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`TrainableModel`] as a burn learner.
#[derive(Module, Debug)]
pub(crate) struct Learned<M: TrainableModel> {
    pub(crate) model: M,
    #[module(skip)]
    pub(crate) shared: Arc<Shared>,
}

/// A batch and its number, the first being 0: the step of a training batch, the index of an evaluation batch.
pub(crate) struct Numbered<B> {
    number: u64,
    batch: B,
}

/// Named numbers, on the device until they are read.
pub(crate) struct Scalars {
    names: Vec<String>,
    pending: Option<Tensor<1>>,
    read: Vec<f32>,
}

impl Scalars {
    fn read(&mut self) -> Result<(), burn::tensor::ExecutionError> {
        if let Some(pending) = self.pending.take() {
            self.read = pending.try_into_data()?.iter::<f32>().collect();
        }
        Ok(())
    }

    pub(super) fn named(&self) -> Vec<(String, f32)> {
        let read = self.read.iter().copied();
        self.names.iter().cloned().zip(read).collect()
    }
}

impl ItemLazy for Scalars {
    fn sync(mut self) -> Result<Self, burn::tensor::ExecutionError> {
        self.read()?;
        Ok(self)
    }
}

/// The measurements of one evaluation batch.
pub(crate) struct Measured(pub(super) Vec<Measurement>);

impl ItemLazy for Measured {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        Ok(self)
    }
}

impl<M: TrainableModel> TrainStep for Learned<M> {
    type Input = Numbered<M::Batch>;
    type Output = Scalars;

    fn step(&self, item: Self::Input) -> TrainOutput<Scalars> {
        let mut rng = seed::rng(self.shared.seed, Purpose::Policy, item.number);
        let found = self.model.training_step(item.batch, &mut rng);
        let mut loss = found.task_loss;
        let mut named = vec![("task_loss".to_string(), loss.clone())];
        if let Some(decisions) = found.decisions {
            let Decisions {
                rollout,
                reward,
                greedy_reward,
            } = decisions;
            let output = self.shared.estimator().loss(rollout, reward, greedy_reward);
            named.push(("policy_loss".into(), output.loss.clone()));
            named.push(("reward".into(), output.reward));
            named.push(("entropy".into(), output.entropy));
            loss = loss + output.loss * self.shared.lambda_rl;
        }
        named.insert(0, ("loss".into(), loss.clone()));
        named.extend(found.metrics);

        let grads = GradientsParams::from_grads(loss.backward(), self);
        let mut names = Vec::with_capacity(named.len());
        let mut values = Vec::with_capacity(named.len());
        for (name, value) in named {
            assert_eq!(
                value.dims(),
                [1],
                "TrainableModel::training_step: {name}: axis 0: expected 1, got {}",
                value.dims()[0]
            );
            names.push(name);
            values.push(value.without_autodiff());
        }
        let item = Scalars {
            names,
            pending: Some(Tensor::cat(values, 0)),
            read: Vec::new(),
        };
        TrainOutput { grads, item }
    }
}

impl<M: TrainableModel> InferenceStep for Learned<M> {
    type Input = Numbered<M::Batch>;
    type Output = Measured;

    fn step(&self, item: Self::Input) -> Measured {
        let mut rng = measure::generator(self.shared.seed, item.number);
        Measured(self.model.evaluate(item.batch, &mut rng))
    }
}

type Make<B> = dyn Fn(u64, &Device) -> Result<B, DatasetError> + Send + Sync;

/// A source of numbered batches as a data loader over a range of them: the steps that are left, or the batches of an
/// evaluation.
pub(crate) struct Batches<B> {
    make: Arc<Make<B>>,
    device: Device,
    range: Range<u64>,
}

impl<B> Batches<B> {
    /// - make: the batch of a number on a device
    pub(crate) fn new<E: std::error::Error + Send + Sync + 'static>(
        device: Device,
        range: Range<u64>,
        make: impl Fn(u64, &Device) -> Result<B, E> + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Arc::new(move |number, device| make(number, device).map_err(DatasetError::new)),
            device,
            range,
        }
    }
}

impl<B: 'static> DataLoader<Numbered<B>> for Batches<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Numbered<B>> + 'a> {
        Box::new(BatchIterator {
            next: self.range.start,
            batches: self,
        })
    }

    fn num_items(&self) -> usize {
        self.range.end.saturating_sub(self.range.start) as usize
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Numbered<B>>> {
        Arc::new(Self {
            make: self.make.clone(),
            device: device.clone(),
            range: self.range.clone(),
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Numbered<B>>> {
        let bounded = |at: usize| (self.range.start + at as u64).min(self.range.end);
        Arc::new(Self {
            make: self.make.clone(),
            device: self.device.clone(),
            range: bounded(start)..bounded(end),
        })
    }
}

struct BatchIterator<'a, B> {
    next: u64,
    batches: &'a Batches<B>,
}

impl<B> Iterator for BatchIterator<'_, B> {
    type Item = Result<Numbered<B>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let number = self.next;
        self.batches.range.contains(&number).then(|| {
            self.next += 1;
            let batch = (self.batches.make)(number, &self.batches.device)?;
            Ok(Numbered { number, batch })
        })
    }
}

impl<B: 'static> DataLoaderIterator<Numbered<B>> for BatchIterator<'_, B> {
    fn progress(&self) -> Position {
        let done = (self.next - self.batches.range.start) as usize;
        Position::new(done, self.batches.num_items(), Some("batches".into()))
    }
}

/// Everything of a run that the loop changes.
pub(crate) struct Session {
    pub(crate) config: TrainerConfig,
    pub(crate) run: PathBuf,
    pub(crate) claim: Claim,
    pub(crate) fingerprint: String,
    /// Steps done.
    pub(crate) step: u64,
    pub(crate) stop_after: Option<u64>,
    pub(crate) optimizer: ModuleOptimizer,
    pub(crate) groups: Vec<ParameterGroup>,
    pub(crate) metrics: Log,
    pub(crate) timing: Log,
    pub(crate) progress: Box<dyn Progress>,
    pub(crate) device: Device,
    pub(crate) last_evaluation: Option<EvaluationReport>,
    /// How the loop ended, beside burn's own result.
    pub(crate) result: Option<Result<(), TrainError>>,
}

/// The loop over steps in place of burn's loop over epochs.
pub(crate) struct Steps(pub(crate) Rc<RefCell<Session>>);

impl<M: TrainableModel> SupervisedLearningStrategy<Learned<M>> for Steps {
    fn fit(
        &self,
        components: TrainingComponents<Learned<M>>,
        learner: Learner<Learned<M>>,
        train: TrainLoader<Learned<M>>,
        valid: ValidLoader<Learned<M>>,
        _starting_epoch: usize,
    ) -> (Learned<M>, SupervisedTrainingEventProcessor<Learned<M>>) {
        let mut model = learner.model();
        let mut events = components.event_processor;
        let mut session = self.0.borrow_mut();
        let train = train.to_device(&session.device);
        let valid = valid.to_device(&session.device.clone().without_autodiff());
        let result = session.run(
            &mut model,
            train,
            valid,
            &mut events,
            &components.interrupter,
        );
        session.result = Some(result);
        drop(session);
        (model, events)
    }
}

impl Session {
    /// The learning rates of a step whose general one is `rate`.
    fn rates(&self, rate: f64) -> ModuleLearningRate {
        let general = ModuleLrScheduler::new(ConstantLr::from(rate));
        let mut rates = self.groups.iter().fold(general, |rates, group| {
            let rate = DynLrScheduler::from(ConstantLr::from(rate * group.rate));
            rates.with_group(group.parameters.clone(), rate)
        });
        rates.step()
    }

    fn run<M: TrainableModel>(
        &mut self,
        model: &mut Learned<M>,
        train: TrainLoader<Learned<M>>,
        valid: ValidLoader<Learned<M>>,
        events: &mut SupervisedTrainingEventProcessor<Learned<M>>,
        interrupter: &Interrupter,
    ) -> Result<(), TrainError> {
        let steps = self.config.steps;
        let schedule = self.config.schedule();
        interrupter.fail_on_error(events.process_train(LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items: train.num_items(),
        }));
        let mut batches = train.iter();
        while self.step < steps && !self.is_stopped(interrupter)? {
            let Some(item) = batches.next() else { break };
            let started = Instant::now();
            let item = item.map_err(|source| TrainError::Source {
                batch: format!("the training batch of step {}", self.step + 1),
                source: Box::new(source),
            })?;
            let TrainOutput { grads, mut item } = TrainStep::step(&*model, item);
            item.read()
                .map_err(|error| TrainError::Device(error.to_string()))?;
            let step = self.step + 1;
            let mut metrics = item.named();
            refuse_non_finite(step, "loss", metrics[0].1)?;

            let (gradients, norm) = match self.config.clip_norm {
                Some(bound) => clip_global_norm(grads, &model.model, bound),
                None => {
                    let norm = global_norm(&grads, &model.model);
                    (grads, norm)
                }
            };
            refuse_non_finite(step, "the gradient norm", norm)?;
            metrics.push(("gradient_norm".into(), norm));
            let rate = schedule.rate(self.step);
            let rates = self.rates(rate);
            model.model = self.optimizer.step(rates, model.model.clone(), gradients);
            self.step = step;

            let seconds = started.elapsed().as_secs_f64();
            self.metrics.append(step, "train", &metrics, Some(rate))?;
            self.log_seconds("train", seconds)?;
            let lr = Some(ModuleLearningRate::from(rate));
            let event = TrainingItem::new(item, batches.progress(), Some(step as usize), lr);
            interrupter.fail_on_error(events.process_train(LearnerEvent::ProcessedItem(event)));
            self.progress.on_step(&StepReport {
                step,
                steps,
                metrics,
                learning_rate: rate,
                seconds,
            });

            let last = step == steps;
            if (last || is_due(step, self.config.eval_every)) && valid.num_items() > 0 {
                self.evaluate(model, &valid, events, interrupter)?;
            }
            let stopped = self.is_stopped(interrupter)?;
            if last || stopped || is_due(step, self.config.checkpoint_every) {
                self.save(model)?;
            }
        }
        interrupter.fail_on_error(events.process_train(LearnerEvent::EndSplit(1)));
        interrupter.fail_on_error(events.process_train(LearnerEvent::EndEpoch(1)));
        self.metrics.sync()
    }

    /// Whether someone asked to stop, or the step to stop at has come.
    fn is_stopped(&self, interrupter: &Interrupter) -> Result<bool, TrainError> {
        if let Some(error) = interrupter.error() {
            return Err(TrainError::Device(error.to_string()));
        }
        Ok(interrupter.should_stop() || self.stop_after.is_some_and(|stop| self.step >= stop))
    }

    fn evaluate<M: TrainableModel>(
        &mut self,
        model: &Learned<M>,
        valid: &ValidLoader<Learned<M>>,
        events: &mut SupervisedTrainingEventProcessor<Learned<M>>,
        interrupter: &Interrupter,
    ) -> Result<(), TrainError> {
        let started = Instant::now();
        let model = model.valid();
        interrupter.fail_on_error(events.process_valid(LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items: valid.num_items(),
        }));
        let mut totals = Totals::default();
        let mut batches = valid.iter();
        let mut index = 0;
        while let Some(item) = batches.next() {
            let item = item.map_err(|source| TrainError::Source {
                batch: format!("evaluation batch {index}"),
                source: Box::new(source),
            })?;
            index += 1;
            let measured = InferenceStep::step(&model, item);
            totals.add(&measured.0);
            let event = TrainingItem::new(measured, batches.progress(), Some(index), None);
            interrupter.fail_on_error(events.process_valid(LearnerEvent::ProcessedItem(event)));
        }
        interrupter.fail_on_error(events.process_valid(LearnerEvent::EndSplit(1)));

        let metrics = totals.means(&model.model);
        for (name, what) in JUDGED {
            if let Some((_, value)) = metrics.iter().find(|(found, _)| found == name) {
                refuse_non_finite(self.step, what, *value as f32)?;
            }
        }
        self.metrics.append(self.step, "valid", &metrics, None)?;
        let seconds = started.elapsed().as_secs_f64();
        self.log_seconds("valid", seconds)?;
        let report = EvaluationReport {
            step: self.step,
            metrics,
            seconds,
        };
        self.progress.on_evaluation(&report);
        self.last_evaluation = Some(report);
        Ok(())
    }

    fn log_seconds(&mut self, split: &'static str, seconds: f64) -> Result<(), TrainError> {
        let numbers = [("seconds".to_string(), seconds)];
        self.timing.append(self.step, split, &numbers, None)
    }

    pub(crate) fn save<M: TrainableModel>(&mut self, model: &Learned<M>) -> Result<(), TrainError> {
        self.claim.expect_kept()?;
        // The update before this may have lost them; from the checkpoint before, a run can go on.
        let mut lost = NonFinite(None);
        model.model.visit(&mut lost);
        if let NonFinite(Some(value)) = lost {
            refuse_non_finite(self.step, "a parameter", value)?;
        }
        // A checkpoint promises the lines before it: they must be on the disk first.
        self.metrics.sync()?;
        let state = CheckpointState {
            format_version: checkpoint::FORMAT_VERSION,
            step: self.step,
            seed: self.config.seed,
            fingerprint: self.fingerprint.clone(),
            baseline: model.shared.estimator().baseline().state(),
            config: self.config.clone(),
        };
        checkpoint::save(&self.run, &state, &model.model, &self.optimizer)?;
        self.progress.on_checkpoint(self.step);
        Ok(())
    }
}

/// A number that is not finite among the parameters of a module, if there is one.
struct NonFinite(Option<f32>);

impl ModuleVisitor for NonFinite {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.0.is_none() {
            let values = param.val().into_data();
            self.0 = values.iter::<f32>().find(|value| !value.is_finite());
        }
    }
}

fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// Numbers of an evaluation, where a model has them, that are not finite once an update has lost its parameters. Others may
/// be a mean of nothing.
const JUDGED: [(&str, &str); 2] = [
    ("loss", "the held-out loss"),
    ("log_likelihood", "the held-out log-likelihood"),
];

fn refuse_non_finite(step: u64, what: &'static str, value: f32) -> Result<(), TrainError> {
    if value.is_finite() {
        return Ok(());
    }
    Err(TrainError::NonFinite { step, what, value })
}
