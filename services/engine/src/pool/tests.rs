use std::{
    collections::HashMap,
    future::Future,
    pin::{Pin, pin},
    sync::mpsc,
    task::{Context, Poll, Waker},
};

use super::*;
use crate::{Reason, Step, Watch};

mod order;

/// What the fake model is asked to do.
#[derive(Clone, Debug)]
struct Job {
    units: u32,
    name: u32,
    act: Act,
}

#[derive(Clone, Debug)]
enum Act {
    Answer,
    Panic,
    /// Answers in steps.
    Step,
    /// Answers if it is the first of those that run together, else later.
    Alone,
    /// Fails, and all that run with it.
    Harm,
    /// Fails, and the model knows that it is this one.
    Fail,
    /// Tells whether it is still wanted when the gate opens.
    Ask,
}

/// A model that tells what it runs, and runs it when it may.
struct Fake {
    started: Mutex<mpsc::Sender<Vec<u32>>>,
    gate: Mutex<mpsc::Receiver<()>>,
    told: Mutex<mpsc::Sender<bool>>,
}

/// The test's ends of a [`Fake`].
struct Bench {
    model: Arc<Fake>,
    started: mpsc::Receiver<Vec<u32>>,
    open: mpsc::Sender<()>,
    /// What the model was told when it asked whether it is wanted.
    told: mpsc::Receiver<bool>,
}

impl Model for Fake {
    type Input = Job;
    type Output = u32;

    fn units(&self, job: &Job) -> u32 {
        job.units
    }

    fn run(&self, jobs: &[&Job], watch: &mut Watch<'_>) -> Vec<Result<u32, ItemError>> {
        self.started.lock().unwrap().send(jobs.iter().map(|job| job.name).collect()).unwrap();
        watch.prepared();
        // A closed gate whose key is gone lets everything through.
        let _ = self.gate.lock().unwrap().recv();
        let harmed = jobs.iter().any(|job| matches!(job.act, Act::Harm));
        let answer = |job: &&Job| match job.act {
            Act::Panic => panic!("as asked"),
            _ if harmed => Err(ItemError::new(Reason::Engine, "harmed").shared()),
            Act::Answer | Act::Step | Act::Alone | Act::Harm => Ok(job.name),
            Act::Fail => Err(ItemError::new(Reason::Engine, "failed")),
            Act::Ask => {
                self.told.lock().unwrap().send(watch.wanted()).unwrap();
                Ok(job.name)
            }
        };
        let answers = jobs.iter().map(answer).collect();
        watch.computed();
        answers
    }

    fn step(&self, jobs: &[&Job], max: u32, watch: &mut Watch<'_>) -> Vec<Result<Step<Self>, ItemError>> {
        let first = jobs[0].name;
        let step = |job: &Job, name| -> Step<Self> {
            match job.act {
                Act::Alone if name != first => Step::Later(job.clone()),
                Act::Step if job.units > max => Step::Rest(Job { units: job.units - max, ..job.clone() }),
                _ => Step::Done(name),
            }
        };
        let answers = self.run(jobs, watch).into_iter().zip(jobs);
        answers.map(|(answer, job)| answer.map(|name| step(job, name))).collect()
    }
}

fn bench() -> Bench {
    let (start, started) = mpsc::channel();
    let (open, gate) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let model = Fake { started: Mutex::new(start), gate: Mutex::new(gate), told: Mutex::new(tell) };
    Bench { model: Arc::new(model), started, open, told }
}

/// One worker, so that what runs is known.
fn pool(queue_units_max: u64, chunk_units_max: u32) -> Pool<Fake> {
    start(PoolSettings { workers: 1, queue_units_max, ..settings(chunk_units_max) }, DeviceChoice::Cpu)
}

/// As many workers as the hardware wants.
fn settings(chunk_units_max: u32) -> PoolSettings {
    PoolSettings { workers: 0, queue_units_max: 1000, chunk_units_max, device_chunk_units_max: 100 }
}

fn start(settings: PoolSettings, device: DeviceChoice) -> Pool<Fake> {
    Pool::start(settings, device, "test").unwrap()
}

fn job(name: u32, units: u32) -> Job {
    Job { units, name, act: Act::Answer }
}

const INTERACTIVE: Call = Call { lane: Lane::Interactive, deadline: None };
const BATCH: Call = Call { lane: Lane::Batch, deadline: None };

/// A call that has been admitted, and waits.
type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Done<u32>, Error>> + 'a>>;

/// Polls once: the call is refused, or waits.
fn begin<'a>(future: impl Future<Output = Result<Done<u32>, Error>> + 'a) -> Waiting<'a> {
    let mut future: Waiting<'a> = Box::pin(future);
    let poll = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll.is_pending(), "should wait: {poll:?}");
    future
}

/// Polls once: the call is refused at once.
fn begin_refused(future: impl Future<Output = Result<Done<u32>, Error>>) -> Error {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => error,
        other => panic!("not refused at once: {other:?}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn names(done: Result<Done<u32>, Error>) -> Vec<u32> {
    done.unwrap().results.into_iter().map(Result::unwrap).collect()
}

#[test]
fn results_come_in_the_order_of_the_inputs() {
    let bench = bench();
    drop(bench.open);
    let pool = pool(10_000, 100);
    let jobs: Vec<_> = (0..50).map(|name| job(name, (name * 37) % 90 + 1)).collect();
    let done = runtime().block_on(pool.run(&bench.model, jobs, INTERACTIVE)).unwrap();
    assert!(done.timing.units > 0 && done.timing.worker > Duration::ZERO);
    assert_eq!(names(Ok(done)), (0..50).collect::<Vec<_>>());
    assert!(bench.started.try_iter().count() > 1, "the call was not cut");
}

#[test]
fn no_inputs_are_no_results() {
    let (bench, pool) = (bench(), pool(10, 10));
    assert!(names(runtime().block_on(pool.run(&bench.model, Vec::new(), INTERACTIVE))).is_empty());
}

#[test]
fn a_full_queue_refuses_at_once() {
    let (bench, pool) = (bench(), pool(100, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let waiting = begin(pool.run(&bench.model, vec![job(1, 90)], INTERACTIVE));
    let refused = pin!(pool.run(&bench.model, vec![job(2, 11)], INTERACTIVE));
    let Poll::Ready(Err(Error::Full { queued, units, max })) = refused.poll(&mut Context::from_waker(Waker::noop()))
    else {
        panic!("not refused at once")
    };
    assert_eq!((queued, units, max), (90, 11, 100));
    assert_eq!(pool.load().queued_units, 90);
    assert_eq!(pool.load().running_units, 10);
    drop(bench.open);
    let runtime = runtime();
    assert_eq!(names(runtime.block_on(running)), [0]);
    assert_eq!(names(runtime.block_on(waiting)), [1]);
}

#[test]
fn an_abandoned_call_leaves_the_queue_and_is_never_computed() {
    let (bench, pool) = (bench(), pool(100, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let abandoned = begin(pool.run(&bench.model, vec![job(1, 90)], INTERACTIVE));
    drop(abandoned);
    assert_eq!(pool.load().queued_units, 0);
    let next = begin(pool.run(&bench.model, vec![job(2, 90)], INTERACTIVE));
    drop(bench.open);
    let runtime = runtime();
    runtime.block_on(running).unwrap();
    assert_eq!(names(runtime.block_on(next)), [2]);
    assert_eq!(bench.started.try_iter().flatten().collect::<Vec<_>>(), [2]);
}

#[test]
fn a_running_call_is_told_when_nobody_wants_it() {
    for abandons in [false, true] {
        let (bench, pool) = (bench(), pool(100, 10));
        let call = begin(pool.run(&bench.model, vec![Job { act: Act::Ask, ..job(0, 10) }], INTERACTIVE));
        assert_eq!(bench.started.recv().unwrap(), [0]);
        let call = (!abandons).then_some(call);
        drop(bench.open);
        assert_eq!(bench.told.recv().unwrap(), !abandons);
        // Dropping the pool joins the worker: it neither hangs nor dies of an answer that nobody takes.
        drop(call);
        drop(pool);
    }
}

#[test]
fn a_late_call_is_refused_or_given_up_and_never_computed() {
    let (bench, pool) = (bench(), pool(100, 10));
    let runtime = runtime();
    let _context = runtime.enter();
    let past = Call { deadline: Some(Instant::now()), ..INTERACTIVE };
    let refused = runtime.block_on(pool.run(&bench.model, vec![job(0, 1)], past));
    assert!(matches!(refused, Err(Error::Late)), "{refused:?}");
    let running = begin(pool.run(&bench.model, vec![job(1, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [1]);
    let soon = Call { deadline: Some(Instant::now() + Duration::from_millis(1)), ..INTERACTIVE };
    let late = runtime.block_on(pool.run(&bench.model, vec![job(2, 10)], soon));
    assert!(matches!(late, Err(Error::Late)), "{late:?}");
    assert_eq!(pool.load().queued_units, 0);
    drop(bench.open);
    runtime.block_on(running).unwrap();
    drop(pool);
    assert_eq!(bench.started.try_iter().count(), 0);
}

#[test]
fn the_late_give_way_before_anybody_is_refused() {
    let (bench, pool) = (bench(), pool(100, 10));
    let runtime = runtime();
    let _context = runtime.enter();
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let deadline = Instant::now() + Duration::from_millis(5);
    let late = begin(pool.run(&bench.model, vec![job(1, 100)], Call { deadline: Some(deadline), ..INTERACTIVE }));
    // Its own timer is not driven here, so it stays in the queue beyond its deadline.
    while Instant::now() <= deadline {
        std::hint::spin_loop();
    }
    let admitted = begin(pool.run(&bench.model, vec![job(2, 100)], INTERACTIVE));
    drop((bench.open, late));
    runtime.block_on(running).unwrap();
    assert_eq!(names(runtime.block_on(admitted)), [2]);
}

#[test]
fn a_panicking_model_fails_its_items_and_the_pool_lives() {
    let (bench, pool) = (bench(), pool(100, 10));
    drop(bench.open);
    let runtime = runtime();
    let jobs = vec![Job { act: Act::Panic, ..job(0, 10) }, job(1, 9)];
    let done = runtime.block_on(pool.run(&bench.model, jobs, INTERACTIVE)).unwrap();
    assert_eq!(done.results[0].as_ref().unwrap_err().reason, Reason::Engine);
    assert_eq!(done.results[1], Ok(1));
    assert_eq!(pool.load().panics, 1);
    assert_eq!(names(runtime.block_on(pool.run(&bench.model, vec![job(2, 1)], INTERACTIVE))), [2]);
}

#[test]
fn a_poison_input_fails_alone_whatever_it_does_to_those_beside_it() {
    for (act, panics) in [(Act::Panic, 1), (Act::Harm, 0)] {
        let (bench, pool) = (bench(), pool(1000, 100));
        drop(bench.open);
        let mut jobs: Vec<_> = (0..8).map(|name| job(name, 10)).collect();
        jobs[5].act = act;
        let done = runtime().block_on(pool.run(&bench.model, jobs, INTERACTIVE)).unwrap();
        for (name, result) in (0..).zip(done.results) {
            assert_eq!(result.map_err(|error| error.reason), if name == 5 { Err(Reason::Engine) } else { Ok(name) });
        }
        let runs: Vec<_> = bench.started.try_iter().collect();
        let expected: [&[u32]; 7] =
            [&[0, 1, 2, 3, 4, 5, 6, 7], &[0, 1, 2, 3], &[4, 5, 6, 7], &[4, 5], &[4], &[5], &[6, 7]];
        assert_eq!(runs, expected);
        assert_eq!(pool.load().panics, panics, "a chunk counts once");
    }
}

#[test]
fn a_failure_that_is_of_one_input_in_any_case_is_not_looked_for() {
    let (bench, pool) = (bench(), pool(1000, 100));
    drop(bench.open);
    let jobs: Vec<_> = (0..8).map(|name| Job { act: Act::Fail, ..job(name, 10) }).collect();
    let done = runtime().block_on(pool.run(&bench.model, jobs, INTERACTIVE)).unwrap();
    assert!(done.results.iter().all(|result| result.as_ref().is_err_and(|error| error.reason == Reason::Engine)));
    assert_eq!(bench.started.try_iter().collect::<Vec<_>>(), [[0, 1, 2, 3, 4, 5, 6, 7]]);
}

#[test]
fn nobody_looks_for_the_poison_in_what_nobody_waits_for() {
    let (bench, pool) = (bench(), pool(100, 100));
    let abandoned = begin(pool.run(&bench.model, vec![Job { act: Act::Panic, ..job(0, 10) }, job(1, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0, 1]);
    drop(abandoned);
    drop(bench.open);
    drop(pool);
    assert_eq!(bench.started.try_iter().count(), 0);
}

#[test]
fn who_waits_for_his_turn_is_never_refused_and_leaves_room_for_others() {
    let (bench, pool) = (bench(), pool(100, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    // A quarter of the bound is for those of a lane who wait; one that is larger than all of it goes alone.
    let first = begin(pool.run_in_turn(&bench.model, vec![job(1, 20)], BATCH));
    let large = begin(pool.run_in_turn(&bench.model, vec![job(2, 1000)], BATCH));
    let small = begin(pool.run_in_turn(&bench.model, vec![job(3, 1)], BATCH));
    assert_eq!(pool.load().queued_units, 20, "first come, first served: the small one passes nobody");
    let other = begin(pool.run(&bench.model, vec![job(4, 80)], INTERACTIVE));
    let full = begin_refused(pool.run(&bench.model, vec![job(5, 1)], INTERACTIVE));
    assert!(matches!(full, Error::Full { queued: 100, .. }), "{full:?}");
    drop(bench.open);
    let runtime = runtime();
    for (call, name) in [(running, 0), (first, 1), (other, 4), (large, 2), (small, 3)] {
        assert_eq!(names(runtime.block_on(call)), [name]);
    }
    assert_eq!(bench.started.try_iter().flatten().collect::<Vec<_>>(), [4, 1, 2, 3]);
}

#[test]
fn who_waits_for_an_answer_stands_behind_no_bulk_work() {
    let (bench, pool) = (bench(), pool(100, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let mut bulk: Vec<_> =
        (100..110).map(|name| begin(pool.run_in_turn(&bench.model, vec![job(name, 25)], BATCH))).collect();
    let interactive = begin(pool.run_in_turn(&bench.model, vec![job(1, 25)], INTERACTIVE));
    // One bulk batch has its turn and nine wait for theirs; nothing of that holds up the other lane.
    assert_eq!(pool.load().queued_units, 50);
    drop(bench.open);
    let runtime = runtime();
    runtime.block_on(running).unwrap();
    assert_eq!(names(runtime.block_on(interactive)), [1]);
    for (call, name) in bulk.drain(..).zip(100..) {
        assert_eq!(names(runtime.block_on(call)), [name]);
    }
    let order: Vec<u32> = bench.started.try_iter().flatten().collect();
    assert_eq!(order, [1].into_iter().chain(100..110).collect::<Vec<_>>());
}

#[test]
fn a_turn_is_given_back_by_those_who_go() {
    let (bench, pool) = (bench(), pool(100, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let queued = begin(pool.run_in_turn(&bench.model, vec![job(1, 50)], BATCH));
    let waiting = begin(pool.run_in_turn(&bench.model, vec![job(2, 50)], BATCH));
    let last = begin(pool.run_in_turn(&bench.model, vec![job(3, 50)], BATCH));
    drop((queued, waiting));
    assert_eq!(pool.load().queued_units, 0);
    drop(bench.open);
    let runtime = runtime();
    runtime.block_on(running).unwrap();
    assert_eq!(names(runtime.block_on(last)), [3]);
    assert_eq!(bench.started.try_iter().flatten().collect::<Vec<_>>(), [3]);
}

#[test]
fn a_turn_that_comes_too_late_or_never_is_told() {
    let (bench, pool) = (bench(), pool(100, 10));
    let runtime = runtime();
    let _context = runtime.enter();
    let holding = begin(pool.run_in_turn(&bench.model, vec![job(0, 50)], BATCH));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let soon = Call { deadline: Some(Instant::now() + Duration::from_millis(1)), ..BATCH };
    let late = runtime.block_on(pool.run_in_turn(&bench.model, vec![job(1, 50)], soon));
    assert!(matches!(late, Err(Error::Late)), "{late:?}");
    let waiting = begin(pool.run_in_turn(&bench.model, vec![job(2, 50)], BATCH));
    pool.close();
    let closed = runtime.block_on(waiting);
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
    drop(bench.open);
    assert_eq!(names(runtime.block_on(holding)), [0]);
}

#[test]
fn a_closed_pool_finishes_what_it_has_and_refuses_more() {
    let (bench, pool) = (bench(), pool(100, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10), job(1, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    pool.close();
    let runtime = runtime();
    let refused = runtime.block_on(pool.run(&bench.model, vec![job(2, 1)], INTERACTIVE));
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    drop(bench.open);
    assert_eq!(names(runtime.block_on(running)), [0, 1]);
}

#[test]
fn load_tells_the_work_ahead() {
    let (bench, pool) = (bench(), pool(100, 10));
    assert_eq!(pool.load().queue_ms, 0.0);
    bench.open.send(()).unwrap();
    runtime().block_on(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE)).unwrap();
    let running = begin(pool.run(&bench.model, vec![job(1, 10), job(2, 10)], INTERACTIVE));
    bench.started.recv().unwrap();
    bench.started.recv().unwrap();
    let load = pool.load();
    assert!(load.ms_per_unit > 0.0);
    assert_eq!((load.queued_units, load.running_units, load.workers), (10, 10, 1));
    assert!((load.queue_ms - 20.0 * load.ms_per_unit).abs() < 1e-9);
    drop(bench.open);
    runtime().block_on(running).unwrap();
}
