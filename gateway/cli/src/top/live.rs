//! The view on a real terminal, until `q`, Ctrl-C or SIGTERM. However it ends, the terminal is as it was.

use std::{
    io::IsTerminal as _,
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use anyhow::bail;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    draw,
    feed::Feed,
    state::{Action, State},
};
use crate::{advice::Advice, signals::Signals};

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

async fn show(
    feed: &Feed<'_>,
    first: (crate::call::client::Connection, tonic::Streaming<proto::gateway::v1::WatchTopologyResponse>),
    mut screen: Screen,
    mut events: Receiver<Event>,
) -> anyhow::Result<()> {
    let mut state = State::new(feed.address.clone());
    let mut looks = interval(LOCAL_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stream = Some(first);
    loop {
        screen.0.draw(|frame| draw::draw(&state, frame))?;
        let message = async {
            match &mut stream {
                Some((_, messages)) => Some(messages.message().await),
                None => {
                    sleep(RETRY).await;
                    None
                }
            }
        };
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
            message = message => match message {
                Some(Ok(Some(message))) => state.update(message.services, message.at),
                Some(Ok(None)) => {
                    state.trouble = Some("the gateway ended the watch; connecting again".to_owned());
                    stream = None;
                }
                Some(Err(status)) => {
                    state.trouble = Some(format!("{}; connecting again", status.message()));
                    stream = None;
                }
                None => match feed.watch().await {
                    Ok(watch) => stream = Some(watch),
                    Err(error) => state.trouble = Some(format!("{error}; connecting again")),
                },
            },
            _ = looks.tick() => state.observe(SystemTime::now(), feed.local()),
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
