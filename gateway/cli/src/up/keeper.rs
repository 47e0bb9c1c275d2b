//! Keeps one process alive until it is told to let it go.

use std::{
    ffi::OsString,
    fmt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    process::{Child, ChildStdin, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{log, restarts::Restarts};

/// How long a process may take to drain once its input ends; then it is killed. Longer than the defaults of
/// `server.drain_delay` and `server.drain_timeout` together, after which a process ends by itself.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// A process that can be started, and started again.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Where its output goes.
    pub(crate) log: PathBuf,
}

/// What a group of processes is to do; a later order outranks an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Run; whoever dies is not started again before the order to keep, since something is wrong from the start.
    Start,
    /// Run; whoever dies is started again.
    Keep,
    /// Finish what is in flight and end.
    Drain,
    /// End now.
    Kill,
}

/// What happened to a process.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) what: What,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum What {
    /// It runs, under this process id.
    Started(Option<u32>),
    /// It ended by itself.
    Died(Death),
}

/// An end that nobody asked for.
#[derive(Debug)]
pub(crate) struct Death {
    /// How it ended, in words.
    pub(crate) how: String,
    /// The end of its log.
    pub(crate) tail: String,
    /// What follows.
    pub(crate) next: Next,
}

/// What follows upon a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is started again after a pause.
    Restart(Duration),
    /// It stays down.
    Stay,
}

/// How a process ended that was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Drained,
    /// It took too long, or the order was to kill it.
    Killed,
    /// It was down already.
    Down,
}

/// Gives orders to a group.
#[derive(Clone)]
pub(crate) struct Orders(watch::Sender<Order>);

/// Processes that take orders together.
pub(crate) struct Group {
    orders: Orders,
    events: mpsc::Sender<Event>,
    keepers: Vec<(String, JoinHandle<End>)>,
}

// === impl Orders ===

impl Orders {
    /// Gives an order, unless a later one was given already.
    pub(crate) fn give(&self, order: Order) {
        self.0.send_if_modified(|now| {
            let later = order > *now;
            *now = order.max(*now);
            later
        });
    }
}

// === impl Group ===

impl Group {
    /// No process yet; what happens to them is sent to `events`.
    pub(crate) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { orders: Orders(watch::Sender::new(Order::Start)), events, keepers: Vec::new() }
    }

    /// Starts a process and keeps it.
    pub(crate) fn keep(&mut self, process: Process) {
        let name = process.name.clone();
        let keeper = Keeper { process, orders: self.orders.0.subscribe(), events: self.events.clone() };
        self.keepers.push((name, tokio::spawn(keeper.run())));
    }

    /// Gives an order, unless a later one was given already.
    pub(crate) fn order(&self, order: Order) {
        self.orders.give(order);
    }

    /// For giving orders while somebody waits for the end.
    pub(crate) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Waits for all processes to end; says how they did.
    pub(crate) async fn ended(&mut self) -> Vec<(String, End)> {
        let mut ends = Vec::new();
        while let Some((name, keeper)) = self.keepers.last_mut() {
            // A keeper that panicked has dropped its child, and with it killed it.
            let end = keeper.await.unwrap_or(End::Killed);
            ends.push((std::mem::take(name), end));
            self.keepers.pop();
        }
        ends.reverse();
        ends
    }
}

// === impl Keeper ===

struct Keeper {
    process: Process,
    orders: watch::Receiver<Order>,
    events: mpsc::Sender<Event>,
}

impl Keeper {
    async fn run(mut self) -> End {
        let mut restarts = Restarts::default();
        loop {
            // Where this life begins in the log.
            let from = std::fs::metadata(&self.process.log).map_or(0, |metadata| metadata.len());
            let how = match self.process.start() {
                Ok(mut live) => {
                    self.tell(What::Started(live.child.id())).await;
                    tokio::select! {
                        status = live.child.wait() => status.map_or_else(|error| error.to_string(), describe),
                        () = told(&mut self.orders, Order::Drain) => return self.stop(live).await,
                    }
                }
                Err(error) => format!("cannot be started: {error}"),
            };
            let pause = restarts.next(Instant::now());
            let next = pause.map_or(Next::Stay, Next::Restart);
            self.tell(What::Died(Death { how, tail: log::tail(&self.process.log, from), next })).await;
            let again = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            told(&mut self.orders, Order::Keep).await;
            tokio::select! {
                biased;
                () = told(&mut self.orders, Order::Drain) => return End::Down,
                () = again => {}
            }
        }
    }

    /// The end of its input tells a process to drain; no signal is needed, and it works too when this process is killed.
    async fn stop(&mut self, live: Live) -> End {
        let Live { mut child, input } = live;
        drop(input);
        tokio::select! {
            drained = timeout(DRAIN_MAX, child.wait()) => if drained.is_ok() { return End::Drained },
            () = told(&mut self.orders, Order::Kill) => {}
        }
        // It fails only where the process has just ended.
        let _ = child.kill().await;
        End::Killed
    }

    async fn tell(&self, what: What) {
        // Nobody listens any more once the mesh is being stopped.
        let _ = self.events.send(Event { name: self.process.name.clone(), what }).await;
    }
}

/// Waits for an order at least as late as this one; orders that can no longer come mean the end too.
async fn told(orders: &mut watch::Receiver<Order>, order: Order) {
    let _ = orders.wait_for(|now| *now >= order).await;
}

// === impl Process ===

/// A process that runs.
struct Live {
    child: Child,
    /// Apart from the child, since waiting for a child closes the input that it holds, which would drain it.
    input: Option<ChildStdin>,
}

impl Process {
    fn start(&self) -> std::io::Result<Live> {
        let log = log::append(&self.log)?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            // Its end is the order to drain; held open by this process alone, it also ends when this process is killed.
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own, so that Ctrl-C on the terminal reaches this process only, which knows the order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take();
        Ok(Live { child, input })
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

// === impl End ===

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drained => "stopped",
            Self::Killed => "killed",
            Self::Down => "was down",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    struct Stage {
        group: Group,
        events: mpsc::Receiver<Event>,
        _place: tempfile::TempDir,
    }

    fn process(script: &str, place: &Path) -> Process {
        Process {
            name: "demo".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log: place.join("demo.log"),
        }
    }

    fn stage(script: &str, order: Order) -> Stage {
        let place = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::channel(8);
        let mut group = Group::new(sender);
        group.order(order);
        group.keep(process(script, place.path()));
        Stage { group, events, _place: place }
    }

    impl Stage {
        async fn started(&mut self) -> u32 {
            match self.events.recv().await.unwrap().what {
                What::Started(pid) => pid.unwrap(),
                What::Died(death) => panic!("died: {death:?}"),
            }
        }

        async fn died(&mut self) -> Death {
            match self.events.recv().await.unwrap().what {
                What::Died(death) => death,
                What::Started(_) => panic!("started"),
            }
        }
    }

    #[tokio::test]
    async fn the_end_of_its_input_drains_a_process() {
        let mut stage = stage("cat", Order::Keep);
        stage.started().await;
        stage.group.order(Order::Drain);
        assert_eq!(stage.group.ended().await, [("demo".to_owned(), End::Drained)]);
    }

    #[tokio::test]
    async fn waiting_for_a_process_leaves_its_input_open() {
        let place = tempfile::tempdir().unwrap();
        let process = process("read line; echo got $line; exit 3", place.path());
        let mut live = process.start().unwrap();
        tokio::select! {
            biased;
            _ = live.child.wait() => panic!("it waits for its input"),
            () = std::future::ready(()) => {}
        }
        live.input.as_mut().unwrap().write_all(b"a line\n").await.unwrap();
        assert_eq!(describe(live.child.wait().await.unwrap()), "ended with exit code 3");
        assert_eq!(log::tail(&process.log, 0), "    got a line");
    }

    #[tokio::test]
    async fn a_process_that_does_not_drain_can_be_killed() {
        let mut stage = stage("while :; do sleep 1; done", Order::Keep);
        stage.started().await;
        stage.group.order(Order::Drain);
        stage.group.order(Order::Kill);
        assert_eq!(stage.group.ended().await, [("demo".to_owned(), End::Killed)]);
    }

    #[tokio::test]
    async fn a_process_that_dies_is_started_again() {
        let mut stage = stage("echo broken; exit 3", Order::Keep);
        stage.started().await;
        let death = stage.died().await;
        assert_eq!((death.how.as_str(), death.tail.as_str()), ("ended with exit code 3", "    broken"));
        assert!(matches!(death.next, Next::Restart(_)));
        stage.started().await;
        stage.group.order(Order::Kill);
        stage.group.ended().await;
    }

    #[tokio::test]
    async fn a_process_that_dies_at_the_start_is_down_until_the_order_to_keep() {
        let mut stage = stage("exit 1", Order::Start);
        stage.started().await;
        stage.died().await;
        assert!(stage.events.try_recv().is_err());
        stage.group.order(Order::Keep);
        stage.started().await;
    }

    #[tokio::test]
    async fn a_process_that_is_down_ends_with_its_group() {
        let mut stage = stage("exit 1", Order::Start);
        stage.started().await;
        stage.died().await;
        stage.group.order(Order::Drain);
        assert_eq!(stage.group.ended().await, [("demo".to_owned(), End::Down)]);
    }

    #[tokio::test]
    async fn an_earlier_order_does_not_undo_a_later_one() {
        let stage = stage("cat", Order::Drain);
        stage.group.order(Order::Keep);
        assert_eq!(*stage.group.orders.0.borrow(), Order::Drain);
    }
}
