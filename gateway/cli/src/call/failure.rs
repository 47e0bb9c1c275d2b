//! Failed calls in words: what, why, and what to do.

use std::{error::Error, io};

use rustls::AlertDescription;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::advice::Advice;

/// A connection that could not be made.
pub(crate) fn connection(error: io::Error, address: &str) -> anyhow::Error {
    if let Some(tls) = caused_by(&error) {
        return tls_failure(tls, address);
    }
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => Advice::new(
            format!("no mesh answers at {address}"),
            "start it with `tamis up`, or name its address with --address",
        ),
        _ => Advice::new(format!("cannot connect to {address}"), "see that --address is the gateway's, as host:port"),
    };
    anyhow::Error::new(error).context(advice)
}

/// A connection that failed after it was made.
pub(crate) fn transport(error: &(dyn Error + 'static), address: &str) -> anyhow::Error {
    match caused_by(error) {
        Some(tls) => tls_failure(tls, address),
        None => Advice::new(
            format!("the connection to {address} failed: {}", chain(error)),
            "the gateway's log in the data directory, run/logs/gateway.log, may say more",
        )
        .into(),
    }
}

/// A call that came back with an error.
pub(crate) fn status(status: &Status, address: &str) -> anyhow::Error {
    if let Some(cause) = status.source() {
        if caused_by::<TimeoutExpired>(cause).is_some() {
            return Advice::new(format!("no reply from {address} in time"), "allow more with --timeout").into();
        }
        return transport(cause, address);
    }
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let code = code_name(status.code());
    let named = if reason.is_empty() { code } else { format!("{code}, {reason}") };
    let what = format!("the call failed: {named}: {}", status.message());
    match help(status.code(), &reason) {
        Some(help) => Advice::new(what, help).into(),
        None => anyhow::anyhow!(what),
    }
}

fn help(code: Code, reason: &str) -> Option<&'static str> {
    Some(match (reason, code) {
        ("MODEL_NOT_FOUND", _) => {
            "leave --model out for the default model; `tamis models list` shows those of this machine"
        }
        ("NOT_ALLOWED", _) => {
            "the gateway's [[allow]] rules say who may call what; use another certificate with --cert"
        }
        ("NO_IDENTITY", _) => "`tamis certs issue client/NAME` makes a certificate with an identity",
        ("UNKNOWN_METHOD", _) => "no service of the mesh answers this; `tamis up --replicas` may have left it out",
        ("NO_CAPACITY" | "REPLICA_LOST", _) => "see the logs of the services in the data directory, run/logs",
        ("DRAINING", _) => "the mesh is being stopped; start it again with `tamis up`",
        ("QUEUE_FULL", _) => "try again in a moment, or send less at once",
        ("TOO_MANY_ITEMS" | "MESSAGE_TOO_LARGE", _) => "send less in one call",
        ("DEADLINE", _) | (_, Code::DeadlineExceeded) => "allow more time with --timeout",
        (_, Code::Unavailable) => "try again; if it stays so, the logs are in the data directory, run/logs",
        (_, Code::Internal | Code::Unknown) => {
            "this is a fault of the server; its logs are in the data directory, run/logs"
        }
        _ => return None,
    })
}

fn tls_failure(error: &rustls::Error, address: &str) -> anyhow::Error {
    let (what, help) = match error {
        rustls::Error::AlertReceived(alert) => {
            let why = match alert {
                AlertDescription::CertificateRequired => "it asks for a client certificate".to_owned(),
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "another authority signed it".to_owned()
                }
                AlertDescription::CertificateExpired => "it has expired".to_owned(),
                other => format!("{other:?}"),
            };
            (
                format!("the mesh at {address} does not accept the client certificate: {why}"),
                "`tamis certs show` shows the certificates of this machine; --cert and --key name another",
            )
        }
        rustls::Error::InvalidCertificate(why) => (
            format!("the server at {address} shows a certificate that cannot be trusted: {why}"),
            "--ca names the authority of its mesh, and --server-id its identity",
        ),
        rustls::Error::InvalidMessage(_) => (
            format!("what listens at {address} does not speak TLS: {error}"),
            "see that --address is the gateway's gRPC port, not its admin or health port",
        ),
        rustls::Error::General(why) => (
            format!("another server than expected answers at {address}: {why}"),
            "see that --address is the gateway's; --server-id names another identity",
        ),
        other => (
            format!("no secure connection to {address}: {other}"),
            "see that --address and --server-id are the gateway's",
        ),
    };
    Advice::new(what, help).into()
}

/// The error of this type that caused the other. An I/O error hides the one that it wraps from `source`.
pub(crate) fn caused_by<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    texts.dedup();
    texts.join(": ")
}

/// The code as gRPC writes it, `NOT_FOUND`.
pub(crate) fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::advice::report;

    #[test]
    fn a_status_is_told_with_code_reason_message_and_help() {
        let details = ErrorDetails::with_error_info("MODEL_NOT_FOUND", "tamis", std::collections::HashMap::new());
        let refusal = Status::with_error_details(Code::NotFound, "no model is named x", details);
        let text = report(&status(&refusal, "a:1"));
        assert!(
            text.starts_with("error: the call failed: NOT_FOUND, MODEL_NOT_FOUND: no model is named x\n  help: "),
            "{text}"
        );
    }

    #[test]
    fn nobody_there_is_told_how_to_start_a_mesh() {
        let text = report(&connection(io::ErrorKind::ConnectionRefused.into(), "127.0.0.1:1"));
        assert!(text.contains("127.0.0.1:1") && text.contains("`tamis up`"), "{text}");
    }

    #[test]
    fn a_refused_certificate_is_found_below_other_errors() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        let outer = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert));
        let text = report(&connection(outer, "a:1"));
        assert!(text.contains("does not accept the client certificate: it has expired"), "{text}");
    }

    #[test]
    fn a_server_with_another_identity_is_told() {
        let text = report(&connection(io::Error::other(rustls::Error::General("it is x".into())), "a:1"));
        assert!(text.contains("another server than expected answers at a:1: it is x"), "{text}");
    }

    #[test]
    fn a_reply_that_does_not_come_in_time_is_told() {
        let text = report(&status(&Status::from_error(Box::new(TimeoutExpired(()))), "a:1"));
        assert!(text.contains("--timeout"), "{text}");
    }

    #[test]
    fn codes_are_written_as_grpc_does() {
        assert_eq!(code_name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
        assert_eq!(code_name(Code::Ok), "OK");
    }
}
