//! The loop of training: steps, evaluations, checkpoints.

use std::cell::RefCell;
use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::tensor::Device;
use burn::train::renderer::MetricsRenderer;
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};

use super::checkpoint::{self, Checkpoint};
use super::claim::Claim;
use super::log::Log;
use super::silent::{NamedNumber, Silent};
use super::strategy::{Batches, Learned, Session, Shared, Steps};
use super::{
    EvaluationReport, METRICS, Progress, TIMING, TrainError, TrainableModel, TrainerConfig,
};
use crate::seed::{self, Purpose};

/// Signals that come within this time have one reason.
#[cfg(unix)]
const TOGETHER: std::time::Duration = std::time::Duration::from_secs(5);

/// One training run in one folder.
///
/// See the [module documentation](super) for what the folder holds and how a run resumes.
pub struct Trainer {
    config: TrainerConfig,
    run: PathBuf,
    fingerprint: String,
    resume: bool,
    stop_after: Option<u64>,
    keep_devices: bool,
    claim: Option<Claim>,
    interrupter: Interrupter,
    progress: Box<dyn Progress>,
    renderer: Option<(Box<dyn MetricsRenderer>, Vec<String>)>,
}

/// How a run ended.
#[derive(Debug)]
pub struct TrainReport<M> {
    /// The trained model in validation mode, off the autodiff device.
    pub model: M,
    /// Steps done, those before a resume included.
    pub step: u64,
    /// Whether the run was stopped before its last step, with a checkpoint to resume from.
    pub interrupted: bool,
    /// The step that the run resumed from, if it did.
    pub resumed_from: Option<u64>,
    /// The newest evaluation of this process, if there was one.
    pub evaluation: Option<EvaluationReport>,
    /// Wall-clock time of this process's part of the run.
    pub seconds: f64,
}

impl Trainer {
    /// A run with these settings in this folder, which is made if it is not there.
    ///
    /// `fingerprint` names the model's architecture, for instance as a hash of its configuration.
    /// A checkpoint with another fingerprint is refused.
    pub fn new(
        config: TrainerConfig,
        run: impl Into<PathBuf>,
        fingerprint: impl Into<String>,
    ) -> Self {
        Self {
            config,
            run: run.into(),
            fingerprint: fingerprint.into(),
            resume: false,
            stop_after: None,
            keep_devices: false,
            claim: None,
            interrupter: Interrupter::new(),
            progress: Box::new(()),
            renderer: None,
        }
    }

    /// Continues the run in the folder from its newest whole checkpoint.
    ///
    /// A run that ended before its first checkpoint starts again from the beginning. A folder that
    /// does not exist is an error.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Stops after this step, with a checkpoint, as an interruption does. The schedule is that of
    /// the whole run.
    pub fn stop_after(mut self, step: Option<u64>) -> Self {
        self.stop_after = step;
        self
    }

    /// Leaves every parameter on the device that it is on, for a model that is spread over several; the batches
    /// are made on the device of [`fit`](Self::fit). Gradients and the state of the optimiser are where their
    /// parameters are.
    pub fn keep_devices(mut self, keep: bool) -> Self {
        self.keep_devices = keep;
        self
    }

    /// Trains under a claim of the run's folder that the caller has, for instance because it has written there. Without
    /// one [`fit`](Self::fit) claims the folder.
    ///
    /// # Panics
    /// If the claim is of another folder.
    pub fn claimed(mut self, claim: Claim) -> Self {
        assert_eq!(
            claim.folder(),
            self.run,
            "Trainer::claimed: folder: expected that of the run"
        );
        self.claim = Some(claim);
        self
    }

    /// A callback for progress.
    pub fn progress(mut self, progress: impl Progress + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Shows the run with one of burn's renderers, plotting the named numbers of steps and
    /// evaluations.
    pub fn renderer(mut self, renderer: Box<dyn MetricsRenderer>, names: &[&str]) -> Self {
        self.renderer = Some((
            renderer,
            names.iter().map(|name| name.to_string()).collect(),
        ));
        self
    }

    /// The handle that stops the run from another thread: `interrupter().stop(None)`. The step at
    /// work is finished and a checkpoint saved.
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }

    /// Stops this run with a checkpoint at Ctrl-C, and on Unix at SIGTERM and SIGHUP. A second Ctrl-C exits at once with
    /// code 130, and so does a SIGTERM or SIGHUP more than five seconds after the first. An ignored SIGHUP (`nohup`) stays
    /// ignored. The handlers are the process's, and stop the trainer that called this last.
    ///
    /// # Errors
    /// [`TrainError::Signal`] if the process has another handler already.
    pub fn stop_on_ctrl_c(&self) -> Result<(), TrainError> {
        static WATCHED: OnceLock<Mutex<Interrupter>> = OnceLock::new();
        let mut first = false;
        let watched = WATCHED.get_or_init(|| {
            first = true;
            Mutex::new(self.interrupter.clone())
        });
        let current = || watched.lock().unwrap_or_else(PoisonError::into_inner);
        *current() = self.interrupter.clone();
        if first {
            let stop = move |why: &str| {
                let interrupter = current();
                if interrupter.should_stop() {
                    std::process::exit(130);
                }
                interrupter.stop(Some(why));
            };
            ctrlc::set_handler(move || stop("Ctrl-C"))?;
            #[cfg(unix)]
            on_termination(move || stop("asked to end")).map_err(ctrlc::Error::System)?;
        }
        Ok(())
    }

    /// Trains `model` on `device` until the last step, an interruption or an error.
    ///
    /// `model` may live on any device, in training or validation mode; it is moved, unless the run is to
    /// [keep its devices](Self::keep_devices). `device` need not record gradients.
    ///
    /// - train: the batch of a seed and a step, the first being 0, on a device. It may depend on nothing else. The
    ///   seed is that of the run for data; [`step_rng`](seed::step_rng) turns it and the step into a generator
    /// - valid: how many batches an evaluation has (with 0 there is none, see [`no_evaluation`](super::no_evaluation)),
    ///   and the batch at an index, the same at every call
    ///
    /// # Errors
    /// Any [`TrainError`]. The run folder keeps its checkpoints and its log up to the last whole
    /// step.
    ///
    /// # Panics
    /// As the model and the estimator do when shapes disagree.
    pub fn fit<M, T, V>(
        self,
        model: M,
        train: impl Fn(u64, u64, &Device) -> Result<M::Batch, T> + Send + Sync + 'static,
        valid: (
            u64,
            impl Fn(u64, &Device) -> Result<M::Batch, V> + Send + Sync + 'static,
        ),
        device: &Device,
    ) -> Result<TrainReport<M>, TrainError>
    where
        M: TrainableModel,
        T: Error + Send + Sync + 'static,
        V: Error + Send + Sync + 'static,
    {
        let started = Instant::now();
        let (config, run, fingerprint) = (self.config, self.run, self.fingerprint);
        let (interrupter, mut progress) = (self.interrupter, self.progress);
        config.check()?;

        let claim = match (self.claim, self.resume) {
            (Some(claim), _) => claim,
            (None, true) => Claim::resume(&run)?,
            (None, false) => Claim::begin(&run)?,
        };
        let checkpoint = if self.resume && checkpoint::any(&run)? {
            Some(Checkpoint::newest(&run)?)
        } else {
            None
        };
        let mut estimator = config.policy_gradient.init();
        let mut model = model;
        if let Some((checkpoint, _)) = &checkpoint {
            checkpoint.expect_fingerprint(&fingerprint)?;
            checkpoint.expect_settings(&config)?;
            model = checkpoint.load_model(model)?;
        }
        // After the parameters, whose ids a checkpoint replaces.
        let groups = model.parameter_groups();
        let mut optimizer = config.optimizer.init_for(&groups);
        let resumed_from = match checkpoint {
            None => None,
            Some((checkpoint, passed_over)) => {
                optimizer = checkpoint.load_optimizer(optimizer)?;
                let state = checkpoint.state();
                estimator.baseline_mut().load_state(state.baseline);
                for error in passed_over {
                    progress.on_notice(&format!("{error}; resuming from step {}", state.step));
                }
                Some(state.step)
            }
        };
        let step = resumed_from.unwrap_or(0);
        Log::expect_step(&run.join(METRICS), step)?;
        let train_device = device.clone().autodiff();
        let model = model.train();
        let learned = Learned {
            model: if self.keep_devices {
                model
            } else {
                model.fork(&train_device)
            },
            shared: Arc::new(Shared {
                seed: config.seed,
                lambda_rl: config.lambda_rl,
                policy_gradient: Mutex::new(estimator),
            }),
        };
        let mut session = Session {
            metrics: Log::open(&run.join(METRICS), step)?,
            timing: Log::open(&run.join(TIMING), step)?,
            run,
            claim,
            fingerprint,
            step,
            stop_after: self.stop_after,
            optimizer,
            groups,
            progress,
            device: train_device.clone(),
            last_evaluation: None,
            result: None,
            config,
        };
        if resumed_from.is_none() {
            session.save(&learned)?;
        }

        let config = session.config.clone();
        let data_seed = seed::derive(config.seed, Purpose::Data);
        let batches = Batches::new(
            train_device.clone(),
            step..config.steps,
            move |step, device| train(data_seed, step, device),
        );
        let evaluation = Batches::new(train_device.without_autodiff(), 0..valid.0, valid.1);
        // The strategy has the optimizer that trains; burn's learner wants one of its own.
        let learner = Learner::new(
            learned,
            config.optimizer.init(),
            ConstantLr::from(config.learning_rate),
        );
        let session = Rc::new(RefCell::new(session));
        // burn wants the strategy in an `Arc` and calls it on this very thread, so that whoever
        // watches the run need not be `Send`.
        #[allow(clippy::arc_with_non_send_sync)]
        let strategy = Arc::new(Steps(session.clone()));
        let mut training = SupervisedTraining::new("", Arc::new(batches), Arc::new(evaluation))
            .with_application_logger(None)
            .with_metric_logger(Silent)
            .with_interrupter(interrupter)
            .with_training_strategy(TrainingStrategy::Custom(strategy));
        training = match self.renderer {
            None => training.renderer(Box::new(Silent)),
            Some((renderer, names)) => names.iter().fold(training.renderer(renderer), |t, name| {
                t.metric_train_numeric(NamedNumber::new(name))
                    .metric_valid_numeric(NamedNumber::new(name))
            }),
        };
        let result = training.launch(learner);

        let mut session = session.borrow_mut();
        let ended = session.result.take();
        ended.ok_or_else(|| TrainError::Device("burn-train did not run the strategy".into()))??;
        if let Some(error) = result.error {
            return Err(TrainError::Device(error.to_string()));
        }
        Ok(TrainReport {
            model: result.model.model,
            step: session.step,
            interrupted: session.step < config.steps,
            resumed_from,
            evaluation: session.last_evaluation.take(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// Calls a function, on a thread of its own, when the process is asked to end: once for all that come together.
#[cfg(unix)]
fn on_termination(stop: impl Fn() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGTERM};

    let mut watched = vec![SIGTERM];
    // SAFETY: without a new action the call only writes to `action`, which lives longer than it and is of the type that it wants;
    // all its fields are plain numbers or an optional function, of which zeroes are valid values.
    let is_ignored = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(SIGHUP, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    };
    if !is_ignored {
        watched.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(watched)?;
    let wait = move || {
        let mut last: Option<Instant> = None;
        for _ in signals.forever() {
            if last.is_none_or(|last| last.elapsed() >= TOGETHER) {
                stop();
                last = Some(Instant::now());
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(wait).map(drop)
}
