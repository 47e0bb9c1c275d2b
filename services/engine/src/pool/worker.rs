//! The life of a worker thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{Chunk, Shared, State, call::Report};
use crate::{ItemError, Model, Reason, Watch};

/// Weight of the newest chunk in the average of milliseconds per unit: about the last ten count.
const AVERAGE_WEIGHT: f64 = 0.1;

/// Chunks of one model that are computed together, and their units.
struct Batch<M: Model> {
    chunks: Vec<(u64, Chunk<M>)>,
    units: u64,
}

/// What running a batch gave.
struct Outcome<O> {
    /// One per input; none if the model panicked.
    results: Option<Vec<Result<O, ItemError>>>,
    start: Instant,
    end: Instant,
    prepare: Duration,
    compute: Duration,
}

/// Takes work until the pool is closed and empty.
pub(super) fn work<M: Model>(shared: &Shared<M>, chunk_units_max: u64) {
    while let Some(mut batch) = next(shared, chunk_units_max) {
        let outcome = compute(&mut batch);
        let mut state = shared.state();
        state.running_units -= batch.units;
        state.panics += u64::from(outcome.results.is_none());
        state.ms_per_unit = average(state.ms_per_unit, outcome.end - outcome.start, batch.units);
        drop(state);
        // Last, so that a caller who asks for the load after its answer does not find its own work in it.
        tell(batch, outcome);
    }
}

/// Waits for the next batch; none when the pool is closed and empty.
fn next<M: Model>(shared: &Shared<M>, chunk_units_max: u64) -> Option<Batch<M>> {
    let mut state = shared.state();
    loop {
        if let Some(batch) = take(&mut state, chunk_units_max, Instant::now()) {
            state.running_units += batch.units;
            return Some(batch);
        }
        if state.closed {
            return None;
        }
        state.idle += 1;
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
    }
}

/// The chunk whose turn it is, topped up with what waits of the same model; what nobody wants any more is dropped.
fn take<M: Model>(state: &mut State<M>, chunk_units_max: u64, now: Instant) -> Option<Batch<M>> {
    let (units, first) = loop {
        let (units, chunk) = state.queue.pop()?;
        if chunk.ticket.wanted(now) {
            break (units, chunk);
        }
    };
    // What an idle worker could compute beside this one would only wait here.
    let room = if state.idle > 0 { 0 } else { chunk_units_max.saturating_sub(units) };
    let same = |chunk: &Chunk<M>| std::sync::Arc::ptr_eq(&chunk.model, &first.model) && chunk.ticket.wanted(now);
    let more = state.queue.top_up(room, same);
    let chunks: Vec<_> = std::iter::once((units, first)).chain(more).collect();
    let units = chunks.iter().map(|(units, _)| units).sum();
    Some(Batch { chunks, units })
}

/// Runs a batch.
fn compute<M: Model>(batch: &mut Batch<M>) -> Outcome<M::Output> {
    let inputs: Vec<_> = batch.chunks.iter_mut().flat_map(|(_, chunk)| chunk.inputs.drain(..)).collect();
    let count = inputs.len();
    let chunks = &batch.chunks;
    let wanted = || chunks.iter().any(|(_, chunk)| chunk.ticket.wanted(Instant::now()));
    let start = Instant::now();
    let mut watch = Watch::start(&wanted);
    let model = &chunks[0].1.model;
    // Unwind safe: the inputs are gone with the panic, and a model is only ever shared by reference.
    let results = catch_unwind(AssertUnwindSafe(|| model.run(inputs, &mut watch))).ok();
    if results.is_none() {
        tracing::error!(batch.len = count, "model panicked");
    }
    Outcome { results, start, end: Instant::now(), prepare: watch.prepare, compute: watch.compute }
}

/// Gives every caller its part, and its share of the time by its share of the units.
fn tell<M: Model>(batch: Batch<M>, outcome: Outcome<M::Output>) {
    let Outcome { results, start, end, prepare, compute } = outcome;
    let failed = || Err(ItemError::new(Reason::Engine, "the model failed on this input or on one beside it"));
    let panicked = results.is_none();
    let mut results = results.unwrap_or_default().into_iter();
    for (units, chunk) in batch.chunks {
        let share = units as f64 / batch.units as f64;
        let mut result = || if panicked { Some(failed()) } else { results.next() };
        chunk.ticket.book(Report {
            results: chunk.positions.into_iter().map_while(|item| Some((item, result()?))).collect(),
            start,
            end,
            prepare: prepare.mul_f64(share),
            compute: compute.mul_f64(share),
            worker: (end - start).mul_f64(share),
        });
    }
}

fn average(before: f64, spent: Duration, units: u64) -> f64 {
    let now = spent.as_secs_f64() * 1e3 / units as f64;
    if before == 0.0 { now } else { before + AVERAGE_WEIGHT * (now - before) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_starts_with_the_first_chunk_and_follows_slowly() {
        assert_eq!(average(0.0, Duration::from_millis(50), 100), 0.5);
        assert!((average(0.5, Duration::from_millis(150), 100) - 0.6).abs() < 1e-12);
    }
}
