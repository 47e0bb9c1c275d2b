//! Replicas that are lost, refuse or are full, and where their calls go.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};
use tokio::sync::Semaphore;
use tonic::Code;

use crate::{
    certificates::REPLICA,
    client::{framed, request},
    front::Front,
    replica::{Do, Replica},
};

/// Two replicas of which the first misbehaves: whichever gets the call first, the client gets an answer.
async fn survives(act: Do) {
    let (mut bad, mut good) = (Replica::start(act).await, Replica::start(Do::Echo).await);
    let front = Front::before(&[bad.address, good.address]).await;
    let mut hit = 0;
    // The calls take turns between idle replicas, so that the first is met soon.
    while hit == 0 {
        front.until_ready(2).await;
        let answer = front.client.embed(b"text").await;
        assert_eq!((answer.status().code(), answer.data), (Code::Ok, framed(b"text")));
        assert_eq!(good.count(), 1);
        hit = bad.count();
    }
    assert_eq!(hit, 1, "a replica that failed is not tried twice while there is another");
    assert!(front.metric("gateway_retries_total").await[0].1 >= 1.0);
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer() {
    survives(Do::Cut).await;
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_of_the_answer() {
    survives(Do::CutAfter(framed(b"half an answer").slice(..8))).await;
}

#[tokio::test]
async fn unavailable_in_trailers() {
    survives(Do::Status(&[("grpc-status", "14")])).await;
}

#[tokio::test]
async fn draining_in_headers() {
    survives(Do::Refuse(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "1000")])).await;
}

#[tokio::test]
async fn a_full_queue_while_another_replica_is_idle() {
    survives(Do::Refuse(&[("grpc-status", "8"), ("grpc-retry-pushback-ms", "250")])).await;
}

#[tokio::test]
async fn the_only_replica_is_lost() {
    let replica = Replica::start(Do::Cut).await;
    let front = Front::configured(&[replica.address], "[retry]\nattempts_max = 2").await;
    let answer = front.client.embed(b"text").await;
    assert_eq!(answer.refusal(), (Code::Unavailable, "REPLICA_LOST".into()));
}

#[tokio::test]
async fn a_replica_lost_after_its_reply_began_to_pass_ends_it_with_a_status() {
    let data = framed(&[7; 4000]).slice(..3000);
    let replica = Replica::start(Do::CutAfter(data.clone())).await;
    let front = Front::configured(&[replica.address], "[hold]\nreply_bytes_max = '1KiB'").await;
    let answer = front.client.embed(b"text").await;
    assert_eq!(answer.refusal(), (Code::Unavailable, "REPLICA_LOST".into()));
    assert_eq!(answer.data, data);
}

#[tokio::test]
async fn answers_are_not_retried() {
    for (status, code) in [
        (&[("grpc-status", "3")], Code::InvalidArgument),
        (&[("grpc-status", "8")], Code::ResourceExhausted),
        (&[("grpc-status", "13")], Code::Internal),
    ] {
        let (mut first, mut second) =
            (Replica::start(Do::Refuse(status)).await, Replica::start(Do::Refuse(status)).await);
        let front = Front::before(&[first.address, second.address]).await;
        front.until_ready(2).await;
        assert_eq!(front.client.embed(b"text").await.status().code(), code);
        assert_eq!(first.count() + second.count(), 1);
    }
}

#[tokio::test]
async fn the_last_status_stands_when_no_replica_is_left() {
    let full = || Replica::start(Do::Refuse(&[("grpc-status", "14"), ("x-who", "replica")]));
    let (first, second) = (full().await, full().await);
    let front = Front::before(&[first.address, second.address]).await;
    front.until_ready(2).await;
    let answer = front.client.embed(b"text").await;
    assert_eq!(answer.status().code(), Code::Unavailable);
    assert_eq!(answer.headers["x-who"], "replica");
}

/// The descriptor set of `test.Ledger/Append`, which promises nothing about repetition.
fn unsafe_contract() -> tempfile::NamedTempFile {
    let method = |name: &str, stream| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".test.Empty".into()),
        output_type: Some(".test.Empty".into()),
        client_streaming: Some(stream),
        server_streaming: Some(stream),
        ..MethodDescriptorProto::default()
    };
    let service = ServiceDescriptorProto {
        name: Some("Ledger".into()),
        method: vec![method("Append", false), method("Follow", true)],
        ..ServiceDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("test.proto".into()),
        package: Some("test".into()),
        message_type: vec![prost_types::DescriptorProto { name: Some("Empty".into()), ..Default::default() }],
        service: vec![service],
        ..FileDescriptorProto::default()
    };
    let contract = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(contract.path(), FileDescriptorSet { file: vec![file] }.encode_to_vec()).unwrap();
    contract
}

/// A gateway that also serves `test.Ledger`, from these replicas.
pub(crate) async fn ledger(replicas: &[std::net::SocketAddr]) -> Front {
    let contract = unsafe_contract();
    let endpoints: Vec<_> = replicas.iter().map(ToString::to_string).collect();
    let more =
        format!("[services.ledger]\nserves = ['test.Ledger']\nspiffe_id = '{REPLICA}'\nendpoints = {endpoints:?}");
    let front = Front::start(&format!("descriptors = [{:?}]\n{}", contract.path(), Front::text(&[], &more))).await;
    front.until("test.Ledger", tonic_health::pb::health_check_response::ServingStatus::Serving).await;
    front
}

#[tokio::test]
async fn what_may_have_been_done_is_not_repeated_unless_the_contract_allows_it() {
    let mut replicas = [Replica::start(Do::Cut).await, Replica::start(Do::Cut).await];
    let front = ledger(&[replicas[0].address, replicas[1].address]).await;
    let answer = front.client.call(request("/test.Ledger/Append"), framed(b"")).await;
    assert_eq!(answer.refusal(), (Code::Unavailable, "REPLICA_LOST".into()));
    assert_eq!(replicas.iter_mut().map(Replica::count).sum::<usize>(), 1);
}

/// A replica without health that refuses its first stream before it looks at it, as one at its stream limit does.
async fn refusing_once() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = crate::certificates::credentials(REPLICA).acceptor();
    let refused = Arc::new(AtomicBool::new(false));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (stream, _) = acceptor.accept(stream, std::time::Duration::from_secs(5)).await.unwrap();
            let refused = Arc::clone(&refused);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let health = request.uri().path().starts_with("/grpc.health");
                    if !health && !refused.swap(true, Relaxed) {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        continue;
                    }
                    let response = http::Response::builder().header("content-type", "application/grpc");
                    let response = response.header("grpc-status", if health { "12" } else { "0" }).body(()).unwrap();
                    respond.send_response(response, true).unwrap();
                }
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn what_was_refused_unseen_is_repeated_whatever_it_does() {
    let (address, task) = refusing_once().await;
    let front = ledger(&[address]).await;
    let answer = front.client.call(request("/test.Ledger/Append"), framed(b"")).await;
    assert_eq!(answer.status().code(), Code::Ok);
    assert_eq!(front.metric("gateway_retries_total").await[0].1, 1.0);
    task.abort();
}

#[tokio::test]
async fn a_connection_that_says_goaway_is_replaced_and_finishes_its_calls() {
    let permits = Arc::new(Semaphore::new(0));
    let mut replica = Replica::start(Do::EchoAfter(Arc::clone(&permits))).await;
    let front = ledger(&[replica.address]).await;
    let call = |text: &'static [u8]| {
        let client = front.client.clone();
        tokio::spawn(async move { client.call(request("/test.Ledger/Append"), framed(text)).await })
    };
    let first = call(b"first");
    replica.next().await;
    replica.goaway();
    let second = call(b"second");
    assert_eq!(replica.next().await.message, framed(b"second"));
    permits.add_permits(2);
    for (call, text) in [(first, &b"first"[..]), (second, b"second")] {
        let answer = call.await.unwrap();
        assert_eq!((answer.status().code(), answer.data), (Code::Ok, framed(text)));
    }
}

#[tokio::test]
async fn an_empty_budget_ends_retries() {
    let (mut first, mut second) = (Replica::start(Do::Cut).await, Replica::start(Do::Cut).await);
    let front = Front::configured(&[first.address, second.address], "[retry]\nbudget_max = 0\nattempts_max = 10").await;
    assert_eq!(front.client.embed(b"text").await.refusal(), (Code::Unavailable, "REPLICA_LOST".into()));
    assert_eq!(first.count() + second.count(), 1);
}

#[tokio::test]
async fn a_replica_that_dies_under_load_costs_no_call() {
    let permits = Arc::new(Semaphore::new(0));
    let (mut first, mut second) = (
        Replica::start(Do::EchoAfter(Arc::clone(&permits))).await,
        Replica::start(Do::EchoAfter(Arc::clone(&permits))).await,
    );
    let front = Front::before(&[first.address, second.address]).await;
    front.until_ready(2).await;
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let client = front.client.clone();
            tokio::spawn(async move { (n, client.embed(format!("text {n}").as_bytes()).await) })
        })
        .collect();
    let (mut here, mut there) = (0, 0);
    while here + there < 200 {
        tokio::select! {
            _ = first.next() => here += 1,
            _ = second.next() => there += 1,
        }
    }
    assert!(here.min(there) >= 80, "the work was spread: {here} and {there}");
    first.kill();
    permits.add_permits(400);
    let mut answers = HashSet::new();
    for call in calls {
        let (n, answer) = call.await.unwrap();
        assert_eq!((answer.status().code(), answer.data), (Code::Ok, framed(format!("text {n}").as_bytes())));
        answers.insert(n);
    }
    assert_eq!(answers.len(), 200);
}

#[tokio::test]
async fn a_call_waits_for_a_replica_that_is_on_its_way() {
    // Bound, so that the port is ours, and not listening yet, so that connections are refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let front = Front::before(&[address]).await;
    let client = front.client.clone();
    let call = tokio::spawn(async move { client.embed(b"text").await });
    while front.metric("gateway_calls_in_flight").await[0].1 < 1.0 {}
    let _replica =
        Replica::start_as(REPLICA, socket.listen(8).unwrap(), Do::Reply(Bytes::from_static(b"\0\0\0\0\0"))).await;
    assert_eq!(call.await.unwrap().status().code(), Code::Ok);
}
