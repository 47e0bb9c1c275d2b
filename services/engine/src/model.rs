//! The seam between the worker pool and the models.
//!
//! The pool knows nothing of texts or images: it schedules [`Model::Input`]s by their estimated cost and hands them to
//! [`Model::step`], which returns one outcome per input. A model knows nothing of queues, lanes or deadlines.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// A function over independent inputs, loaded once and shared by all workers.
pub trait Model: Send + Sync + 'static {
    /// One unprepared input: a text, an encoded image.
    type Input: Send + 'static;
    /// What becomes of one input.
    type Output: Send + 'static;

    /// Estimated work of one input, before it is prepared, in units that the pool's budget is counted in: tokens for
    /// texts, images for images. At least 1.
    fn units(&self, input: &Self::Input) -> u32;

    /// Computes all inputs and returns one outcome per input, in their order.
    ///
    /// An input that cannot be computed fails alone. Where the model cannot tell whose fault a failure is, it says so by
    /// [`ItemError::shared`]: the pool computes those inputs again, and all if this panics, so that in the end those fail
    /// that do so by themselves. `watch` divides the time between preparation and compute, and says when nobody waits for
    /// the result any more.
    fn run(&self, inputs: &[&Self::Input], watch: &mut Watch<'_>) -> Vec<Result<Self::Output, ItemError>>;

    /// The same in steps, if an input can be put aside: what would be more than `units_max` at once may come back as what
    /// is left of it. Something is always computed. The results are those of [`Self::run`].
    ///
    /// Unless a model says otherwise all is one step.
    fn step(
        &self,
        inputs: &[&Self::Input],
        _units_max: u32,
        watch: &mut Watch<'_>,
    ) -> Vec<Result<Step<Self>, ItemError>> {
        self.run(inputs, watch).into_iter().map(|result| result.map(Step::<Self>::Done)).collect()
    }
}

/// How far an input was computed.
pub enum Step<M: Model + ?Sized> {
    /// To its end.
    Done(M::Output),
    /// This is left of it.
    Rest(M::Input),
    /// Not at all: others took the room. It comes back prepared, and as urgent as it was.
    Later(M::Input),
}

/// A stopwatch for the two kinds of work, and the word that the work is still wanted.
pub struct Watch<'a> {
    wanted: &'a dyn Fn() -> bool,
    lap: Instant,
    /// Time spent tokenizing, decoding and resizing.
    pub prepare: Duration,
    /// Time spent in the model.
    pub compute: Duration,
}

impl<'a> Watch<'a> {
    /// Starts now.
    #[must_use]
    pub fn start(wanted: &'a dyn Fn() -> bool) -> Self {
        Self { wanted, lap: Instant::now(), prepare: Duration::ZERO, compute: Duration::ZERO }
    }

    /// Books the time since the last lap as preparation.
    pub fn prepared(&mut self) {
        let lap = self.lap();
        self.prepare += lap;
    }

    /// Books the time since the last lap as compute.
    pub fn computed(&mut self) {
        let lap = self.lap();
        self.compute += lap;
    }

    /// False once every caller has gone or is too late; checked between steps of a long computation.
    #[must_use]
    pub fn wanted(&self) -> bool {
        (self.wanted)()
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now - self.lap;
        self.lap = now;
        lap
    }
}

/// Why one input failed; the others of its call are not affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemError {
    /// What a program switches on.
    pub reason: Reason,
    /// What a person reads; never the caller's input.
    pub message: String,
    shared: bool,
}

impl ItemError {
    /// An error with its message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), shared: false }
    }

    /// The same where all that were computed together failed, and one of them may have harmed the others.
    #[must_use]
    pub fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    /// Whether it may be another input's fault.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ItemError {}

/// Kinds of [`ItemError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing but white space, or no bytes.
    Empty,
    /// More tokens than the model takes.
    TooLong,
    /// More bytes or pixels than the limits allow.
    TooLarge,
    /// An image that is truncated, corrupt or not what it says it is.
    BadImage,
    /// Not a format that is read here.
    UnsupportedImage,
    /// A parameter of this input is out of its bounds.
    BadParameter,
    /// The input names content that is not here.
    ContentNotFound,
    /// The model produced no usable numbers.
    Engine,
    /// The call was given up or its deadline passed before this input was computed.
    Abandoned,
}
