//! Runs models for many callers at once: a bounded queue in front of one worker thread per core.
//!
//! A call is cut into chunks of whole items, smaller ones if several workers are idle. A worker takes the next chunk, tops
//! up from what already waits of the same model, and runs it: nothing ever waits for a batch to fill, because one text
//! already uses a core fully. (A device wants much at once: [`PoolSettings::device_chunk_units_max`].) What is late or
//! abandoned leaves the queue before it is computed. An input on which the model fails, even if that harms all that ran
//! with it, fails alone.
//!
//! The first chunks of calls go before the others, so that a short call does not wait for a large one: how long it waits
//! at most is said at [`Pool`].

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use self::{
    call::Ticket,
    cut::cut,
    queue::{Queue, Rank},
    sharing::Sharing,
};
use crate::{DeviceChoice, Error, ItemError, Model};

mod bisect;
mod call;
mod cut;
mod queue;
mod sharing;
mod worker;

const WORKERS_MAX: usize = 1024;

/// Workers and their queue. Dropping it finishes what was admitted and joins the threads.
///
/// # How long a call waits
///
/// A free worker takes the first chunk of the interactive call that came first; then second chunks, and so on; then those
/// of the batch lane in the same order. But of eight chunks that are taken one is the oldest that waits.
///
/// A short interactive call, which is one chunk, therefore waits until the first of the workers is done with the chunk that
/// it is at, and then for the first chunks of the interactive calls before it, and for one chunk of other work, and for one
/// more for each seven of those first chunks: however large the other calls are, and however much bulk work there is. It
/// may share its own chunk with other short calls that wait, on a device with anything that waits. A chunk has
/// [`PoolSettings::chunk_units_max`] units by the model's estimate; an input that is larger is one, unless the model
/// computes it in steps ([`Model::step`]), as texts of several windows are, and texts of more tokens than was guessed: each
/// step then counts as a chunk. So the longest chunk is what a model takes at once: one image, or the tokenizing of
/// texts and half as many tokens again as `chunk_units_max`, at least [`crate::ModelInfo::max_input_tokens`].
///
/// A large call gets all that short ones leave, and at least every eighth chunk once it is the oldest: a chunk that finds
/// n others in the queue is taken after at most 8 n + 7, whatever comes later, and after 8 more for each step of an older
/// one.
pub struct Pool<M: Model> {
    shared: Arc<Shared<M>>,
    settings: PoolSettings,
    sharing: Sharing,
    turns: Turns,
    threads: Vec<JoinHandle<()>>,
}

/// Bounds of a pool, as they stand in a service's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// Worker threads, at most 1,024. 0: one for each core that this process may use, cgroup quota and affinity included;
    /// if models are computed on a device, 1: a second one would only halve what it computes at once.
    pub workers: usize,
    /// Most units (tokens or images) that wait. A call that does not fit is refused at once with [`Error::Full`]; a call
    /// that is larger than the bound itself is let in when nothing waits. Calls that wait for their turn hold half as
    /// many at once, a quarter in each lane, so that they leave room for those that do not wait.
    pub queue_units_max: u64,
    /// Most units that a worker computes at once on a CPU; an item that is larger is computed alone, a text of several
    /// windows in steps between which others have their turn. More gains no throughput there (256 tokens, or 1 image, fill
    /// a core), and a worker is deaf for as long as it takes.
    pub chunk_units_max: u32,
    /// The same where models are computed on a device: it is the faster the more it has, until its memory is full. Calls
    /// are not divided between workers there, and all that waits of a model goes together, up to this bound.
    pub device_chunk_units_max: u32,
}

/// How one call is scheduled.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Lane of the queue.
    pub lane: Lane,
    /// When the answer is worth nothing any more.
    pub deadline: Option<Instant>,
}

/// Lane of the queue, in the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Somebody waits: goes first.
    Interactive,
    /// Bulk work: goes when no interactive work waits, and one chunk in eight when it is the oldest that waits.
    Batch,
}

/// What became of a call.
#[derive(Debug)]
pub struct Done<O> {
    /// One outcome per input, in their order.
    pub results: Vec<Result<O, ItemError>>,
    /// Where the time went.
    pub timing: Timing,
}

/// Where the time of a call went: queue + prepare + compute is its wall time in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Until a worker took the first chunk.
    pub queue: Duration,
    /// Tokenizing, decoding and resizing. This and `compute` are the wall time from the first chunk's start to the last
    /// one's end, divided in proportion to the work of each kind.
    pub prepare: Duration,
    /// The model.
    pub compute: Duration,
    /// Time of workers that the call used.
    pub worker: Duration,
    /// Estimated work, in the model's units.
    pub units: u64,
}

/// How busy a pool is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Units that wait.
    pub queued_units: u64,
    /// Units that are being computed.
    pub running_units: u64,
    /// Recent worker milliseconds per unit; 0 before the first chunk.
    pub ms_per_unit: f64,
    /// Estimated milliseconds until a new call would begin: all unfinished work, shared by the workers.
    pub queue_ms: f64,
    /// Worker threads.
    pub workers: usize,
    /// Chunks whose model panicked, since the start.
    pub panics: u64,
}

/// Units that calls of [`Pool::run_in_turn`] may hold. Each lane has its own: in one line, somebody who waits for an
/// answer would stand behind all the bulk work that came before.
struct Turns {
    interactive: Semaphore,
    batch: Semaphore,
}

struct Shared<M: Model> {
    state: Mutex<State<M>>,
    /// Work has come, or the pool closes.
    changed: Condvar,
}

struct State<M: Model> {
    queue: Queue<Chunk<M>>,
    closed: bool,
    /// Workers that wait for work.
    idle: usize,
    running_units: u64,
    ms_per_unit: f64,
    panics: u64,
}

/// A part of a call that one worker computes at once.
struct Chunk<M: Model> {
    ticket: Arc<Ticket<M::Output>>,
    model: Arc<M>,
    /// Positions of the inputs in their call.
    positions: Vec<usize>,
    inputs: Vec<M::Input>,
}

// === impl Pool ===

impl<M: Model> Pool<M> {
    /// Starts the workers of models that are computed on this device; `name` begins the names of their threads.
    pub fn start(settings: PoolSettings, device: DeviceChoice, name: &str) -> Result<Self, Error> {
        let sharing = Sharing::new(settings, device);
        let workers = sharing.workers;
        if workers > WORKERS_MAX {
            return Err(Error::load("worker pool", format!("{workers} workers, the bound is {WORKERS_MAX}")));
        }
        let state =
            State { queue: Queue::new(), closed: false, idle: 0, running_units: 0, ms_per_unit: 0.0, panics: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (turns, threads) = (Turns::new(settings), Vec::with_capacity(workers));
        let mut pool = Self { shared, settings, sharing, turns, threads };
        for index in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || worker::work(&shared, sharing))
                .map_err(|error: io::Error| Error::load(format!("worker {name}-{index}"), error))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Computes all inputs. Dropping the future gives the call up: what of it waits leaves the queue at once, and what
    /// runs is told.
    pub async fn run(&self, model: &Arc<M>, inputs: Vec<M::Input>, call: Call) -> Result<Done<M::Output>, Error> {
        let item_units = item_units(model.as_ref(), &inputs);
        self.compute(model, inputs, &item_units, Entry { call, bound: Some(self.settings.queue_units_max) }).await
    }

    /// The same for callers who would rather wait than be refused: in each lane first come, first served, until there is
    /// room for them. It is never [`Error::Full`].
    pub async fn run_in_turn(
        &self,
        model: &Arc<M>,
        inputs: Vec<M::Input>,
        call: Call,
    ) -> Result<Done<M::Output>, Error> {
        let item_units = item_units(model.as_ref(), &inputs);
        let units: u64 = item_units.iter().map(|units| u64::from(*units)).sum();
        // What is larger than all turns of its lane takes them all, and is alone there.
        let turns = u32::try_from(units).unwrap_or(u32::MAX).min(turns_max(self.settings));
        let turn = self.turns.of(call.lane).acquire_many(turns);
        let turn = match call.deadline {
            None => turn.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), turn).await.map_err(|_elapsed| Error::Late)?,
        };
        // Held until the call is done or given up: what it holds bounds the queue instead of the queue's own bound.
        let _turn = turn.map_err(|_closed| Error::Closed)?;
        self.compute(model, inputs, &item_units, Entry { call, bound: None }).await
    }

    async fn compute(
        &self,
        model: &Arc<M>,
        inputs: Vec<M::Input>,
        item_units: &[u32],
        entry: Entry,
    ) -> Result<Done<M::Output>, Error> {
        let (now, call) = (Instant::now(), entry.call);
        if call.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::Late);
        }
        let units = item_units.iter().map(|units| u64::from(*units)).sum();
        let chunks = cut(item_units, self.chunk_units(units));
        let ticket = Arc::new(Ticket::new(inputs.len(), chunks.len(), now, call.deadline));
        if chunks.is_empty() {
            return Ok(ticket.take(units));
        }
        self.admit(model, inputs, Admission { ticket: &ticket, entry, item_units, chunks })?;
        // From here on whoever drops the future, late or not, takes the call out of the queue.
        let _abandon = AbandonOnDrop { shared: &self.shared, ticket: &ticket };
        match call.deadline {
            None => ticket.finished().await,
            Some(deadline) => {
                let finished = tokio::time::timeout_at(deadline.into(), ticket.finished()).await;
                finished.map_err(|_elapsed| Error::Late)?;
            }
        }
        Ok(ticket.take(units))
    }

    /// Refuses new calls with [`Error::Closed`]; what was admitted is finished.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.turns.close();
        self.shared.changed.notify_all();
    }

    /// How busy the pool is.
    #[must_use]
    pub fn load(&self) -> Load {
        let state = self.shared.state();
        let (queued_units, running_units) = (state.queue.units(), state.running_units);
        let workers = self.threads.len();
        Load {
            queued_units,
            running_units,
            ms_per_unit: state.ms_per_unit,
            queue_ms: (queued_units + running_units) as f64 * state.ms_per_unit / workers as f64,
            workers,
            panics: state.panics,
        }
    }

    /// Most units of a chunk of a call of so many that comes now. Whoever is idle may have work when its chunks come; they
    /// are computed all the same.
    fn chunk_units(&self, units: u64) -> u32 {
        let state = self.shared.state();
        let idle = if state.queue.units() == 0 { state.idle } else { 0 };
        self.sharing.chunk_units(units, idle)
    }

    /// Puts all chunks of a call into the queue, or none.
    fn admit(&self, model: &Arc<M>, inputs: Vec<M::Input>, call: Admission<'_, M>) -> Result<(), Error> {
        let mut inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        let sum = |positions: &[usize]| positions.iter().map(|&item| u64::from(call.item_units[item])).sum::<u64>();
        let units = call.item_units.iter().map(|units| u64::from(*units)).sum();
        let mut state = self.shared.state();
        if state.closed {
            return Err(Error::Closed);
        }
        if let Some(max) = call.entry.bound {
            if !state.queue.admits(units, max) {
                // The late give way before anybody is refused.
                let now = Instant::now();
                state.queue.retain(|chunk| chunk.ticket.wanted(now));
            }
            if !state.queue.admits(units, max) {
                return Err(Error::Full { queued: state.queue.units(), units, max });
            }
        }
        let count = call.chunks.len();
        for (part, positions) in (0..).zip(call.chunks) {
            let inputs = positions.iter().filter_map(|&item| inputs[item].take()).collect();
            let units = sum(&positions);
            let chunk = Chunk { ticket: Arc::clone(call.ticket), model: Arc::clone(model), positions, inputs };
            state.queue.push(Rank { lane: call.entry.call.lane, part }, units, chunk);
        }
        drop(state);
        for _ in 0..count.min(self.threads.len()) {
            self.shared.changed.notify_one();
        }
        Ok(())
    }
}

impl<M: Model> Drop for Pool<M> {
    fn drop(&mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of models; one that died of another has nothing left to say here.
            let _ = thread.join();
        }
    }
}

/// How a call comes into the queue.
#[derive(Clone, Copy)]
struct Entry {
    call: Call,
    /// Most units that may wait with it; `None` if it has had its turn.
    bound: Option<u64>,
}

/// A call on its way into the queue.
struct Admission<'a, M: Model> {
    ticket: &'a Arc<Ticket<M::Output>>,
    entry: Entry,
    item_units: &'a [u32],
    chunks: Vec<Vec<usize>>,
}

fn item_units<M: Model>(model: &M, inputs: &[M::Input]) -> Vec<u32> {
    inputs.iter().map(|input| model.units(input).max(1)).collect()
}

impl Turns {
    fn new(settings: PoolSettings) -> Self {
        let lane = || Semaphore::new(turns_max(settings) as usize);
        Self { interactive: lane(), batch: lane() }
    }

    fn of(&self, lane: Lane) -> &Semaphore {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Batch => &self.batch,
        }
    }

    fn close(&self) {
        self.interactive.close();
        self.batch.close();
    }
}

/// Units that calls of one lane may hold which wait for their turn.
fn turns_max(settings: PoolSettings) -> u32 {
    // The semaphore's own bound is 2^61 and its requests are u32: more than four billion tokens wait nowhere.
    u32::try_from(settings.queue_units_max / 4).unwrap_or(u32::MAX).max(1)
}

/// Takes what still waits of a call out of the queue when the caller goes.
struct AbandonOnDrop<'a, M: Model> {
    shared: &'a Shared<M>,
    ticket: &'a Arc<Ticket<M::Output>>,
}

impl<M: Model> Drop for AbandonOnDrop<'_, M> {
    fn drop(&mut self) {
        if self.ticket.is_finished() {
            return;
        }
        self.ticket.abandon();
        self.shared.state().queue.retain(|chunk| !Arc::ptr_eq(&chunk.ticket, self.ticket));
    }
}

// === impl Shared ===

impl<M: Model> Shared<M> {
    fn state(&self) -> MutexGuard<'_, State<M>> {
        // Models run outside the lock, and nothing inside it can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
