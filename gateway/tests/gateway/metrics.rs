//! Every metric moves with what it counts.

use crate::{
    client::{framed, request},
    front::Front,
    replica::{Do, Replica},
};

#[tokio::test]
async fn calls_latencies_refusals_and_replicas_are_counted() {
    let replica = Replica::start(Do::Echo).await;
    let front = Front::before(&[replica.address, "127.0.0.1:1".parse().unwrap()]).await;
    front.until_ready(1).await;
    front.client.embed(b"text").await;
    front.client.embed(b"text").await;
    front.client.call(request("/no.such.Service/Method"), framed(b"")).await;
    let value = async |name: &str, labels: &[&str]| {
        let values = front.metric(name).await;
        let found = values.iter().find(|(text, _)| labels.iter().all(|label| text.contains(label)));
        found.unwrap_or_else(|| panic!("{name} {labels:?} is not in {values:?}")).1
    };
    let embed = [r#"service="tamis.embedding.v1.EmbeddingService""#, r#"method="Embed""#];
    assert_eq!(value("gateway_calls_total", &[embed[0], embed[1], r#"code="OK""#]).await, 2.0);
    assert_eq!(value("gateway_call_duration_seconds_count", &embed).await, 2.0);
    assert_eq!(value("gateway_calls_total", &[r#"service="unknown""#, r#"code="UNIMPLEMENTED""#]).await, 1.0);
    assert_eq!(value("gateway_refusals_total", &[r#"reason="UNKNOWN_METHOD""#]).await, 1.0);
    let up = format!(r#"endpoint="{}""#, replica.address);
    assert_eq!(value("gateway_endpoint_up", &[r#"service="embedding""#, &up]).await, 1.0);
    assert_eq!(value("gateway_endpoint_up", &[r#"endpoint="127.0.0.1:1""#]).await, 0.0);
    assert_eq!(value("gateway_outstanding_work_seconds", &[&up]).await, 0.0);
    assert_eq!(value("gateway_calls_in_flight", &[]).await, 0.0);
}
