//! The state as rows of text, for the terminal and for `--once`.

use chassis::units::ByteSize;
use proto::gateway::v1 as pb;

use super::state::{State, seconds};
use crate::output::{render, right, table};

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Cells that it takes.
    pub(crate) width: u16,
    /// Narrower terminals do without it.
    pub(crate) least: u16,
    pub(crate) number: bool,
}

const fn column(title: &'static str, width: u16, least: u16, number: bool) -> Column {
    Column { title, width, least, number }
}

pub(crate) const SERVICES: [Column; 8] = [
    column("SERVICE", 16, 0, false),
    column("CALLS/S", 8, 0, true),
    column("IN FLIGHT", 9, 60, true),
    column("WAITING", 7, 50, true),
    column("P50", 9, 70, true),
    column("P99", 9, 0, true),
    column("FAILED", 8, 40, true),
    column("READY", 7, 80, true),
];
pub(crate) const REPLICAS: [Column; 10] = [
    column("REPLICA", 21, 0, false),
    column("OF", 14, 78, false),
    column("STATE", 11, 0, false),
    column("CALLS/S", 8, 0, true),
    column("IN FLIGHT", 9, 60, true),
    column("BACKLOG", 9, 50, true),
    column("A UNIT", 9, 110, true),
    column("FAILED", 8, 90, true),
    column("MEMORY", 10, 100, true),
    column("CPUS", 5, 78, true),
];

/// A row for each service, in the order of [`SERVICES`].
pub(crate) fn services(state: &State) -> Vec<[String; 8]> {
    let row = |service: &pb::ServiceState| {
        let ready = service.replicas.iter().filter(|replica| replica.state() == pb::ReplicaState::Ready).count();
        [
            service.name.clone(),
            rate(state.rate(&service.name)),
            service.in_flight.to_string(),
            service.waiting.to_string(),
            time(service.latency_p50.as_ref()),
            time(service.latency_p99.as_ref()),
            service.failures.to_string(),
            format!("{ready}/{}", service.replicas.len()),
        ]
    };
    state.services.iter().map(row).collect()
}

/// A row for each replica, in the order of [`REPLICAS`], and its state.
pub(crate) fn replicas(state: &State) -> Vec<([String; 10], pb::ReplicaState)> {
    let row = |(service, replica): (&str, &pb::Replica)| {
        let local = state.local(&replica.address);
        let cells = [
            replica.address.clone(),
            service.to_owned(),
            name(replica.state()).to_owned(),
            rate(state.replica_rate(service, &replica.address)),
            replica.in_flight.to_string(),
            time(replica.backlog.as_ref()),
            time(replica.time_per_unit.as_ref()),
            replica.failures.to_string(),
            local.map_or_else(|| "-".to_owned(), |local| ByteSize(local.memory).to_string()),
            local.and_then(|local| local.cpus).map_or_else(|| "-".to_owned(), |cpus| format!("{cpus:.2}")),
        ];
        (cells, replica.state())
    };
    state.replicas().map(row).collect()
}

/// Everything as plain text.
pub(crate) fn text(state: &State) -> String {
    let services = plain(&SERVICES, services(state));
    let replicas = plain(&REPLICAS, replicas(state).into_iter().map(|(cells, _)| cells));
    format!("{services}\n\n{replicas}")
}

fn plain<const N: usize>(columns: &[Column; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = table(&columns.map(|column| column.title));
    let numbers: Vec<_> = (0..N).filter(|index| columns[*index].number).collect();
    right(&mut table, &numbers);
    table.add_rows(rows);
    render(&table)
}

fn name(state: pb::ReplicaState) -> &'static str {
    match state {
        pb::ReplicaState::Unspecified => "unknown",
        pb::ReplicaState::Starting => "starting",
        pb::ReplicaState::Ready => "ready",
        pb::ReplicaState::NotServing => "not serving",
        pb::ReplicaState::Unreachable => "unreachable",
    }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn time(time: Option<&prost_types::Duration>) -> String {
    seconds(time).map_or_else(|| "-".to_owned(), |seconds| crate::output::duration(seconds * 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::state::tests::state;

    #[test]
    fn a_snapshot_has_services_and_replicas() {
        let text = text(&state());
        let rows: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[1], "embedding 100.0 4 3 10.0 ms 20.0 ms 5 1/2");
        assert_eq!(rows[5], "127.0.0.1:7001 embedding ready 50.0 2 4.00 ms 50.0 µs 1 - -");
        assert!(rows[6].contains("unreachable"), "{text}");
    }

    #[test]
    fn nothing_known_yet_is_a_dash() {
        let mut state = State::new(String::new());
        state.update(vec![pb::ServiceState { name: "vision".into(), ..Default::default() }], None);
        assert_eq!(services(&state)[0], ["vision", "-", "0", "0", "-", "-", "0", "0/0"]);
    }
}
