//! The view on a real terminal, until `q`, Ctrl-C or SIGTERM. However it ends, the terminal is as it was.

use std::{
    io::IsTerminal as _,
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use anyhow::bail;
use proto::gateway::v1::WatchTopologyResponse;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tonic::Streaming;

use super::{
    draw,
    feed::Feed,
    state::{Action, State},
};
use crate::{advice::Advice, call::client::Connection, signals::Signals};

/// How often processes of this machine are looked at.
const LOCAL_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait before connecting again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the thread that reads keys sees whether it is still wanted.
const KEYS_POLL: Duration = Duration::from_millis(50);
/// Keys that wait to be seen to.
const KEYS_MAX: usize = 64;

/// Shows the mesh.
pub(crate) async fn run(feed: &Feed<'_>) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!(Advice::new("standard output is no terminal", "`tamis top --once` prints a snapshot"));
    }
    // Whatever cannot work is said before the screen is taken.
    let first = feed.watch().await?;
    let mut signals = Signals::new()?;
    let screen = Screen::take()?;
    let (_keys, events) = Keys::start()?;
    tokio::select! {
        shown = show(feed, first, screen, events) => shown,
        () = signals.next() => Ok(()),
    }
}

async fn show(feed: &Feed<'_>, first: Watch, mut screen: Screen, mut events: Receiver<Event>) -> anyhow::Result<()> {
    let mut state = State::new(feed.address.clone());
    let mut looks = interval(LOCAL_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut link = Link::Up(Box::new(first));
    loop {
        screen.0.draw(|frame| draw::draw(&state, frame))?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Key(key)) => {
                    if action(key).is_some_and(|action| !state.act(action)) {
                        return Ok(());
                    }
                }
                // A new size is drawn as everything is.
                Some(_) => {}
                None => return Ok(()),
            },
            news = link.next() => match news {
                News::Message(message) => state.update(message.services, message.at),
                News::Ended(why) => {
                    state.trouble = Some(format!("{why}; connecting again"));
                    link = Link::down();
                }
                News::Due => match feed.watch().await {
                    Ok(watch) => link = Link::Up(Box::new(watch)),
                    Err(error) => {
                        state.trouble = Some(format!("{error}; connecting again"));
                        link = Link::down();
                    }
                },
            },
            _ = looks.tick() => state.observe(SystemTime::now(), feed.local()),
        }
    }
}

/// A watch of the gateway's services, and the connection that it needs.
type Watch = (Connection, Streaming<WatchTopologyResponse>);

/// What joins us to the gateway.
enum Link {
    Up(Box<Watch>),
    /// Until when to wait. A time and not a timer: keys and looks come in between, and must not begin the wait anew.
    Down(Instant),
}

/// What a link has to say.
#[derive(Debug)]
enum News {
    Message(WatchTopologyResponse),
    Ended(String),
    /// It is time to connect again.
    Due,
}

impl Link {
    fn down() -> Self {
        Self::Down(Instant::now() + RETRY)
    }

    /// Loses nothing if it is dropped before it is ready.
    async fn next(&mut self) -> News {
        match self {
            Self::Up(watch) => match watch.1.message().await {
                Ok(Some(message)) => News::Message(message),
                Ok(None) => News::Ended("the gateway ended the watch".to_owned()),
                Err(status) => News::Ended(status.message().to_owned()),
            },
            Self::Down(until) => {
                sleep_until(*until).await;
                News::Due
            }
        }
    }
}

/// What a key asks for.
fn action(key: KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        // In raw mode the terminal makes no signal of it.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Action::Quit,
        KeyCode::Char('?' | 'h') => Action::Help,
        KeyCode::Right | KeyCode::Char('>') => Action::OrderNext,
        KeyCode::Left | KeyCode::Char('<') => Action::OrderBefore,
        KeyCode::Up | KeyCode::Char('k') => Action::Up,
        KeyCode::Down | KeyCode::Char('j') => Action::Down,
        _ => return None,
    })
}

/// The terminal in raw mode on its other screen. Given back when dropped; ratatui's hook does so in a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> std::io::Result<Self> {
        Ok(Self(ratatui::try_init()?))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// A thread that reads keys, since reading blocks. It ends when this is dropped.
struct Keys {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keys {
    fn start() -> std::io::Result<(Self, Receiver<Event>)> {
        let (sender, receiver) = channel(KEYS_MAX);
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("keys".to_owned()).spawn(move || read(&sender, &stopped))?;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, receiver))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.stop = None;
        // Were it to panic, its hook has said so.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn read(events: &Sender<Event>, stopped: &mpsc::Receiver<()>) {
    while stopped.recv_timeout(Duration::ZERO) == Err(RecvTimeoutError::Timeout) {
        match event::poll(KEYS_POLL) {
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if events.blocking_send(event).is_err() {
                    return;
                }
            }
            Ok(false) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_meanwhile_does_not_put_off_the_next_attempt() {
        let start = Instant::now();
        let mut link = Link::down();
        let mut looks = interval(LOCAL_INTERVAL / 3);
        let mut seen = 0;
        loop {
            tokio::select! {
                news = link.next() => {
                    assert!(matches!(news, News::Due), "{news:?}");
                    break;
                }
                _ = looks.tick() => seen += 1,
            }
            assert!(seen < 10, "no attempt is ever due");
        }
        assert!(seen > 1 && start.elapsed() < RETRY * 2, "{seen} {:?}", start.elapsed());
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let press = |code| action(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(press(KeyCode::Char('q')), Some(Action::Quit));
        assert_eq!(press(KeyCode::Char('c')), None);
        assert_eq!(press(KeyCode::Right), Some(Action::OrderNext));
        assert_eq!(press(KeyCode::Down), Some(Action::Down));
        assert_eq!(press(KeyCode::Char('?')), Some(Action::Help));
        assert_eq!(action(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Action::Quit));
    }
}
