//! The course of one stream.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use chassis::{load::Meter, readiness, refusal::Refusal};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::Sleep,
};
use tonic::{Code, Status};
use tracing::{Instrument as _, Span};

use super::{Answers, Batch, Batches, Finished, Message, Opened, compute};
use crate::{Call, bad_parameter, status};

/// Parses a config.
pub(super) type Open<C, B> = Box<dyn FnOnce(C) -> Result<Opened<B>, Refusal> + Send>;

/// What a stream is bound by.
pub(super) struct Terms {
    pub(super) call: Call,
    /// Most batches that are read and not answered.
    pub(super) batches_max: usize,
    /// Longest time in which nothing is read while nothing is in flight.
    pub(super) idle_max: Duration,
    pub(super) readiness: watch::Receiver<readiness::State>,
    /// Ticks when other models stand in the catalog.
    pub(super) changes: watch::Receiver<()>,
    pub(super) meter: Meter,
}

/// A stream in progress. Dropping it gives up what runs.
pub(super) struct Driver<S, R, C, B: Batches> {
    incoming: S,
    read: fn(R) -> Option<Message<C, B::Items>>,
    /// Taken by the config.
    open: Option<Open<C, B>>,
    session: Option<Session<B>>,
    phase: Phase,
    /// A task for each batch: whether the client reads or not, a batch that waits for the pool must take its turn, or
    /// all behind it would wait for this client.
    tasks: JoinSet<Finished<B::Response>>,
    /// Batches that are read and not answered, in the order in which they came.
    unanswered: VecDeque<u64>,
    /// Answers that wait for their turn.
    ready: BTreeMap<u64, B::Response>,
    introduced: bool,
    late: Option<Pin<Box<Sleep>>>,
    /// Counts only while nothing is in flight, from the last message or answer on.
    idle: Pin<Box<Sleep>>,
    terms: Terms,
    span: Span,
}

/// What the config has settled.
struct Session<B> {
    batches: Arc<B>,
    unordered: bool,
    last_sequence: Option<u64>,
}

enum Phase {
    /// Takes messages while there is room. Ends with the client's side, a fault, or a drain.
    Reading,
    /// Takes no more; what was read is answered, and then the stream ends: well, or so.
    Ending(Option<Refusal>),
    /// Nothing comes any more.
    Ended,
}

/// What happens next to a stream.
enum Event<R, T> {
    Late,
    Finished(Result<T, JoinError>),
    Draining,
    Changed,
    Read(Option<Result<R, Status>>),
    Idle,
}

impl<S, R, C, B> Driver<S, R, C, B>
where
    S: Stream<Item = Result<R, Status>> + Send + Unpin + 'static,
    R: Send + 'static,
    C: Send + 'static,
    B: Batches,
{
    pub(super) fn new(
        incoming: S,
        read: fn(R) -> Option<Message<C, B::Items>>,
        open: Open<C, B>,
        terms: Terms,
    ) -> Self {
        let late = terms.call.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
        let idle = Box::pin(tokio::time::sleep(terms.idle_max));
        Self {
            incoming,
            read,
            open: Some(open),
            session: None,
            phase: Phase::Reading,
            tasks: JoinSet::new(),
            unanswered: VecDeque::new(),
            ready: BTreeMap::new(),
            introduced: false,
            late,
            idle,
            terms,
            span: Span::current(),
        }
    }

    pub(super) fn into_answers(self) -> Answers<B::Response> {
        Box::pin(stream::unfold(self, async |mut driver| driver.next().await.map(|answer| (answer, driver))))
    }

    /// The next response, or how the stream ends.
    async fn next(&mut self) -> Option<Result<B::Response, Status>> {
        loop {
            if let Some(response) = self.due() {
                self.wake();
                return Some(Ok(response));
            }
            if self.unanswered.is_empty() && !matches!(self.phase, Phase::Reading) {
                return match std::mem::replace(&mut self.phase, Phase::Ended) {
                    Phase::Ending(Some(refusal)) => Some(Err(refusal.into_status())),
                    Phase::Ending(None) | Phase::Reading | Phase::Ended => None,
                };
            }
            match self.event().await {
                Event::Late => self.cut(Refusal::late(self.terms.call.allowed())),
                Event::Finished(finished) => self.book(finished),
                Event::Draining => self.end(Some(status::draining("the server is shutting down"))),
                Event::Changed => self.follow(),
                Event::Read(message) => self.take(message),
                Event::Idle => self.end(Some(status::idle(self.terms.idle_max))),
            }
        }
    }

    async fn event(&mut self) -> Event<R, Finished<B::Response>> {
        let reads = matches!(self.phase, Phase::Reading);
        let room = self.unanswered.len() < self.terms.batches_max;
        tokio::select! {
            biased; // Answers before questions: what is done leaves before more comes in.
            () = late(&mut self.late) => Event::Late,
            Some(finished) = self.tasks.join_next() => Event::Finished(finished),
            () = draining(&mut self.terms.readiness), if reads => Event::Draining,
            () = changed(&mut self.terms.changes), if reads => Event::Changed,
            message = self.incoming.next(), if reads && room => Event::Read(message),
            () = self.idle.as_mut(), if reads && self.unanswered.is_empty() => Event::Idle,
        }
    }

    /// The response whose turn it is.
    fn due(&mut self) -> Option<B::Response> {
        let session = self.session.as_ref()?;
        let sequence = if session.unordered { *self.ready.first_key_value()?.0 } else { *self.unanswered.front()? };
        let mut response = self.ready.remove(&sequence)?;
        self.unanswered.retain(|other| *other != sequence);
        if !std::mem::replace(&mut self.introduced, true) {
            session.batches.introduce(&mut response);
        }
        Some(response)
    }

    fn take(&mut self, message: Option<Result<R, Status>>) {
        self.wake();
        let taken = match message {
            None if self.open.is_some() => Err(bad_parameter("config", "the stream ended before its config")),
            None => return self.end(None),
            Some(Err(status)) => Err(Refusal::unreadable(&status)),
            Some(Ok(message)) => match (self.read)(message) {
                None => Err(bad_parameter("message", "a message carries neither config nor items")),
                Some(Message::Config(config)) => self.begin(config),
                Some(Message::Batch(batch)) => self.start(batch),
            },
        };
        if let Err(refusal) = taken {
            self.end(Some(refusal));
        }
    }

    fn begin(&mut self, config: C) -> Result<(), Refusal> {
        let Some(open) = self.open.take() else {
            return Err(bad_parameter("config", "a second config; a stream has one, in its first message"));
        };
        let Opened { batches, unordered } = open(config)?;
        self.session = Some(Session { batches: Arc::new(batches), unordered, last_sequence: None });
        Ok(())
    }

    fn start(&mut self, batch: Batch<B::Items>) -> Result<(), Refusal> {
        let Some(session) = &mut self.session else {
            return Err(bad_parameter("config", "the first message carries items; it must carry the config"));
        };
        let sequence = batch.sequence;
        if let Some(last) = session.last_sequence.filter(|last| sequence <= *last) {
            let message = format!("the sequence {sequence} follows {last}; it must rise");
            return Err(bad_parameter("items.sequence", message));
        }
        session.last_sequence = Some(sequence);
        self.unanswered.push_back(sequence);
        let task = compute(Arc::clone(&session.batches), batch, self.terms.call);
        self.tasks.spawn(task.instrument(self.span.clone()));
        Ok(())
    }

    /// Takes in what became of a batch.
    fn book(&mut self, finished: Result<Finished<B::Response>, JoinError>) {
        let Ok(Finished { sequence, answer }) = finished else {
            return self.cut(Refusal::engine("the server failed on this stream; its log has the cause"));
        };
        let Some(session) = &self.session else { return };
        match answer {
            Ok(answer) => {
                self.terms.meter.add(answer.cost);
                self.ready.insert(sequence, answer.response);
            }
            Err(refusal) if refusal.code == Code::DeadlineExceeded => self.cut(refusal),
            Err(refusal) if refusal.code == Code::Unavailable => {
                // Not answered: the client sends it again, elsewhere.
                self.unanswered.retain(|other| *other != sequence);
                self.end(Some(refusal));
            }
            Err(refusal) => {
                let response = session.batches.failed(sequence, status::to_item(&refusal));
                self.ready.insert(sequence, response);
            }
        }
    }

    /// Lets go of a model that is to be unloaded: the next stream finds what stands in its place.
    fn follow(&mut self) {
        if self.session.as_ref().is_some_and(|session| !session.batches.are_current()) {
            self.end(Some(status::draining("the model of this stream is being unloaded; open another stream")));
        }
    }

    /// Begins to count again how long nothing happens.
    fn wake(&mut self) {
        self.idle.as_mut().reset(tokio::time::Instant::now() + self.terms.idle_max);
    }

    /// Reads no more. The first reason stands.
    fn end(&mut self, how: Option<Refusal>) {
        if matches!(self.phase, Phase::Reading | Phase::Ending(None)) {
            self.phase = Phase::Ending(how);
        }
    }

    /// Ends without waiting for anything.
    fn cut(&mut self, how: Refusal) {
        self.tasks.abort_all();
        self.unanswered.clear();
        self.ready.clear();
        self.phase = Phase::Ending(Some(how));
    }
}

async fn late(sleep: &mut Option<Pin<Box<Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

async fn draining(readiness: &mut watch::Receiver<readiness::State>) {
    if readiness.wait_for(|state| state.draining).await.is_err() {
        // Nobody is left who could drain.
        std::future::pending().await
    }
}

async fn changed(changes: &mut watch::Receiver<()>) {
    if changes.changed().await.is_err() {
        // Nobody is left who could change anything.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
