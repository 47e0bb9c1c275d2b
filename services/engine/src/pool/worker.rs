//! The life of a worker thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Chunk, Shared, State, bisect,
    call::Report,
    queue::{Entry, Place},
    sharing::Sharing,
};
use crate::{ItemError, Model, Reason, Step, Watch};

/// Weight of the newest chunk in the average of milliseconds per unit: about the last ten count.
const AVERAGE_WEIGHT: f64 = 0.1;

/// Chunks of one model that are computed together, and their units.
struct Batch<M: Model> {
    chunks: Vec<Entry<Chunk<M>>>,
    units: u64,
}

/// What running a batch gave.
struct Outcome<M: Model> {
    /// One per input.
    results: Vec<Result<Step<M>, ItemError>>,
    /// Units of what is left of the inputs.
    left: u64,
    panicked: bool,
    start: Instant,
    end: Instant,
    prepare: Duration,
    compute: Duration,
}

/// Takes work until the pool is closed and empty.
pub(super) fn work<M: Model>(shared: &Shared<M>, sharing: Sharing) {
    while let Some(batch) = next(shared, sharing) {
        let outcome = compute(&batch, sharing);
        let mut state = shared.state();
        state.running_units -= batch.units;
        state.panics += u64::from(outcome.panicked);
        // What was given up says nothing of how long work takes.
        if outcome.results.iter().any(|result| !is_abandoned(result)) {
            let units = worked(&batch, &outcome, sharing);
            state.ms_per_unit = average(state.ms_per_unit, outcome.end - outcome.start, units);
        }
        drop(state);
        // Last, so that a caller who asks for the load after its answer does not find its own work in it.
        let rests = tell(batch, outcome);
        put_back(shared, rests);
    }
}

/// Waits for the next batch; none when the pool is closed and empty.
fn next<M: Model>(shared: &Shared<M>, sharing: Sharing) -> Option<Batch<M>> {
    let mut state = shared.state();
    loop {
        if let Some(batch) = take(&mut state, sharing, Instant::now()) {
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
fn take<M: Model>(state: &mut State<M>, sharing: Sharing, now: Instant) -> Option<Batch<M>> {
    let first = loop {
        let entry = state.queue.pop()?;
        if entry.item.ticket.wanted(now) {
            break entry;
        }
    };
    let top_up = sharing.top_up(first.units, first.place.rank, state.idle);
    let same = |chunk: &Chunk<M>| Arc::ptr_eq(&chunk.model, &first.item.model) && chunk.ticket.wanted(now);
    let more = state.queue.top_up(top_up, same);
    let chunks: Vec<_> = std::iter::once(first).chain(more).collect();
    let units = chunks.iter().map(|entry| entry.units).sum();
    Some(Batch { chunks, units })
}

/// Runs a batch, and parts of it again until it is known who failed.
fn compute<M: Model>(batch: &Batch<M>, sharing: Sharing) -> Outcome<M> {
    let chunks = batch.chunks.iter().map(|entry| &entry.item);
    let inputs: Vec<_> =
        chunks.flat_map(|chunk| chunk.inputs.iter().map(move |input| (&*chunk.ticket, input))).collect();
    let model = &batch.chunks[0].item.model;
    let start = Instant::now();
    let (mut panicked, mut prepare, mut compute) = (false, Duration::ZERO, Duration::ZERO);
    let results = bisect::run(inputs.len(), |items| {
        let fail = |error: ItemError| items.iter().map(|_| Err(error.clone())).collect();
        let wanted = || items.iter().any(|&item| inputs[item].0.wanted(Instant::now()));
        if !wanted() {
            return fail(ItemError::new(Reason::Abandoned, "nobody waits for it"));
        }
        let mut watch = Watch::start(&wanted);
        let these: Vec<_> = items.iter().map(|&item| inputs[item].1).collect();
        // Unwind safe: inputs and models are only ever shared by reference.
        let answers = catch_unwind(AssertUnwindSafe(|| model.step(&these, sharing.chunk_units_max, &mut watch)));
        prepare += watch.prepare;
        compute += watch.compute;
        let Ok(answers) = answers else {
            panicked = true;
            tracing::error!(batch.len = items.len(), "model panicked");
            return fail(ItemError::new(Reason::Engine, "the model failed on this input").shared());
        };
        answers.into_iter().chain(std::iter::repeat_with(bisect::no_answer)).take(items.len()).collect()
    });
    let left = results.iter().map(|result| match result {
        Ok(Step::Rest(input) | Step::Later(input)) => u64::from(model.units(input)),
        _ => 0,
    });
    Outcome { left: left.sum(), results, panicked, start, end: Instant::now(), prepare, compute }
}

/// Gives every caller its part, and its share of the time by its share of the units. Chunks with what is left of their
/// inputs come back, with the places where they go: those that were begun let others have a turn before them.
fn tell<M: Model>(batch: Batch<M>, outcome: Outcome<M>) -> Vec<(Place, Chunk<M>)> {
    let Outcome { results, start, end, prepare, compute, .. } = outcome;
    let (mut results, mut rests) = (results.into_iter(), Vec::new());
    for Entry { place, units, item: Chunk { ticket, model, positions, .. } } in batch.chunks {
        let mut done = Vec::with_capacity(positions.len());
        let mut rest = Chunk { ticket: Arc::clone(&ticket), model, positions: Vec::new(), inputs: Vec::new() };
        let mut begun = false;
        for (position, result) in positions.into_iter().zip(results.by_ref()) {
            begun |= !matches!(result, Ok(Step::Later(_)));
            match result {
                Ok(Step::Done(output)) => done.push((position, Ok(output))),
                Err(error) => done.push((position, Err(error))),
                Ok(Step::Rest(input) | Step::Later(input)) => {
                    rest.positions.push(position);
                    rest.inputs.push(input);
                }
            }
        }
        let share = units as f64 / batch.units as f64;
        ticket.book(Report {
            results: done,
            finishes: rest.inputs.is_empty(),
            start,
            end,
            prepare: prepare.mul_f64(share),
            compute: compute.mul_f64(share),
            worker: (end - start).mul_f64(share),
        });
        if !rest.inputs.is_empty() {
            rests.push((if begun { place.next() } else { place }, rest));
        }
    }
    rests
}

fn put_back<M: Model>(shared: &Shared<M>, rests: Vec<(Place, Chunk<M>)>) {
    if rests.is_empty() {
        return;
    }
    let now = Instant::now();
    let mut state = shared.state();
    for (place, rest) in rests.into_iter().filter(|(_, rest)| rest.ticket.wanted(now)) {
        let units = rest.inputs.iter().map(|input| u64::from(rest.model.units(input).max(1))).sum();
        state.queue.put_back(place, units, rest);
        // This worker comes for one of them itself, or for what goes before it.
        shared.changed.notify_one();
    }
}

/// Units that were computed. What the model guessed before it had seen the inputs may be less than what is left of them.
fn worked<M: Model>(batch: &Batch<M>, outcome: &Outcome<M>, sharing: Sharing) -> u64 {
    let least = batch.units.min(u64::from(sharing.chunk_units_max));
    batch.units.saturating_sub(outcome.left).max(least)
}

fn is_abandoned<T>(result: &Result<T, ItemError>) -> bool {
    result.as_ref().is_err_and(|error| error.reason == Reason::Abandoned)
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
