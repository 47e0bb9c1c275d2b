//! Streaming calls pass through frame by frame, in both directions at once.

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;

use crate::{
    client::{framed, request},
    replica::{Do, Replica},
    retries::ledger,
};

#[tokio::test]
async fn every_frame_goes_both_ways_before_the_next() {
    let mut replica = Replica::start(Do::Stream).await;
    let front = ledger(&[replica.address]).await;
    let (sender, frames) = mpsc::unbounded_channel::<Bytes>();
    let frames = UnboundedReceiverStream::new(frames).map(|data| Ok::<_, std::io::Error>(Frame::data(data)));
    let call = request("/test.Ledger/Follow").body(Body::new(StreamBody::new(frames))).unwrap();
    let mut reply = front.client.send(call).await.unwrap().into_body();
    for text in ["one", "two", "three"] {
        sender.send(framed(text.as_bytes())).unwrap();
        let frame = reply.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), framed(text.as_bytes()));
    }
    drop(sender);
    let trailers = reply.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(!trailers.contains_key(chassis::load::TRAILER));
    assert!(!replica.next().await.head.headers.contains_key("grpc-timeout"), "a stream has the deadline of its client");
}

#[tokio::test]
async fn a_stream_that_its_client_leaves_is_left_by_the_gateway() {
    let mut replica = Replica::start(Do::Stream).await;
    let front = ledger(&[replica.address]).await;
    let (sender, frames) = mpsc::unbounded_channel::<Bytes>();
    let frames = UnboundedReceiverStream::new(frames).map(|data| Ok::<_, std::io::Error>(Frame::data(data)));
    let call = request("/test.Ledger/Follow").body(Body::new(StreamBody::new(frames))).unwrap();
    let reply = front.client.send(call).await.unwrap();
    replica.next().await;
    drop((reply, sender));
    while front.metric("gateway_calls_in_flight").await[0].1 > 0.0 {}
}
