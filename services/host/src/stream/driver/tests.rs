use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chassis::load::Cost;
use proto::common::v1::{self as pb, ErrorReason};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{refusal, stream::Answer};

/// What a fake batch carries: what becomes of it, and who says when.
struct Job {
    answer: Result<u64, Refusal>,
    gate: Option<oneshot::Receiver<()>>,
    /// Closes when the batch is given up.
    alive: Option<mpsc::Sender<()>>,
}

enum Wire {
    Config { unordered: bool },
    Items(u64, Job),
    Nothing,
}

#[derive(Debug, PartialEq)]
struct Reply {
    sequence: u64,
    error: Option<ErrorReason>,
    first: bool,
}

struct Fake {
    started: Arc<Mutex<Vec<u64>>>,
    unloaded: Arc<AtomicBool>,
}

impl Batches for Fake {
    type Items = Job;
    type Response = Reply;

    async fn answer(&self, batch: Batch<Job>, _call: Call) -> Result<Answer<Reply>, Refusal> {
        self.started.lock().unwrap().push(batch.sequence);
        let Job { answer, gate, alive } = batch.items;
        if let Some(gate) = gate {
            gate.await.unwrap();
        }
        drop(alive);
        let response = Reply { sequence: batch.sequence, error: None, first: false };
        Ok(Answer { response, cost: Cost { units: answer?, compute_ms: 1.0 } })
    }

    fn failed(&self, sequence: u64, error: pb::ItemError) -> Reply {
        Reply { sequence, error: Some(error.reason()), first: false }
    }

    fn are_current(&self) -> bool {
        !self.unloaded.load(Ordering::Relaxed)
    }

    fn introduce(&self, first: &mut Reply) {
        first.first = true;
    }
}

const IDLE_MAX: Duration = Duration::from_secs(60);

/// A stream under test.
struct Bench {
    client: mpsc::UnboundedSender<Result<Wire, Status>>,
    answers: Answers<Reply>,
    started: Arc<Mutex<Vec<u64>>>,
    readiness: readiness::Readiness,
    changes: watch::Sender<()>,
    unloaded: Arc<AtomicBool>,
    meter: Meter,
}

fn bench(deadline: Option<Duration>) -> Bench {
    let (client, incoming) = mpsc::unbounded_channel();
    let incoming = Box::pin(stream::unfold(incoming, async |mut incoming: mpsc::UnboundedReceiver<_>| {
        Some((incoming.recv().await?, incoming))
    }));
    let (readiness, meter, started) = (readiness::Readiness::default(), Meter::default(), Arc::default());
    let (changes, unloaded) = (watch::Sender::default(), Arc::<AtomicBool>::default());
    let now = tokio::time::Instant::now().into_std();
    let terms = Terms {
        call: Call { started: now, deadline: deadline.map(|deadline| now + deadline) },
        batches_max: 2,
        idle_max: IDLE_MAX,
        readiness: readiness.subscribe(),
        changes: changes.subscribe(),
        meter: meter.clone(),
    };
    let read = |wire| match wire {
        Wire::Config { unordered } => Some(Message::Config(unordered)),
        Wire::Items(sequence, items) => Some(Message::Batch(Batch { sequence, items })),
        Wire::Nothing => None,
    };
    let batches = Fake { started: Arc::clone(&started), unloaded: Arc::clone(&unloaded) };
    let open: Open<bool, Fake> = Box::new(|unordered| Ok(Opened { batches, unordered }));
    let answers = Driver::new(incoming, read, open, terms).into_answers();
    Bench { client, answers, started, readiness, changes, unloaded, meter }
}

impl Bench {
    fn config(&self, unordered: bool) {
        self.client.send(Ok(Wire::Config { unordered })).unwrap();
    }

    fn send(&self, sequence: u64) {
        self.job(sequence, Job { answer: Ok(10), gate: None, alive: None });
    }

    fn fail(&self, sequence: u64, code: Code, reason: ErrorReason) {
        self.job(sequence, Job { answer: Err(refusal(code, reason, "as asked")), gate: None, alive: None });
    }

    /// Sends a batch that is answered when the key is used.
    fn hold(&self, sequence: u64) -> oneshot::Sender<()> {
        let (key, gate) = oneshot::channel();
        self.job(sequence, Job { answer: Ok(10), gate: Some(gate), alive: None });
        key
    }

    fn job(&self, sequence: u64, job: Job) {
        self.client.send(Ok(Wire::Items(sequence, job))).unwrap();
    }

    /// The next answer's sequence.
    async fn next(&mut self) -> u64 {
        self.answers.next().await.unwrap().unwrap().sequence
    }

    /// Code and reason of the end.
    async fn refused(&mut self) -> (Code, String) {
        let status = self.answers.next().await.unwrap().unwrap_err();
        let details = tonic_types::StatusExt::get_error_details(&status);
        assert!(self.answers.next().await.is_none(), "something comes after the end");
        (status.code(), details.error_info().unwrap().reason.clone())
    }

    /// Lets the stream do what it can without an answer.
    async fn settle(&mut self) {
        let mut answers = poll_once(&mut self.answers);
        for _ in 0..20 {
            assert!(answers().is_none(), "there is an answer");
            tokio::task::yield_now().await;
        }
    }
}

/// Polls once and gives the answer, if there is one.
fn poll_once<'a>(answers: &'a mut Answers<Reply>) -> impl FnMut() -> Option<Result<Reply, Status>> + 'a {
    || match answers.poll_next_unpin(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => None,
    }
}

const BAD: (Code, &str) = (Code::InvalidArgument, "BAD_PARAMETER");

#[tokio::test]
async fn answers_come_in_order_and_the_first_one_introduces_the_stream() {
    let mut bench = bench(None);
    bench.config(false);
    let key = bench.hold(3);
    bench.send(7);
    bench.settle().await;
    key.send(()).unwrap();
    let first = bench.answers.next().await.unwrap().unwrap();
    assert_eq!(first, Reply { sequence: 3, error: None, first: true });
    let second = bench.answers.next().await.unwrap().unwrap();
    assert_eq!(second, Reply { sequence: 7, error: None, first: false });
    let Bench { client, mut answers, meter, .. } = bench;
    drop(client);
    assert!(answers.next().await.is_none());
    assert_eq!(meter.total(), Cost { units: 20, compute_ms: 2.0 });
}

#[tokio::test]
async fn unordered_answers_come_as_they_are_ready() {
    let mut bench = bench(None);
    bench.config(true);
    let key = bench.hold(1);
    bench.send(2);
    let first = bench.answers.next().await.unwrap().unwrap();
    assert_eq!(first, Reply { sequence: 2, error: None, first: true });
    key.send(()).unwrap();
    assert_eq!(bench.next().await, 1);
}

#[tokio::test]
async fn no_more_is_read_than_may_be_in_flight() {
    let mut bench = bench(None);
    bench.config(false);
    let key = bench.hold(1);
    (2..10).for_each(|sequence| bench.send(sequence));
    bench.settle().await;
    // Done or not, a batch that is not answered is in flight.
    assert_eq!(*bench.started.lock().unwrap(), [1, 2]);
    key.send(()).unwrap();
    for sequence in 1..10 {
        assert_eq!(bench.next().await, sequence);
    }
}

#[tokio::test]
async fn a_batch_that_fails_has_its_error_and_the_stream_goes_on() {
    let mut bench = bench(None);
    bench.config(false);
    bench.fail(1, Code::InvalidArgument, ErrorReason::TooManyItems);
    bench.send(2);
    let failed = bench.answers.next().await.unwrap().unwrap();
    assert_eq!(failed, Reply { sequence: 1, error: Some(ErrorReason::TooManyItems), first: true });
    assert_eq!(bench.next().await, 2);
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_one_config_is_refused() {
    for first in [Wire::Nothing, Wire::Items(1, Job { answer: Ok(1), gate: None, alive: None })] {
        let mut bench = bench(None);
        bench.client.send(Ok(first)).unwrap();
        assert_eq!(bench.refused().await, (BAD.0, BAD.1.to_owned()));
    }
    let empty = bench(None);
    drop(empty.client);
    let status = { empty.answers }.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let mut twice = bench(None);
    twice.config(false);
    twice.config(false);
    assert_eq!(twice.refused().await, (BAD.0, BAD.1.to_owned()));
}

#[tokio::test]
async fn a_sequence_that_does_not_rise_ends_the_stream_after_what_was_read() {
    for second in [4, 5] {
        let mut bench = bench(None);
        bench.config(false);
        let key = bench.hold(5);
        bench.send(second);
        bench.settle().await;
        key.send(()).unwrap();
        assert_eq!(bench.next().await, 5);
        assert_eq!(bench.refused().await, (BAD.0, BAD.1.to_owned()));
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_read_ends_the_stream() {
    let mut bench = bench(None);
    bench.config(false);
    bench.client.send(Err(Status::out_of_range("too large"))).unwrap();
    assert_eq!(bench.refused().await, (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn a_draining_server_answers_what_it_has_read_and_sends_the_client_elsewhere() {
    let mut bench = bench(None);
    bench.config(false);
    let key = bench.hold(1);
    bench.settle().await;
    bench.readiness.drain();
    bench.settle().await;
    bench.send(2);
    key.send(()).unwrap();
    assert_eq!(bench.next().await, 1);
    assert_eq!(bench.refused().await, (Code::Unavailable, "DRAINING".to_owned()));
    assert_eq!(*bench.started.lock().unwrap(), [1]);
}

#[tokio::test]
async fn a_stream_whose_model_is_unloaded_answers_what_it_has_read_and_lets_go_of_it() {
    let mut bench = bench(None);
    bench.config(false);
    let key = bench.hold(1);
    bench.changes.send_replace(());
    bench.settle().await;
    bench.send(2);
    bench.settle().await;
    assert_eq!(*bench.started.lock().unwrap(), [1, 2], "other models are of no concern");
    bench.unloaded.store(true, Ordering::Relaxed);
    bench.changes.send_replace(());
    bench.settle().await;
    bench.send(3);
    key.send(()).unwrap();
    assert_eq!((bench.next().await, bench.next().await), (1, 2));
    assert_eq!(bench.refused().await, (Code::Unavailable, "DRAINING".to_owned()));
    assert_eq!(*bench.started.lock().unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_pool_that_closes_ends_the_stream_without_an_answer_to_its_batch() {
    let mut bench = bench(None);
    bench.config(false);
    let key = bench.hold(1);
    bench.fail(2, Code::Unavailable, ErrorReason::Draining);
    bench.settle().await;
    key.send(()).unwrap();
    assert_eq!(bench.next().await, 1);
    assert_eq!(bench.refused().await, (Code::Unavailable, "DRAINING".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_cuts_the_stream_and_what_runs() {
    let mut bench = bench(Some(Duration::from_secs(5)));
    bench.config(false);
    let (alive, mut ended) = mpsc::channel(1);
    let (_key, gate) = oneshot::channel();
    bench.job(1, Job { answer: Ok(1), gate: Some(gate), alive: Some(alive) });
    assert_eq!(bench.refused().await, (Code::DeadlineExceeded, "DEADLINE".to_owned()));
    assert!(ended.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_on_which_nothing_happens_ends() {
    let cancelled = (Code::Cancelled, "CANCELLED".to_owned());
    let opened = tokio::time::Instant::now();
    let mut silent = bench(None);
    assert_eq!(silent.refused().await, cancelled, "a stream that sends no config");
    assert_eq!(opened.elapsed(), IDLE_MAX);
    let mut configured = bench(Some(Duration::from_secs(3600)));
    configured.config(false);
    configured.send(1);
    assert_eq!(configured.next().await, 1);
    let answered = tokio::time::Instant::now();
    assert_eq!(configured.refused().await, cancelled, "a stream that sends no more");
    assert_eq!(answered.elapsed(), IDLE_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_not_idle_while_messages_come_or_a_batch_is_computed() {
    let mut bench = bench(None);
    bench.config(false);
    for sequence in 1..4 {
        tokio::time::advance(IDLE_MAX - Duration::from_secs(1)).await;
        bench.send(sequence);
        assert_eq!(bench.next().await, sequence);
    }
    let key = bench.hold(4);
    bench.settle().await;
    tokio::time::advance(3 * IDLE_MAX).await;
    bench.settle().await;
    key.send(()).unwrap();
    assert_eq!(bench.next().await, 4);
    // What has come is read first, however late the stream is looked at.
    tokio::time::advance(3 * IDLE_MAX).await;
    bench.send(5);
    assert_eq!(bench.next().await, 5);
}

#[tokio::test]
async fn a_client_that_goes_gives_up_what_runs() {
    let mut bench = bench(None);
    bench.config(false);
    let (alive, mut ended) = mpsc::channel(1);
    let (_key, gate) = oneshot::channel();
    bench.job(1, Job { answer: Ok(1), gate: Some(gate), alive: Some(alive) });
    bench.settle().await;
    drop(bench.answers);
    assert!(ended.recv().await.is_none());
}

#[test]
fn the_reason_of_a_batch_is_that_of_its_refusal() {
    for reason in [ErrorReason::EmptyInput, ErrorReason::TooManyItems, ErrorReason::Engine] {
        assert_eq!(status::to_item(&refusal(Code::InvalidArgument, reason, "so")).reason(), reason);
    }
}
