//! `EmbedStream` as its contract promises it.

use std::time::Duration;

use futures_util::stream;
use proto::{
    common::v1::{ErrorReason, ModelSelector},
    embedding::v1::{self as pb, embed_stream_request::Message},
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, Streaming};

use crate::harness::{
    Channels, Mesh, Roles, embed, error_reason, eventually, long_text, mesh, metric, metrics, refused, refused_field,
    signal, vector,
};

/// The client's side of an open stream.
pub(crate) struct Open {
    /// Dropped, it ends the client's side.
    sender: mpsc::UnboundedSender<pb::EmbedStreamRequest>,
    answers: Streaming<pb::EmbedStreamResponse>,
}

impl Open {
    pub(crate) async fn new(client: &Channels) -> Self {
        Self::with_timeout(client, Duration::from_secs(60)).await
    }

    async fn with_timeout(client: &Channels, timeout: Duration) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let requests = stream::unfold(receiver, async |mut receiver: mpsc::UnboundedReceiver<_>| {
            Some((receiver.recv().await?, receiver))
        });
        let mut request = Request::new(requests);
        request.set_timeout(timeout);
        let answers = client.embedding().embed_stream(request).await.unwrap().into_inner();
        Self { sender, answers }
    }

    fn send(&self, message: Message) {
        self.sender.send(pb::EmbedStreamRequest { message: Some(message) }).unwrap();
    }

    pub(crate) fn config(&self, config: pb::EmbedStreamConfig) {
        self.send(Message::Config(config));
    }

    pub(crate) fn items<T: Into<String>>(&self, sequence: u64, texts: impl IntoIterator<Item = T>) {
        self.send(Message::Items(pb::EmbedStreamItems { sequence, inputs: embed(texts).inputs }));
    }

    pub(crate) async fn next(&mut self) -> pb::EmbedStreamResponse {
        self.answers.message().await.unwrap().expect("an answer")
    }

    /// How the stream ends, and the sequences of what came before.
    pub(crate) async fn end(mut self) -> (Vec<u64>, Option<Status>) {
        drop(self.sender);
        let mut sequences = Vec::new();
        loop {
            match self.answers.message().await {
                Ok(Some(answer)) => sequences.push(answer.sequence),
                Ok(None) => return (sequences, None),
                Err(status) => return (sequences, Some(status)),
            }
        }
    }
}

#[tokio::test]
async fn batches_are_answered_in_order_with_the_vectors_of_embed() {
    let mesh = mesh();
    let client = mesh.client().await;
    let mut open = Open::new(&client).await;
    open.config(pb::EmbedStreamConfig::default());
    let texts: Vec<_> = (0..20).map(|n| format!("text number {n}")).collect();
    for (n, pair) in texts.chunks(2).enumerate() {
        open.items(10 * n as u64, pair);
    }
    let whole = client.embedding().embed(embed(&texts)).await.unwrap().into_inner();
    for n in 0..10 {
        let answer = open.next().await;
        assert_eq!((answer.sequence, answer.results.len()), (10 * n as u64, 2));
        for (i, result) in answer.results.iter().enumerate() {
            let (here, there) = (vector(result), vector(&whole.results[2 * n + i]));
            let largest = here.iter().zip(there).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest < 1e-5, "batch {n}, text {i}: {largest}");
        }
        let introduced = answer.model.is_some() && answer.space_id == whole.space_id;
        assert_eq!(introduced, n == 0, "{:?} {}", answer.model, answer.space_id);
    }
    assert!(open.end().await.1.is_none());
}

#[tokio::test]
async fn unordered_answers_are_all_there() {
    let mesh = mesh();
    let open = Open::new(&mesh.client().await).await;
    open.config(pb::EmbedStreamConfig { unordered: true, ..Default::default() });
    for n in 1..=40 {
        let words = if n % 7 == 1 { 200 } else { 2 };
        open.items(n, [long_text(words)]);
    }
    let (mut sequences, end) = open.end().await;
    sequences.sort_unstable();
    assert_eq!((sequences, end.is_none()), ((1..=40).collect(), true));
}

#[tokio::test]
async fn a_bad_batch_fails_alone_and_the_stream_goes_on() {
    let mesh = mesh();
    let mut open = Open::new(&mesh.client().await).await;
    open.config(pb::EmbedStreamConfig::default());
    open.items(1, [""; 0]);
    open.items(2, vec!["a"; 10_000]);
    open.items(3, ["good", "", &"a".repeat((1 << 20) + 1)]);
    let failed = [open.next().await, open.next().await];
    for (answer, (sequence, reason)) in
        failed.iter().zip([(1, ErrorReason::EmptyInput), (2, ErrorReason::TooManyItems)])
    {
        let error = answer.error.as_ref().unwrap();
        assert_eq!((answer.sequence, error.reason(), answer.results.len()), (sequence, reason, 0));
    }
    assert!(failed[0].model.is_some() && failed[1].model.is_none(), "the first answer introduces, failed or not");
    let answer = open.next().await;
    let reasons: Vec<_> = answer.results.iter().map(error_reason).collect();
    assert_eq!(reasons, [None, Some(ErrorReason::EmptyInput), Some(ErrorReason::InputTooLarge)]);
    assert!(open.end().await.1.is_none());
}

#[tokio::test]
async fn a_stream_without_config_or_with_two_is_refused() {
    let mesh = mesh();
    let client = mesh.client().await;
    let bad = async |open: Open, field: &str| {
        let (_, end) = open.end().await;
        let status = end.expect("refused");
        refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
        refused_field(&status, ErrorReason::BadParameter, field);
    };
    let open = Open::new(&client).await;
    open.items(1, ["too soon"]);
    bad(open, "config").await;
    bad(Open::new(&client).await, "config").await;
    let open = Open::new(&client).await;
    open.config(pb::EmbedStreamConfig::default());
    open.config(pb::EmbedStreamConfig::default());
    bad(open, "config").await;
    let open = Open::new(&client).await;
    open.sender.send(pb::EmbedStreamRequest { message: None }).unwrap();
    bad(open, "message").await;
}

#[tokio::test]
async fn a_config_that_no_call_could_have_is_refused() {
    let mesh = mesh();
    let client = mesh.client().await;
    let model = |model: ModelSelector| pb::EmbedStreamConfig { model: Some(model), ..Default::default() };
    let params = |params: pb::EmbedParams| pb::EmbedStreamConfig { params: Some(params), ..Default::default() };
    let options = proto::common::v1::RequestOptions { priority: 99, include_timing: false };
    for (config, code, reason) in [
        (
            model(ModelSelector { model: "none-such".into(), ..Default::default() }),
            Code::NotFound,
            ErrorReason::ModelNotFound,
        ),
        (
            model(ModelSelector { revision: format!("sha256:{}", "0".repeat(64)), ..Default::default() }),
            Code::FailedPrecondition,
            ErrorReason::RevisionMismatch,
        ),
        (
            model(ModelSelector { require_space_id: "sha256:0".into(), ..Default::default() }),
            Code::FailedPrecondition,
            ErrorReason::SpaceMismatch,
        ),
        (
            params(pb::EmbedParams { encoding: 77, ..Default::default() }),
            Code::InvalidArgument,
            ErrorReason::BadParameter,
        ),
        (
            params(pb::EmbedParams { layout: pb::VectorLayout::Matrix.into(), ..Default::default() }),
            Code::InvalidArgument,
            ErrorReason::BadParameter,
        ),
        (
            pb::EmbedStreamConfig { options: Some(options), ..Default::default() },
            Code::InvalidArgument,
            ErrorReason::BadParameter,
        ),
    ] {
        let open = Open::new(&client).await;
        open.config(config);
        refused(&open.end().await.1.expect("refused"), code, reason);
    }
}

#[tokio::test]
async fn a_sequence_that_does_not_rise_ends_the_stream_after_the_answers() {
    let mesh = mesh();
    let client = mesh.client().await;
    for second in [5, 4] {
        let open = Open::new(&client).await;
        open.config(pb::EmbedStreamConfig::default());
        open.items(5, ["first"]);
        open.items(second, ["second"]);
        let (sequences, end) = open.end().await;
        assert_eq!(sequences, [5]);
        refused_field(&end.unwrap(), ErrorReason::BadParameter, "items.sequence");
    }
}

#[tokio::test]
async fn a_stream_waits_where_a_call_would_be_refused_and_leaves_room_for_calls() {
    let roles = Roles::configured(&["embedding"], |role| match role {
        "embedding" => "[pool]\nqueue_units_max = 4000\n",
        _ => "",
    });
    let roles = roles.await;
    let client = roles.client().await;
    let mut open = Open::new(&client).await;
    open.config(pb::EmbedStreamConfig::default());
    // By their length 12 of these texts could be 1,500 tokens, and five batches more than the queue holds.
    let batches = 5;
    for sequence in 0..batches {
        open.items(sequence, vec![format!("house{}", " ".repeat(500)); 12]);
    }
    for n in 0..batches {
        let answer = open.next().await;
        assert_eq!((answer.sequence, answer.error), (n, None));
        assert!(answer.results.iter().all(|result| error_reason(result).is_none()));
        client.embedding().embed(embed(["meanwhile"])).await.unwrap();
    }
    assert!(open.end().await.1.is_none());
}

#[tokio::test]
async fn the_deadline_ends_a_stream() {
    let mesh = mesh();
    let mut open = Open::with_timeout(&mesh.client().await, Duration::from_secs(1)).await;
    open.config(pb::EmbedStreamConfig::default());
    open.items(1, ["in time"]);
    assert_eq!(open.next().await.sequence, 1);
    let status = open.answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn what_a_client_leaves_behind_is_not_computed() {
    let mesh = Mesh::start("embedding=1,classification=0,vision=0");
    let client = mesh.client().await;
    let replica = mesh.replicas().remove(0);
    let mut open = Open::new(&client).await;
    open.config(pb::EmbedStreamConfig::default());
    open.items(0, ["begin"]);
    open.next().await;
    for sequence in 1..8 {
        open.items(sequence, vec![long_text(250); 1024]);
    }
    let units = async |name: &str| metric(&metrics(replica.admin).await, name);
    eventually("work waits", async || (units("tamis_pool_queued_units").await > 0.0).then_some(())).await;
    drop(open);
    eventually("nothing waits", async || (units("tamis_pool_queued_units").await == 0.0).then_some(())).await;
    client.embedding().embed(embed(["still here"])).await.unwrap();
}

#[tokio::test]
async fn a_draining_server_answers_what_it_read_and_the_client_resumes_elsewhere() {
    let roles = Roles::start(&["embedding", "embedding"]).await;
    let client = roles.client().await;
    let mut open = Open::new(&client).await;
    open.config(pb::EmbedStreamConfig::default());
    open.items(1, ["before"]);
    assert_eq!(open.next().await.sequence, 1);
    let serving = serving(&roles).await;
    signal(roles.services[serving].process.pid, "TERM");
    let status = open.answers.message().await.unwrap_err();
    refused(&status, Code::Unavailable, ErrorReason::Draining);

    // What was not answered is sent again, on another stream.
    eventually("another replica takes the stream", async || {
        let open = Open::new(&client).await;
        open.config(pb::EmbedStreamConfig::default());
        open.items(2, ["after"]);
        let (sequences, end) = open.end().await;
        (sequences == [2] && end.is_none()).then_some(())
    })
    .await;
}

/// Which replica has the stream.
async fn serving(roles: &Roles) -> usize {
    for (index, running) in roles.services.iter().enumerate() {
        if metric(&metrics(running.at.admin).await, "tamis_calls_in_flight") > 0.0 {
            return index;
        }
    }
    panic!("no replica has the stream")
}
