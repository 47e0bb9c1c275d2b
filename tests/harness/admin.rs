//! What a process says on its admin port.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// All metrics.
pub(crate) async fn metrics(admin: SocketAddr) -> String {
    read(admin, "/metrics").await
}

/// The effective configuration.
pub(crate) async fn config(admin: SocketAddr) -> String {
    read(admin, "/config").await
}

/// The value of one series, named with its labels as it stands in the text; 0 if it is not there yet.
pub(crate) fn metric(text: &str, series: &str) -> f64 {
    let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or_default()
}

async fn read(admin: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    // HTTP/1.0: the reply ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    body.to_owned()
}
