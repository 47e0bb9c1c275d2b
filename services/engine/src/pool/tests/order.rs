//! Who goes first, and with whom.

use super::*;

#[test]
fn interactive_goes_before_batch_and_batch_is_not_starved() {
    let (bench, pool) = (bench(), pool(10_000, 1));
    let running = begin(pool.run(&bench.model, vec![job(0, 1)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let batch = begin(pool.run(&bench.model, (100..110).map(|name| job(name, 1)).collect(), BATCH));
    let interactive = begin(pool.run(&bench.model, (1..21).map(|name| job(name, 1)).collect(), INTERACTIVE));
    drop(bench.open);
    let runtime = runtime();
    for call in [running, batch, interactive] {
        runtime.block_on(call).unwrap();
    }
    let order: Vec<u32> = bench.started.try_iter().flatten().collect();
    let expected: Vec<u32> = (1..8).chain([100]).chain(8..15).chain([101]).chain(15..21).chain(102..110).collect();
    assert_eq!(order, expected);
}

#[test]
fn a_short_call_waits_for_no_waiting_chunk_of_a_large_one() {
    for call in [INTERACTIVE, BATCH] {
        let (bench, pool) = (bench(), pool(10_000, 10));
        let large = begin(pool.run(&bench.model, (100..200).map(|name| job(name, 10)).collect(), call));
        assert_eq!(bench.started.recv().unwrap(), [100]);
        let short = [1, 2].map(|name| begin(pool.run(&bench.model, vec![job(name, 6)], INTERACTIVE)));
        drop(bench.open);
        let runtime = runtime();
        for (call, name) in short.into_iter().zip(1..) {
            assert_eq!(names(runtime.block_on(call)), [name]);
        }
        assert_eq!(names(runtime.block_on(large)), (100..200).collect::<Vec<_>>());
        let order: Vec<u32> = bench.started.try_iter().flatten().collect();
        assert_eq!(order, [1, 2].into_iter().chain(101..200).collect::<Vec<_>>());
    }
}

#[test]
fn a_flow_of_short_calls_leaves_every_eighth_chunk_to_a_large_one() {
    let (bench, pool) = (bench(), pool(10_000, 10));
    let large = begin(pool.run(&bench.model, (100..104).map(|name| job(name, 10)).collect(), INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [100]);
    let short: Vec<_> = (0..28).map(|name| begin(pool.run(&bench.model, vec![job(name, 10)], INTERACTIVE))).collect();
    drop(bench.open);
    let runtime = runtime();
    runtime.block_on(large).unwrap();
    for call in short {
        runtime.block_on(call).unwrap();
    }
    let order: Vec<u32> = bench.started.try_iter().flatten().collect();
    let expected = (0..7).chain([101]).chain(7..14).chain([102]).chain(14..21).chain([103]).chain(21..28);
    assert_eq!(order, expected.collect::<Vec<_>>());
}

#[test]
fn a_short_call_is_not_computed_beside_bulk_work() {
    let (bench, pool) = (bench(), pool(1000, 100));
    let running = begin(pool.run(&bench.model, vec![job(0, 100)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let large = begin(pool.run(&bench.model, vec![job(1, 80), job(2, 30)], INTERACTIVE));
    let bulk = begin(pool.run(&bench.model, vec![job(3, 5)], BATCH));
    let short = begin(pool.run(&bench.model, vec![job(4, 5)], INTERACTIVE));
    drop(bench.open);
    let runtime = runtime();
    for call in [running, large, bulk, short] {
        runtime.block_on(call).unwrap();
    }
    assert_eq!(bench.started.try_iter().collect::<Vec<_>>(), [vec![1, 4], vec![2], vec![3]]);
}

#[test]
fn a_worker_tops_up_with_the_same_model_only() {
    let (one, other, pool) = (bench(), bench(), pool(1000, 100));
    let running = begin(pool.run(&one.model, vec![job(0, 100)], INTERACTIVE));
    assert_eq!(one.started.recv().unwrap(), [0]);
    let calls = [
        begin(pool.run(&one.model, vec![job(1, 40)], INTERACTIVE)),
        begin(pool.run(&other.model, vec![job(2, 40)], INTERACTIVE)),
        begin(pool.run(&one.model, vec![job(3, 40)], INTERACTIVE)),
        begin(pool.run(&one.model, vec![job(4, 40)], INTERACTIVE)),
    ];
    drop((one.open, other.open));
    let runtime = runtime();
    runtime.block_on(running).unwrap();
    let results: HashMap<usize, Vec<u32>> =
        calls.into_iter().enumerate().map(|(index, call)| (index, names(runtime.block_on(call)))).collect();
    assert_eq!(results, HashMap::from([(0, vec![1]), (1, vec![2]), (2, vec![3]), (3, vec![4])]));
    assert_eq!(one.started.try_iter().collect::<Vec<_>>(), [vec![1, 3], vec![4]]);
    assert_eq!(other.started.try_iter().collect::<Vec<_>>(), [vec![2]]);
}

#[test]
fn what_an_idle_worker_could_compute_is_not_topped_up() {
    let bench = bench();
    let pool = start(PoolSettings { workers: 2, ..settings(100) }, DeviceChoice::Cpu);
    while pool.shared.state().idle < 2 {
        thread::yield_now();
    }
    let calls = [1, 2].map(|name| begin(pool.run(&bench.model, vec![job(name, 10)], INTERACTIVE)));
    let mut started = [bench.started.recv().unwrap(), bench.started.recv().unwrap()];
    started.sort();
    assert_eq!(started, [[1], [2]]);
    drop(bench.open);
    for call in calls {
        runtime().block_on(call).unwrap();
    }
}

#[test]
fn idle_workers_share_a_call_that_one_could_take() {
    let bench = bench();
    let pool = start(PoolSettings { workers: 2, ..settings(256) }, DeviceChoice::Cpu);
    while pool.shared.state().idle < 2 {
        thread::yield_now();
    }
    let shared = begin(pool.run(&bench.model, (0..4).map(|name| job(name, 50)).collect(), INTERACTIVE));
    let mut started = [bench.started.recv().unwrap(), bench.started.recv().unwrap()];
    started.sort();
    assert_eq!(started, [[0, 1], [2, 3]]);
    // Nobody is idle now: the next one stays whole.
    let whole = begin(pool.run(&bench.model, (4..8).map(|name| job(name, 50)).collect(), INTERACTIVE));
    drop(bench.open);
    let runtime = runtime();
    assert_eq!(names(runtime.block_on(shared)), [0, 1, 2, 3]);
    assert_eq!(names(runtime.block_on(whole)), [4, 5, 6, 7]);
    assert_eq!(bench.started.try_iter().collect::<Vec<_>>(), [[4, 5, 6, 7]]);
}

#[test]
fn a_device_computes_together_what_waits_of_a_model() {
    let bench = bench();
    let pool = start(settings(10), DeviceChoice::Cuda(0));
    assert_eq!(pool.load().workers, 1);
    let large = begin(pool.run(&bench.model, (0..4).map(|name| job(name, 30)).collect(), INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0, 1, 2]);
    let bulk = begin(pool.run(&bench.model, vec![job(4, 20)], BATCH));
    let short = begin(pool.run(&bench.model, vec![job(5, 20)], INTERACTIVE));
    drop(bench.open);
    let runtime = runtime();
    for call in [large, bulk, short] {
        runtime.block_on(call).unwrap();
    }
    assert_eq!(bench.started.try_iter().collect::<Vec<_>>(), [[5, 3, 4]]);
}

#[test]
fn a_short_call_waits_for_one_step_of_a_long_input() {
    let (bench, pool) = (bench(), pool(1000, 10));
    let long = begin(pool.run(&bench.model, vec![Job { act: Act::Step, ..job(0, 35) }], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let short = [1, 2].map(|name| begin(pool.run(&bench.model, vec![job(name, 10)], INTERACTIVE)));
    bench.open.send(()).unwrap();
    assert_eq!(bench.started.recv().unwrap(), [1]);
    assert_eq!((pool.load().running_units, pool.load().queued_units), (10, 25 + 10));
    drop(bench.open);
    let runtime = runtime();
    assert_eq!(names(runtime.block_on(long)), [0]);
    for (call, name) in short.into_iter().zip(1..) {
        assert_eq!(names(runtime.block_on(call)), [name]);
    }
    assert_eq!(bench.started.try_iter().collect::<Vec<_>>(), [[2], [0], [0], [0]]);
    assert_eq!(pool.load().queued_units, 0);
}

#[test]
fn an_input_that_takes_steps_has_its_place_among_the_others() {
    let (bench, pool) = (bench(), pool(1000, 10));
    drop(bench.open);
    let long = |name| Job { act: Act::Step, ..job(name, 25) };
    let jobs = vec![job(0, 3), long(1), job(2, 3), long(3), Job { act: Act::Fail, ..job(4, 3) }];
    let done = runtime().block_on(pool.run(&bench.model, jobs, INTERACTIVE)).unwrap();
    let results: Vec<_> = done.results.into_iter().map(|result| result.map_err(|error| error.reason)).collect();
    assert_eq!(results, [Ok(0), Ok(1), Ok(2), Ok(3), Err(Reason::Engine)]);
    assert_eq!(done.timing.units, 59);
}

#[test]
fn what_found_no_room_beside_others_goes_before_later_parts() {
    let (bench, pool) = (bench(), pool(1000, 10));
    let running = begin(pool.run(&bench.model, vec![job(0, 10)], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    let alone = |name| Job { act: Act::Alone, ..job(name, 4) };
    let shared = begin(pool.run(&bench.model, vec![alone(1), alone(2), job(3, 10)], INTERACTIVE));
    let short = [4, 5].map(|name| begin(pool.run(&bench.model, vec![alone(name)], INTERACTIVE)));
    drop(bench.open);
    let runtime = runtime();
    runtime.block_on(running).unwrap();
    assert_eq!(names(runtime.block_on(shared)), [1, 2, 3]);
    for (call, name) in short.into_iter().zip(4..) {
        assert_eq!(names(runtime.block_on(call)), [name]);
    }
    // The second short call stays in front of the large call's second chunk.
    assert_eq!(bench.started.try_iter().collect::<Vec<_>>(), [&[3][..], &[4, 5], &[5], &[1, 2], &[2]]);
    assert_eq!((pool.load().queued_units, pool.load().running_units), (0, 0));
}

#[test]
fn the_rest_of_an_input_that_nobody_wants_is_not_computed() {
    let (bench, pool) = (bench(), pool(1000, 10));
    let long = begin(pool.run(&bench.model, vec![Job { act: Act::Step, ..job(0, 35) }], INTERACTIVE));
    assert_eq!(bench.started.recv().unwrap(), [0]);
    drop(long);
    drop(bench.open);
    drop(pool);
    assert_eq!(bench.started.try_iter().count(), 0);
}
