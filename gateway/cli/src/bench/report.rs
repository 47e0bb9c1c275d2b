//! The results, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use clap::ValueEnum as _;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{
    bars,
    conditions::Conditions,
    tally::{Failures, Kind, Origin, Tally},
    traffic::Method,
};
use crate::{
    advice::Advice,
    output::{duration, excerpt, render, right, table},
};

/// The layout of the JSON; it changes when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// Quantiles and their names.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
/// A lag at p99 that is never worth a warning: what a scheduler takes to wake a thread on a busy machine.
const LAG_ALLOWED: Duration = Duration::from_millis(2);
/// Share of the median latency that the lag may have.
const LAG_SHARE: f64 = 0.1;
/// Share of the processors above which the generator may hold itself up.
const CPU_SHARE: f64 = 0.8;
/// Calls below which p99.9 is one single call.
const CALLS_FOR_P999: u64 = 1000;
/// Characters of a message in a table.
const MESSAGE_WIDTH: usize = 60;

/// How calls came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    Open { in_flight_max: usize },
    Closed { callers: usize },
}

/// A run and its conditions.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    pub(crate) how: Loop,
    pub(crate) method: Method,
    pub(crate) batch: u32,
    pub(crate) tally: Tally,
    /// Processor time of this process, where it is known.
    pub(crate) cpu: Option<Duration>,
    /// How long it took, warm-up included.
    pub(crate) elapsed: Duration,
}

impl Report {
    /// For programs: the names are stable.
    pub(crate) fn json(&self) -> Value {
        let tally = &self.tally;
        let schedule = tally.schedule();
        let (how, in_flight_max, callers) = match self.how {
            Loop::Open { in_flight_max } => ("open", json!(in_flight_max), Value::Null),
            Loop::Closed { callers } => ("closed", Value::Null, json!(callers)),
        };
        let error = |(kind, failures): (&Kind, &Failures)| {
            json!({
                "code": kind.code,
                "reason": kind.reason,
                "origin": origin(kind.origin),
                "count": failures.count,
                "example": failures.example,
            })
        };
        let buckets = |row: &bars::Row| json!({ "to_ms": row.limit / 1e3, "count": row.count });
        json!({
            "format": FORMAT,
            "conditions": self.conditions.json(),
            "loop": how,
            "method": method_name(self.method),
            "batch": self.batch,
            "callers": callers,
            "in_flight_max": in_flight_max,
            "warmup_s": schedule.warmup.as_secs_f64(),
            "duration_s": tally.window().as_secs_f64(),
            "span_s": tally.span().as_secs_f64(),
            "interrupted": tally.interrupted_at.is_some(),
            "rate_intended": self.intended(),
            "rate_sent": self.rate_sent(),
            "rate_ok": self.rate_ok(),
            "items_per_s": rate(tally.items, tally.span()),
            "sent_in_warmup": tally.warmup,
            "sent": tally.sent,
            "ok": tally.ok,
            "failed": tally.failed,
            "unfinished": tally.unfinished(),
            "dropped": tally.dropped,
            "items": tally.items,
            "errors": tally.failures.iter().map(error).collect::<Vec<_>>(),
            "item_errors": tally.item_errors,
            "latency_ms": times(&tally.latency),
            "failed_latency_ms": times(&tally.failed_latency),
            "schedule_lag_ms": times(&tally.lag),
            "latency_histogram": bars::rows(&tally.latency).iter().map(buckets).collect::<Vec<_>>(),
            "client_cpu_s": self.cpu.map(|cpu| cpu.as_secs_f64()),
            "client_cpu_per_call_us": self.cpu_per_call().map(|cpu| cpu * 1e6),
            "warnings": self.warnings(),
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let tally = &self.tally;
        let mut text = self.conditions.line();
        let _ = writeln!(text, "\n{}\n", self.what());
        let mut counts = table(&["SENT", "OK", "FAILED", "UNFINISHED", "DROPPED", "OK/S", "ITEMS/S"]);
        right(&mut counts, &[0, 1, 2, 3, 4, 5, 6]);
        let numbers = [tally.sent, tally.ok, tally.failed, tally.unfinished(), tally.dropped].map(|n| n.to_string());
        let rates = [self.rate_ok(), rate(tally.items, tally.span())].map(|rate| format!("{rate:.1}"));
        counts.add_row(numbers.into_iter().chain(rates));
        let _ = writeln!(text, "{}", render(&counts));
        if let Some(intended) = self.intended() {
            let sent = self.rate_sent();
            let _ =
                writeln!(text, "\n{intended:.1} calls/s intended, {sent:.1} sent; lag of the schedule {}", self.lag());
        }
        if let (Some(cpu), Some(each)) = (self.cpu, self.cpu_per_call()) {
            let (cpu, cores) = (cpu.as_secs_f64(), cpu.as_secs_f64() / self.elapsed.as_secs_f64().max(1e-9));
            let each = duration(each * 1e6);
            let _ = writeln!(text, "Processor time of this client {cpu:.2} s, {each} a call, {cores:.2} CPUs");
        }
        let _ = writeln!(text, "\n{}", self.latencies());
        for line in bars::draw(&bars::rows(&tally.latency)) {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        if let Some(failures) = self.failures() {
            let _ = writeln!(text, "\n{failures}");
        }
        text.trim_end().to_owned()
    }

    /// What makes the numbers doubtful.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let tally = &self.tally;
        let lag = Duration::from_micros(tally.lag.value_at_quantile(0.99));
        let allowed = Duration::from_micros(tally.latency.value_at_quantile(0.5)).mul_f64(LAG_SHARE);
        if matches!(self.how, Loop::Open { .. }) && lag > allowed.max(LAG_ALLOWED) {
            let lag = duration(lag.as_secs_f64() * 1e6);
            warnings.push(format!(
                "this generator lags: 1 in 100 calls was sent {lag} or more after it was due, and the latencies contain \
                 that; send less, from more machines, or from one with more free processors"
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "a few processors")]
        let cpus = self.conditions.cpus as f64;
        if self.cpu.is_some_and(|cpu| cpu.as_secs_f64() > CPU_SHARE * cpus * self.elapsed.as_secs_f64()) {
            warnings.push("this generator used most of the machine's processors; it may be what was measured".into());
        }
        if tally.dropped > 0 {
            warnings.push(format!(
                "{} arrivals were dropped, since --in-flight-max calls were under way; their latencies are in no number",
                tally.dropped
            ));
        }
        if tally.interrupted_at.is_some() {
            warnings.push("the run was interrupted; this is what there was".into());
        }
        if matches!(self.how, Loop::Closed { .. }) {
            warnings.push("closed loop: calls that a slow server kept from being sent are in no number".into());
        }
        warnings
    }

    /// Advice if no call was answered.
    pub(crate) fn only_failures(&self) -> Option<Advice> {
        if self.tally.ok > 0 {
            return None;
        }
        let Some((kind, failures)) = self.tally.failures.iter().max_by_key(|(_, failures)| failures.count) else {
            return Some(Advice::new(
                "no call was answered",
                "let it run longer, or see whether the mesh answers at all",
            ));
        };
        let reason = if kind.reason.is_empty() { String::new() } else { format!(", {}", kind.reason) };
        let what = format!("no call was answered: {}{reason}: {}", kind.code, failures.example);
        Some(Advice::new(what, "see that a single call succeeds, with `tamis call`, before you measure many"))
    }

    fn what(&self) -> String {
        let tally = &self.tally;
        let window = humantime::format_duration(Duration::from_millis(millis(tally.window())));
        let warmup = humantime::format_duration(tally.schedule().warmup);
        let (method, target) = (method_name(self.method), &self.conditions.target);
        let how = match self.how {
            Loop::Open { .. } => format!("Open loop: {}/s", tally.schedule().rate),
            Loop::Closed { callers: 1 } => "Closed loop: 1 caller".to_owned(),
            Loop::Closed { callers } => format!("Closed loop: {callers} callers"),
        };
        let items = if self.batch == 1 { "1 item".to_owned() } else { format!("{} items", self.batch) };
        format!("{how} of {method}, {items} a call, to {target} for {window} after a warm-up of {warmup}")
    }

    fn latencies(&self) -> String {
        let tally = &self.tally;
        let from = match self.how {
            Loop::Open { .. } => "LATENCY, FROM DUE",
            Loop::Closed { .. } => "LATENCY, FROM SENT",
        };
        let header: Vec<_> =
            [from, "CALLS"].into_iter().chain(QUANTILES.map(|(name, _)| name)).chain(["max"]).collect();
        let mut rows = table(&header);
        right(&mut rows, &[1, 2, 3, 4, 5, 6]);
        for (name, times) in [("answered", &tally.latency), ("failed", &tally.failed_latency)] {
            if times.is_empty() {
                continue;
            }
            let quantile = |(name, quantile): (&str, f64)| match name {
                "p99.9" if times.len() < CALLS_FOR_P999 => "-".to_owned(),
                _ => micros(times.value_at_quantile(quantile)),
            };
            let values = QUANTILES.map(quantile).into_iter().chain([micros(times.max())]);
            rows.add_row([name.to_owned(), times.len().to_string()].into_iter().chain(values));
        }
        render(&rows)
    }

    fn failures(&self) -> Option<String> {
        let tally = &self.tally;
        if tally.failures.is_empty() && tally.item_errors.is_empty() {
            return None;
        }
        let mut rows = table(&["FAILED", "CODE", "REASON", "BY", "FIRST MESSAGE"]);
        right(&mut rows, &[0]);
        for (kind, failures) in &tally.failures {
            let (count, example) = (format!("{} calls", failures.count), excerpt(&failures.example, MESSAGE_WIDTH));
            rows.add_row([&count, &kind.code, &kind.reason, origin(kind.origin), &example]);
        }
        for (reason, count) in &tally.item_errors {
            rows.add_row([&format!("{count} items"), "", *reason, "mesh", ""]);
        }
        Some(render(&rows))
    }

    fn lag(&self) -> String {
        let lag = &self.tally.lag;
        format!(
            "p50 {}, p99 {}, max {}",
            micros(lag.value_at_quantile(0.5)),
            micros(lag.value_at_quantile(0.99)),
            micros(lag.max())
        )
    }

    /// Calls a second that were to be sent.
    fn intended(&self) -> Option<f64> {
        matches!(self.how, Loop::Open { .. }).then_some(self.tally.schedule().rate)
    }

    fn rate_sent(&self) -> f64 {
        rate(self.tally.sent, self.tally.window())
    }

    fn rate_ok(&self) -> f64 {
        rate(self.tally.ok, self.tally.span())
    }

    /// Seconds of processor time for each call, those of the warm-up too.
    fn cpu_per_call(&self) -> Option<f64> {
        let calls = self.tally.sent + self.tally.warmup;
        (calls > 0).then(|| self.cpu.map(|cpu| cpu.as_secs_f64() / float(calls))).flatten()
    }
}

fn times(times: &Histogram<u64>) -> Value {
    if times.is_empty() {
        return Value::Null;
    }
    let ms = |micros: u64| float(micros) / 1e3;
    json!({
        "count": times.len(),
        "mean": times.mean() / 1e3,
        "min": ms(times.min()),
        "p50": ms(times.value_at_quantile(0.5)),
        "p90": ms(times.value_at_quantile(0.9)),
        "p99": ms(times.value_at_quantile(0.99)),
        "p999": ms(times.value_at_quantile(0.999)),
        "max": ms(times.max()),
    })
}

fn method_name(method: Method) -> String {
    method.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Mesh => "mesh",
        Origin::Client => "client",
    }
}

fn micros(micros: u64) -> String {
    duration(float(micros))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn rate(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { float(count) / time.as_secs_f64() }
}

#[expect(clippy::cast_precision_loss, reason = "for people, who read a few digits")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::bench::{
        schedule::Schedule,
        tally::{Answer, Call},
    };

    fn report(calls: &[(u64, Answer)]) -> Report {
        let (warmup, duration) = (Duration::ZERO, Duration::from_secs(10));
        let mut tally = Tally::new(Schedule { rate: 0.2, warmup, duration });
        for (latency_ms, answer) in calls {
            tally.send(Duration::ZERO);
            let (due, ended) = (Duration::ZERO, Duration::from_millis(*latency_ms));
            tally.note(Some(Call { due, sent: due, ended, answer: answer.clone() }));
        }
        tally.finish(duration);
        let conditions = Conditions {
            at: UNIX_EPOCH,
            cpus: 2,
            cpu_model: "a CPU".into(),
            load_before: Some(0.5),
            target: "127.0.0.1:8443".into(),
            arguments: vec!["bench".into(), "load".into()],
        };
        let (how, elapsed) = (Loop::Open { in_flight_max: 8 }, Duration::from_secs(10));
        let (method, cpu) = (Method::Embed, Some(Duration::from_secs(1)));
        Report { conditions, how, method, batch: 1, tally, cpu, elapsed }
    }

    fn ok(latency_ms: u64) -> (u64, Answer) {
        (latency_ms, Answer::Ok { items: 2, errors: Vec::new() })
    }

    fn full() -> (u64, Answer) {
        let kind = Kind { code: "RESOURCE_EXHAUSTED".into(), reason: "QUEUE_FULL".into(), origin: Origin::Mesh };
        (1, Answer::Failed(kind, "too much waits".into()))
    }

    #[test]
    fn json_has_counts_rates_and_conditions_that_fit_together() {
        let json = report(&[ok(5), ok(15), full()]).json();
        assert_eq!((&json["sent"], &json["ok"], &json["failed"]), (&json!(3), &json!(2), &json!(1)));
        assert_eq!(json["items_per_s"], 0.4);
        assert_eq!(json["errors"][0]["reason"], "QUEUE_FULL");
        assert_eq!(json["latency_ms"]["count"], 2);
        assert_eq!(json["conditions"]["cpus"], 2);
        assert_eq!(json["conditions"]["arguments"][1], "load");
        let buckets = json["latency_histogram"].as_array().unwrap();
        assert_eq!(buckets.iter().map(|bucket| bucket["count"].as_u64().unwrap()).sum::<u64>(), 2);
    }

    #[test]
    fn a_table_shows_counts_percentiles_bars_and_failures() {
        let text = report(&[ok(5), ok(15), full()]).text();
        for part in ["Open loop: 0.2/s of embed", "answered", "QUEUE_FULL", "too much waits", "█", "calls/s intended"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn a_percentile_of_too_few_calls_is_not_shown() {
        let text = report(&[ok(5)]).text();
        let row = text.lines().find(|line| line.starts_with("answered")).unwrap();
        assert_eq!(row.split_whitespace().rev().nth(2), Some("-"), "{row}");
    }

    #[test]
    fn a_generator_that_lags_says_so() {
        let mut late = report(&[ok(5)]);
        assert!(late.warnings().is_empty(), "{:?}", late.warnings());
        late.tally.lag.record_n(30_000, 10).unwrap();
        assert!(late.warnings()[0].contains("lags"), "{:?}", late.warnings());
        let mut busy = report(&[ok(5)]);
        busy.cpu = Some(Duration::from_secs(19));
        assert!(busy.warnings()[0].contains("processors"), "{:?}", busy.warnings());
    }

    #[test]
    fn dropped_arrivals_and_a_closed_loop_are_said() {
        let mut report = report(&[ok(5)]);
        report.tally.drop_arrival(Duration::ZERO);
        report.how = Loop::Closed { callers: 2 };
        let warnings = report.warnings().join("\n");
        assert!(warnings.contains("1 arrivals were dropped") && warnings.contains("closed loop"), "{warnings}");
        assert!(report.text().contains("Closed loop: 2 callers"));
    }

    #[test]
    fn a_run_without_an_answer_fails_with_its_most_frequent_error() {
        assert!(report(&[ok(5), full()]).only_failures().is_none());
        let advice = report(&[full()]).only_failures().unwrap().to_string();
        assert!(advice.contains("QUEUE_FULL") && advice.contains("too much waits"), "{advice}");
        assert!(report(&[]).only_failures().is_some());
    }
}
