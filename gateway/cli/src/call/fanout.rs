//! `tamis call fanout`: several calls in one.

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use clap::ValueEnum;
use proto::{
    classification::v1 as classification,
    embedding::v1 as embedding,
    gateway::v1::{
        self as pb, fan_out_stream_response::Event, gateway_service_client::GatewayServiceClient, step::Call,
        step_result::Outcome,
    },
    vision::v1 as vision,
};
use serde_json::{Value, json};

use super::{Flags, client, outcome, reply::Reply, see};
use crate::{
    advice::Advice,
    home::Home,
    output::{render, right, say, table},
};

/// Arguments of `tamis call fanout`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A text to embed; may be repeated, each is a step of its own.
    #[arg(long, value_name = "TEXT")]
    embed: Vec<String>,
    /// A text to classify; may be repeated.
    #[arg(long, value_name = "TEXT")]
    classify: Vec<String>,
    /// An image to look at; may be repeated.
    #[arg(long, value_name = "IMAGE")]
    see: Vec<PathBuf>,
    /// What a failed step means for the others.
    #[arg(long, value_enum, default_value_t = Policy::Partial)]
    policy: Policy,
    /// Steps that must succeed, under --policy quorum.
    #[arg(long, value_name = "NUMBER", required_if_eq("policy", "quorum"), value_parser = clap::value_parser!(u32).range(1..))]
    quorum: Option<u32>,
    /// Most time for each step.
    #[arg(long, value_name = "TIME")]
    step_timeout: Option<chassis::units::Span>,
    /// Show each step as it goes on; with --json, one event a line.
    #[arg(long)]
    stream: bool,
    #[command(flatten)]
    flags: Flags,
}

/// What a failed step means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Nothing.
    Partial,
    /// It cancels them, and the call fails.
    FailFast,
    /// Nothing, as long as enough succeed.
    Quorum,
}

/// A reply, in the order of the steps.
pub(crate) struct Fanned(pb::FanOutResponse);

/// Makes the calls, and prints what came of them.
pub(crate) async fn run(args: &Args, home: &Home) -> anyhow::Result<()> {
    let request = request(args)?;
    let connection = client::connect(&args.flags, home).await?;
    let mut service =
        GatewayServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    if args.stream {
        let message = pb::FanOutStreamRequest { request: Some(request) };
        return match service.fan_out_stream(client::request(message, &args.flags)).await {
            Ok(response) => follow(response.into_inner(), args.flags.json, &connection).await,
            Err(status) => Err(connection.explain(&status).await),
        };
    }
    match service.fan_out(client::request(request, &args.flags)).await {
        Ok(response) => super::show(&args.flags, &Fanned(response.into_inner())),
        Err(status) => Err(connection.explain(&status).await),
    }
}

async fn follow(
    mut events: tonic::Streaming<pb::FanOutStreamResponse>,
    as_json: bool,
    connection: &client::Connection,
) -> anyhow::Result<()> {
    let (mut failed, mut steps) = (0, 0);
    loop {
        let event = match events.message().await {
            Ok(Some(pb::FanOutStreamResponse { event: Some(event) })) => event,
            Ok(Some(_)) => continue,
            Ok(None) => break,
            Err(status) => return Err(connection.explain(&status).await),
        };
        if let Event::StepResult(result) = &event {
            steps += 1;
            failed += usize::from(!is_ok(result));
        }
        say(if as_json { json_event(&event).to_string() } else { line(&event) })?;
    }
    super::judge(failed, steps, "step")
}

impl Reply for Fanned {
    fn json(&self) -> Value {
        json!({
            "results": self.0.results.iter().map(json_result).collect::<Vec<_>>(),
            "degraded": self.0.degraded,
        })
    }

    fn table(&self) -> String {
        let mut rows = table(&["STEP", "OUTCOME", "ELAPSED", "ATTEMPTS"]);
        right(&mut rows, &[2, 3]);
        for result in &self.0.results {
            rows.add_row([
                &result.id,
                &outcome::line(result.outcome.as_ref()),
                &time(result.elapsed.as_ref()),
                &result.attempts.to_string(),
            ]);
        }
        let degraded = if self.0.degraded { "\n\nDegraded: a step has no response" } else { "" };
        format!("{}{degraded}", render(&rows))
    }

    fn failed(&self) -> (usize, usize) {
        let results = &self.0.results;
        (results.iter().filter(|result| !is_ok(result)).count(), results.len())
    }

    fn item(&self) -> &'static str {
        "step"
    }
}

fn request(args: &Args) -> anyhow::Result<pb::FanOutRequest> {
    if args.quorum.is_some() && args.policy != Policy::Quorum {
        bail!(Advice::new("--quorum belongs to --policy quorum", "leave it out, or add --policy quorum"));
    }
    let model = client::selector(&args.flags);
    let mut calls = Vec::new();
    for (number, text) in args.embed.iter().enumerate() {
        let inputs = vec![embedding::EmbedInput { input: Some(embedding::embed_input::Input::Text(text.clone())) }];
        let request = embedding::EmbedRequest { model: model.clone(), inputs, ..Default::default() };
        calls.push((format!("embed-{number}"), Call::Embed(request)));
    }
    for (number, text) in args.classify.iter().enumerate() {
        let inputs = vec![classification::TextInput { text: text.clone(), text_pair: None }];
        let request = classification::ClassifyRequest { model: model.clone(), inputs, ..Default::default() };
        calls.push((format!("classify-{number}"), Call::Classify(request)));
    }
    for (number, (_, bytes)) in see::read(args.see.clone())?.into_iter().enumerate() {
        let source = Some(vision::image_input::Source::Encoded(bytes.into()));
        let images = vec![vision::ImageInput { source, ..Default::default() }];
        let request = vision::ClassifyImagesRequest { model: model.clone(), images, ..Default::default() };
        calls.push((format!("see-{number}"), Call::ClassifyImages(request)));
    }
    if calls.is_empty() {
        let help = "name steps: --embed TEXT, --classify TEXT, --see IMAGE, each as often as you like";
        bail!(Advice::new("there is nothing to call", help));
    }
    let timeout = args.step_timeout.map(|span| prost_types::Duration::try_from(span.0)).transpose()?;
    let step = |(id, call)| pb::Step { id, call: Some(call), timeout, ..Default::default() };
    let policy = match args.policy {
        Policy::Partial => pb::FailurePolicy::Partial,
        Policy::FailFast => pb::FailurePolicy::FailFast,
        Policy::Quorum => pb::FailurePolicy::Quorum,
    };
    let steps = calls.into_iter().map(step).collect();
    Ok(pb::FanOutRequest { steps, failure_policy: policy.into(), quorum: args.quorum.unwrap_or(0) })
}

fn is_ok(result: &pb::StepResult) -> bool {
    !matches!(result.outcome, Some(Outcome::Error(_)) | None)
}

fn json_result(result: &pb::StepResult) -> Value {
    let mut json = json!({
        "id": result.id,
        "elapsed_ms": millis(result.elapsed.as_ref()),
        "attempts": result.attempts,
    });
    let (name, value) = outcome::json(result.outcome.as_ref());
    json[name] = value;
    json
}

fn json_event(event: &Event) -> Value {
    match event {
        Event::StepEvent(event) => {
            json!({ "step_event": { "id": event.id, "state": event.state().as_str_name() } })
        }
        Event::StepResult(result) => json!({ "step_result": json_result(result) }),
        Event::Summary(summary) => {
            json!({ "summary": { "degraded": summary.degraded, "elapsed_ms": millis(summary.elapsed.as_ref()) } })
        }
    }
}

fn line(event: &Event) -> String {
    match event {
        Event::StepEvent(event) => {
            let state = match event.state() {
                pb::StepState::WaitingForCapacity => "waits for a replica",
                pb::StepState::Running => "runs",
                pb::StepState::Retrying => "is tried on another replica",
                pb::StepState::Unspecified => "goes on",
            };
            format!("{:<14} {state}", event.id)
        }
        Event::StepResult(result) => {
            let attempts = match result.attempts {
                1 => "1 attempt".to_owned(),
                count => format!("{count} attempts"),
            };
            let outcome = outcome::line(result.outcome.as_ref());
            format!("{:<14} {outcome} ({}, {attempts})", result.id, time(result.elapsed.as_ref()))
        }
        Event::Summary(summary) => {
            let degraded = if summary.degraded { "Degraded" } else { "Complete" };
            format!("{degraded} after {}", time(summary.elapsed.as_ref()))
        }
    }
}

fn millis(time: Option<&prost_types::Duration>) -> Option<f64> {
    let time = Duration::try_from(*time?).ok()?;
    Some(time.as_secs_f64() * 1e3)
}

fn time(time: Option<&prost_types::Duration>) -> String {
    millis(time).map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1} ms"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::advice::report;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).map(|line| line.args)
    }

    fn response() -> pb::FanOutResponse {
        let elapsed = Some(prost_types::Duration { seconds: 0, nanos: 12_300_000 });
        let error = pb::StepError { code: 8, reason: 11, message: "too much waits".into(), ..Default::default() };
        let good = embedding::EmbedResponse {
            results: vec![embedding::EmbedResult {
                outcome: Some(embedding::embed_result::Outcome::Embedding(embedding::Embedding {
                    dimensions: 384,
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        };
        let step = |id: &str, outcome| pb::StepResult { id: id.into(), outcome: Some(outcome), elapsed, attempts: 2 };
        let results = vec![step("embed-0", Outcome::Embed(good)), step("classify-0", Outcome::Error(error))];
        pb::FanOutResponse { results, degraded: true }
    }

    #[test]
    fn steps_are_named_by_what_they_do() {
        let request = request(&parse("--embed a --embed b --classify c --step-timeout 2s").unwrap()).unwrap();
        let ids: Vec<_> = request.steps.iter().map(|step| step.id.as_str()).collect();
        assert_eq!(ids, ["embed-0", "embed-1", "classify-0"]);
        assert_eq!(request.steps[0].timeout, Some(prost_types::Duration { seconds: 2, nanos: 0 }));
        assert_eq!(request.failure_policy(), pb::FailurePolicy::Partial);
    }

    #[test]
    fn a_quorum_needs_its_policy_and_the_policy_its_quorum() {
        let quorum = request(&parse("--embed a --policy quorum --quorum 1").unwrap()).unwrap();
        assert_eq!((quorum.failure_policy(), quorum.quorum), (pb::FailurePolicy::Quorum, 1));
        assert!(parse("--embed a --policy quorum").is_err());
        let error = request(&parse("--embed a --quorum 1").unwrap()).unwrap_err();
        assert!(report(&error).contains("--policy quorum"));
    }

    #[test]
    fn nothing_to_call_is_said() {
        assert!(report(&request(&parse("").unwrap()).unwrap_err()).contains("--embed"));
    }

    #[test]
    fn a_table_has_each_steps_outcome_time_and_attempts() {
        let reply = Fanned(response());
        let text = reply.table();
        for part in ["embed-0", "384", "12.3 ms", "QUEUE_FULL", "too much waits", "Degraded"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert_eq!(reply.failed(), (1, 2));
        assert_eq!(reply.json()["results"][1]["error"]["reason"], "ERROR_REASON_QUEUE_FULL");
        assert_eq!(reply.json()["results"][0]["attempts"], 2);
    }

    #[test]
    fn a_stream_is_told_line_by_line() {
        let running = pb::StepEvent { id: "embed-0".into(), state: pb::StepState::Running.into() };
        assert_eq!(line(&Event::StepEvent(running)), "embed-0        runs");
        let result = response().results.remove(1);
        assert!(line(&Event::StepResult(result)).contains("QUEUE_FULL"));
        let summary = pb::FanOutSummary { degraded: false, elapsed: None };
        assert_eq!(line(&Event::Summary(summary)), "Complete after -");
        assert_eq!(json_event(&Event::Summary(summary))["summary"]["degraded"], false);
    }
}
