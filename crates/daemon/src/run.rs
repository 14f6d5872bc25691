//! One run of an operation: steps, each timed and named, and what undoes them.
//!
//! ```text
//!   run.undo("overlay", …)   the undo is said first: a step that failed may have taken effect
//!   run.step("clone overlay", …).await?
//!   run.steps_together(…).await?   three that do not touch each other
//!   run.commit()             from here on the operation has happened
//!   run.finish("end vmm", …) what must still be done, tried twice, and named if it stays
//! ```
//! An undo must succeed when there is nothing to undo.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_model::Op;
use hearth_store::{StepTime, TimelineRecord};
use tokio::sync::watch;
use tracing::{Instrument, debug, debug_span, warn};

use crate::error::OpError;
use crate::handle::InstanceView;
use crate::metrics::Metrics;
use crate::ops::faults::Faults;

type Undo = Pin<Box<dyn Future<Output = Result<(), OpError>> + Send>>;

/// Steps taken, and undos said, so far.
pub(crate) struct Run {
    op: Op,
    began: Instant,
    /// The same by the wall clock: an operation's end is looked at later than it ends.
    began_at_ms: i64,
    steps: Vec<StepTime>,
    undos: Vec<(&'static str, Undo)>,
    leaks: Vec<String>,
    metrics: Arc<Metrics>,
    faults: Faults,
    /// None of an operation on no instance.
    view: Option<watch::Receiver<InstanceView>>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("op", &self.op).field("steps", &self.steps).finish_non_exhaustive()
    }
}

impl Run {
    /// `view` tells when the operation shall be cut short.
    pub(crate) fn new(op: Op, host: &crate::host::Host, view: Option<watch::Receiver<InstanceView>>) -> Self {
        Self {
            op,
            began: Instant::now(),
            began_at_ms: crate::clock::now_ms(),
            steps: Vec::new(),
            undos: Vec::new(),
            leaks: Vec::new(),
            metrics: Arc::clone(&host.metrics),
            faults: host.faults.clone(),
            view,
        }
    }

    /// Says what undoes the step that comes next.
    pub(crate) fn undo<E: Into<OpError>>(
        &mut self,
        what: &'static str,
        undo: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.undos.push((what, Box::pin(async move { undo.await.map_err(Into::into) })));
    }

    /// Takes a step: its time goes into the timeline, its name into its error.
    pub(crate) async fn step<T, E: Into<OpError>>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, OpError> {
        let began = Instant::now();
        let result = match self.is_cut_short() {
            true => Err(cut_short(self.op)),
            false => attempt(self.faults.clone(), name, work).await,
        };
        self.note_end(name, began, began.elapsed(), result.is_ok());
        self.named(name, result)
    }

    /// Three steps at the same time, which have nothing to do with each other. All are awaited to their end,
    /// whatever becomes of the others; what undoes them is said before any. What one does before it waits for
    /// anything, those after it wait for.
    pub(crate) async fn steps_together<T, U, V, E: Into<OpError>, F: Into<OpError>, G: Into<OpError>>(
        &mut self,
        first: (&'static str, impl Future<Output = Result<T, E>>),
        second: (&'static str, impl Future<Output = Result<U, F>>),
        third: (&'static str, impl Future<Output = Result<V, G>>),
    ) -> Result<(T, U, V), OpError> {
        if self.is_cut_short() {
            // As a step would say.
            return self.step(first.0, std::future::ready(Err(cut_short(self.op)))).await;
        }
        let (one, two, three) = tokio::join!(self.timed(first), self.timed(second), self.timed(third));
        let (one, two, three) = (self.ended(one), self.ended(two), self.ended(three));
        Ok((one?, two?, three?))
    }

    fn timed<T, E: Into<OpError>>(
        &self,
        (name, work): (&'static str, impl Future<Output = Result<T, E>>),
    ) -> impl Future<Output = Timed<T>> {
        let work = attempt(self.faults.clone(), name, work);
        async move {
            let began = Instant::now();
            let result = work.await;
            Timed { name, began, took: began.elapsed(), result }
        }
    }

    fn ended<T>(&mut self, Timed { name, began, took, result }: Timed<T>) -> Result<T, OpError> {
        self.note_end(name, began, took, result.is_ok());
        self.named(name, result)
    }

    fn is_cut_short(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.borrow().cut_short)
    }

    /// An error says in which step of which operation it arose.
    fn named<T>(&self, name: &'static str, result: Result<T, OpError>) -> Result<T, OpError> {
        result.map_err(|error| OpError { op: Some(self.op), step: error.step.or(Some(name)), ..error })
    }

    /// A step that waits for a guest and changes nothing: it may be given up when the operation is
    /// cut short.
    pub(crate) async fn wait<T, E: Into<OpError>>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, OpError> {
        let (op, Some(mut view)) = (self.op, self.view.clone()) else { return self.step(name, work).await };
        let or_cut_short = async {
            tokio::select! {
                result = work => result.map_err(Into::into),
                Ok(_) = view.wait_for(|view| view.cut_short) => Err(cut_short(op)),
            }
        };
        self.step(name, or_cut_short).await
    }

    /// The operation has happened: a failure after this no longer undoes it.
    pub(crate) fn commit(&mut self) {
        self.undos.clear();
    }

    /// Does what must still be done after the commit; tried twice, and named as a leak if it
    /// fails twice.
    pub(crate) async fn finish<E: Into<OpError>, F: Future<Output = Result<(), E>>>(
        &mut self,
        name: &'static str,
        mut work: impl FnMut() -> F,
    ) {
        let began = Instant::now();
        let mut result = attempt(self.faults.clone(), name, work()).await;
        if let Err(error) = &result {
            warn!(step = name, error = %error, "trying once more");
            result = attempt(self.faults.clone(), name, work()).await;
        }
        self.note_end(name, began, began.elapsed(), result.is_ok());
        if let Err(error) = result {
            self.leaks.push(format!("{name}: {error}"));
        }
    }

    /// Adds a note to the step taken last: shown in the timeline.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        if let Some(step) = self.steps.last_mut() {
            step.note = Some(note.into());
        }
    }

    /// Ends the run: undoes what was done if it failed. An error names what stayed.
    pub(crate) async fn settle<T>(mut self, result: Result<T, OpError>) -> (Result<T, OpError>, Steps) {
        let result = match result {
            Ok(value) => Ok(value),
            Err(mut error) => {
                while let Some((what, undo)) = self.undos.pop() {
                    let began = Instant::now();
                    let undone = undo.await;
                    self.note_time(what, began, began.elapsed(), Some("undone".to_owned()));
                    if let Err(why) = undone {
                        self.leaks.push(format!("{what}: {why}"));
                    }
                }
                error.op = Some(self.op);
                error.left_behind.append(&mut self.leaks);
                Err(error)
            }
        };
        let (op, began_at_ms, took) = (self.op, self.began_at_ms, self.began.elapsed());
        let steps = Steps { op, began_at_ms, took, steps: self.steps, leaks: self.leaks };
        (result, steps)
    }

    fn note_end(&mut self, name: &'static str, began: Instant, took: Duration, succeeded: bool) {
        self.metrics.step_ended(self.op, name, succeeded, took);
        self.note_time(name, began, took, (!succeeded).then(|| "failed".to_owned()));
    }

    fn note_time(&mut self, name: &'static str, began: Instant, took: Duration, note: Option<String>) {
        debug!(op = %self.op, step = name, us = micros(took), "step done");
        let start_us = micros(began.duration_since(self.began));
        self.steps.push(StepTime { name: name.to_owned(), start_us, took_us: micros(took), note });
    }
}

fn cut_short(op: Op) -> OpError {
    OpError::new(hearth_model::ErrorKind::Cancelled, format!("the {op} was cut short: the instance was deleted"))
}

/// Makes one call, unless a test wants it to fail.
async fn attempt<T, E: Into<OpError>>(
    faults: Faults,
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, OpError> {
    faults.before(name).await?;
    let result = work.instrument(debug_span!("step", name)).await.map_err(Into::into);
    if result.is_ok() {
        faults.after(name).await?;
    }
    result
}

/// A step that was taken: when, and what came of it.
struct Timed<T> {
    name: &'static str,
    began: Instant,
    took: Duration,
    result: Result<T, OpError>,
}

/// What a run leaves for the record.
#[derive(Debug)]
pub(crate) struct Steps {
    pub(crate) op: Op,
    pub(crate) began_at_ms: i64,
    pub(crate) took: Duration,
    pub(crate) steps: Vec<StepTime>,
    /// What could not be finished or undone.
    pub(crate) leaks: Vec<String>,
}

impl Steps {
    /// The stored form.
    pub(crate) fn timeline(self, instance: &hearth_model::InstanceId, error: Option<&OpError>) -> TimelineRecord {
        let total_us = micros(self.took);
        TimelineRecord {
            op: self.op.to_string(),
            instance: instance.clone(),
            at_ms: self.began_at_ms,
            total_us,
            ok: error.is_none(),
            error: error.map(OpError::chain),
            steps: self.steps,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Runs blocking file system work off the async threads.
pub(crate) async fn blocking<T: Send + 'static, E: Into<OpError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, OpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(OpError::new(hearth_model::ErrorKind::Internal, format!("a task ended early: {panic}"))),
    }
}
