//! A call can be followed through the mesh by its trace, and its content cannot.

use std::fs;

use tonic::Request;

use crate::harness::{embed, eventually, mesh};

#[tokio::test]
async fn the_callers_trace_is_in_the_logs_of_gateway_and_service_and_the_text_is_not() {
    let mesh = mesh();
    let (trace, secret) = ("4bf92f3577b34da6a3ce929d0e0e4736", "the password is xyzzy-plugh");
    let mut request = Request::new(embed([secret]));
    request.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
    mesh.client().await.embedding().embed(request).await.unwrap();

    let logs = mesh.folder.path().join("run/logs");
    let read = |name: &str| fs::read_to_string(logs.join(format!("{name}.log"))).unwrap();
    let names: Vec<_> = mesh.members().into_iter().map(|member| member.name).collect();
    eventually("the call is logged", async || {
        let logged = |role: &str| names.iter().any(|name| name.starts_with(role) && read(name).contains(trace));
        (logged("gateway") && logged("embedding")).then_some(())
    })
    .await;
    assert!(!names.iter().any(|name| read(name).contains("xyzzy")), "a log holds the caller's text");
}
