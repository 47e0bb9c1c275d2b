//! The state on a terminal of any size: a function of both.

use proto::gateway::v1::ReplicaState;
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table},
};

use super::{
    rows::{self, Column, REPLICAS, SERVICES},
    state::State,
};

/// Below this there is no table that anybody could read.
const WIDTH_MIN: u16 = 36;
const HEIGHT_MIN: u16 = 6;
const HELP: &str = "\
left, right   order services by another column
up, down      scroll replicas
?             this help
q, Esc        quit

CALLS/S and FAILED count since the gateway started;
P50 and P99 are those of the last 10 seconds.
BACKLOG is the work that waits for each worker.
MEMORY and CPUS are known for processes of this machine.";

/// Draws everything.
pub(crate) fn draw(state: &State, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        frame.render_widget(Paragraph::new("too small; q quits"), area);
        return;
    }
    let count = u16::try_from(state.services.len()).unwrap_or(u16::MAX);
    let [head, services, gap, replicas, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Max(count.saturating_add(1)),
        Constraint::Max(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(title(state)), head);
    draw_services(state, frame, services);
    frame.render_widget(Paragraph::new(""), gap);
    draw_replicas(state, frame, replicas);
    let keys = format!("order: {}   left/right order   up/down scroll   ? help   q quit", state.order.column());
    frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
    if state.help {
        draw_help(frame, area);
    }
}

fn title(state: &State) -> Line<'_> {
    match &state.trouble {
        Some(trouble) => Line::styled(format!("{}: {trouble}", state.source), Style::new().fg(Color::Red)),
        None if state.services.is_empty() => Line::from(format!("Waiting for {}", state.source)),
        None => Line::styled(format!("Mesh at {}", state.source), Style::new().add_modifier(Modifier::BOLD)),
    }
}

fn draw_services(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let shown = shown(&SERVICES, area.width);
    let rows = rows::services(state).into_iter().map(|cells| row(&SERVICES, &shown, &cells, Style::new()));
    frame.render_widget(table(&SERVICES, &shown, rows, Some(state.order.column())), area);
}

fn draw_replicas(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let shown = shown(&REPLICAS, area.width);
    let rows = rows::replicas(state).into_iter().skip(state.scroll).map(|(cells, state)| {
        let style = match state {
            ReplicaState::Ready => Style::new(),
            ReplicaState::Unreachable => Style::new().fg(Color::Red),
            _ => Style::new().fg(Color::Yellow),
        };
        row(&REPLICAS, &shown, &cells, style)
    });
    frame.render_widget(table(&REPLICAS, &shown, rows, None), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let text = Text::from(HELP);
    let size = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).saturating_add(2);
    let (width, height) = (size(text.width()).min(area.width), size(text.height()).min(area.height));
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" Keys ")), place);
}

/// The columns for which there is room, from the most important ones on.
fn shown<const N: usize>(columns: &[Column; N], width: u16) -> Vec<usize> {
    (0..N).filter(|index| columns[*index].least <= width).collect()
}

fn row<'a>(columns: &[Column], shown: &[usize], cells: &[String], style: Style) -> Row<'a> {
    let cell = |index: &usize| {
        let alignment = if columns[*index].number { Alignment::Right } else { Alignment::Left };
        Cell::from(Text::from(cells[*index].clone()).alignment(alignment))
    };
    Row::new(shown.iter().map(cell).collect::<Vec<_>>()).style(style)
}

fn table<'a>(
    columns: &[Column],
    shown: &[usize],
    rows: impl Iterator<Item = Row<'a>>,
    marked: Option<&str>,
) -> Table<'a> {
    let head = |index: &usize| {
        let column = columns[*index];
        let alignment = if column.number { Alignment::Right } else { Alignment::Left };
        let style = if marked == Some(column.title) { Modifier::REVERSED } else { Modifier::BOLD };
        Cell::from(Text::from(column.title).alignment(alignment)).style(Style::new().add_modifier(style))
    };
    let header = Row::new(shown.iter().map(head).collect::<Vec<_>>());
    let widths = shown.iter().map(|index| Constraint::Length(columns[*index].width)).collect::<Vec<_>>();
    Table::new(rows, widths).header(header).column_spacing(1)
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::state::{Action, tests::state};

    fn screen(state: &State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(state, frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[track_caller]
    fn check(state: &State, (width, height): (u16, u16), parts: &[&str], absent: &[&str]) {
        let screen = screen(state, width, height).join("\n");
        for part in parts {
            assert!(screen.contains(part), "{part} is missing on\n{screen}");
        }
        for part in absent {
            assert!(!screen.contains(part), "{part} should not be on\n{screen}");
        }
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        let parts =
            ["Mesh at", "embedding", "100.0", "20.0 ms", "BACKLOG", "A UNIT", "MEMORY", "unreachable", "q quit"];
        check(&state(), (130, 20), &parts, &[]);
    }

    #[test]
    fn a_narrow_terminal_shows_what_matters_most() {
        check(&state(), (46, 14), &["CALLS/S", "P99", "STATE"], &["MEMORY", "A UNIT", "BACKLOG", "P50"]);
    }

    #[test]
    fn a_terminal_that_is_too_small_says_so() {
        check(&state(), (20, 3), &["too small"], &["embedding"]);
    }

    #[test]
    fn no_size_at_all_breaks_it() {
        let mut state = state();
        for help in [false, true] {
            state.help = help;
            for (width, height) in (1..60).flat_map(|width| (1..16).map(move |height| (width, height))) {
                screen(&state, width, height);
            }
        }
    }

    #[test]
    fn scrolling_moves_the_replicas() {
        let mut state = state();
        state.act(Action::Down);
        let lines = screen(&state, 120, 20);
        let first = lines.iter().position(|line| line.starts_with("REPLICA")).unwrap() + 1;
        assert!(lines[first].starts_with("127.0.0.1:7002"), "{lines:#?}");
    }

    #[test]
    fn help_and_trouble_are_seen() {
        let mut state = state();
        state.help = true;
        check(&state, (100, 20), &["Keys", "order services"], &[]);
        state.trouble = Some("the connection was lost".into());
        check(&state, (100, 20), &["the connection was lost"], &[]);
    }
}
