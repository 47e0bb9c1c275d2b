//! Checks that a request is gRPC before anything else looks at it.
//!
//! hyper and h2 accept any HTTP/2 request, even one without `:path`; a replica must never see what is no call.

use chassis::{
    deadline,
    trace::{self, TraceContext},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};

use crate::refuse::Refusal;

/// Header with the client's estimate of a call's work: tokens or images.
pub(crate) const UNITS: &str = "tamis-units";

/// Header with the SPIFFE identity of the client, for replicas. What a client sends under this name is replaced.
pub(crate) const CALLER: HeaderName = HeaderName::from_static("tamis-caller");

const HOP_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Passes a well-formed gRPC request.
///
/// # Errors
/// Names what is wrong with any other.
pub(crate) fn check(head: &Parts) -> Result<(), Refusal> {
    let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !content_type.is_some_and(is_grpc) {
        return Err(Refusal::NotGrpc);
    }
    if head.method != Method::POST {
        return Err(Refusal::Malformed("the method is not POST".into()));
    }
    let path = head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    if !is_method_path(path) {
        return Err(Refusal::Malformed(":path is not of the form /package.Service/Method".into()));
    }
    if head.uri.scheme_str() != Some("https") {
        return Err(Refusal::Malformed(":scheme is not https".into()));
    }
    if head.headers.get(header::TE).is_none_or(|te| te != "trailers") {
        return Err(Refusal::Malformed("te is not `trailers`: a proxy on the way does not speak gRPC".into()));
    }
    Ok(())
}

/// Makes a client's headers those of a replica's caller: who calls and in which trace is the gateway's word, and what
/// concerned the client's connection only is gone.
pub(crate) fn prepare(headers: &mut HeaderMap, caller: &HeaderValue, trace: &TraceContext) {
    strip_hop_headers(headers);
    headers.remove(header::HOST);
    headers.remove(header::EXPECT);
    headers.remove(deadline::HEADER); // every attempt gets its own
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(CALLER, caller.clone());
    headers.insert(trace::HEADER, trace.to_header());
}

/// Removes what HTTP defines for one connection, and the length, which each side states for itself.
pub(crate) fn strip_hop_headers(headers: &mut HeaderMap) {
    for name in HOP_HEADERS {
        headers.remove(name);
    }
}

/// The client's estimate of the work, if it gave one that can be read. It is a hint: a bad one is no reason to refuse.
pub(crate) fn units(headers: &HeaderMap) -> Option<u32> {
    headers.get(UNITS)?.to_str().ok()?.parse().ok()
}

/// `application/grpc`, or with a subtype of protobuf. Other subtypes are other encodings, which no contract here has.
fn is_grpc(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/grpc") || essence.eq_ignore_ascii_case(b"application/grpc+proto")
}

fn is_method_path(path: &str) -> bool {
    let parts = path.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    parts.is_some_and(|(service, method)| !service.is_empty() && !method.is_empty() && !method.contains(['/', '?']))
}

#[cfg(test)]
mod tests {
    use http::{Request, Uri};

    use super::*;

    fn request() -> Parts {
        let request =
            Request::post("https://mesh/a.B/C").header("content-type", "application/grpc").header("te", "trailers");
        request.body(()).unwrap().into_parts().0
    }

    fn check_broken(break_it: impl FnOnce(&mut Parts)) -> Refusal {
        let mut head = request();
        break_it(&mut head);
        check(&head).unwrap_err()
    }

    #[test]
    fn a_grpc_request_passes() {
        check(&request()).unwrap();
        for content_type in ["application/grpc+proto", "application/grpc; charset=utf-8"] {
            let mut head = request();
            head.headers.insert("content-type", content_type.parse().unwrap());
            check(&head).unwrap();
        }
    }

    #[test]
    fn other_content_is_not_grpc() {
        for content_type in ["application/json", "application/grpc-web", "application/grpc+json", "", "text/plain"] {
            let set = |head: &mut Parts| _ = head.headers.insert("content-type", content_type.parse().unwrap());
            assert_eq!(check_broken(set), Refusal::NotGrpc, "{content_type}");
        }
        assert_eq!(check_broken(|head| head.headers.clear()), Refusal::NotGrpc);
    }

    #[test]
    fn a_request_without_a_method_path_is_malformed() {
        let mut parts = http::uri::Parts::default();
        parts.authority = Some("mesh".parse().unwrap());
        let without_path = Uri::from_parts(parts).unwrap();
        let uris = [
            "https://mesh",
            "https://mesh/",
            "https://mesh/a",
            "https://mesh/a/",
            "https://mesh//b",
            "https://mesh/a/b/c",
        ];
        for uri in uris.into_iter().map(|uri| uri.parse().unwrap()).chain([without_path, "*".parse().unwrap()]) {
            let refusal = check_broken(|head| head.uri = uri);
            assert!(matches!(&refusal, Refusal::Malformed(why) if why.contains(":path")), "{refusal:?}");
        }
    }

    #[test]
    fn method_scheme_and_te_are_checked() {
        let refusals = [
            (check_broken(|head| head.method = Method::GET), "POST"),
            (check_broken(|head| head.uri = "http://mesh/a.B/C".parse().unwrap()), ":scheme"),
            (check_broken(|head| _ = head.headers.remove("te")), "te is not"),
        ];
        for (refusal, what) in refusals {
            assert!(matches!(&refusal, Refusal::Malformed(why) if why.contains(what)), "{refusal:?}");
        }
    }

    #[test]
    fn a_replica_hears_who_calls_from_the_gateway_only() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("tamis-caller", "spiffe://tamis.local/gateway"),
            ("connection", "close"),
            ("grpc-timeout", "1H"),
            ("content-length", "7"),
            ("traceparent", "nonsense"),
            ("x-tenant", "a"),
        ] {
            headers.append(name, value.parse().unwrap());
            headers.append(name, value.parse().unwrap());
        }
        let trace = TraceContext::root();
        prepare(&mut headers, &HeaderValue::from_static("spiffe://tamis.local/client/dev"), &trace);
        let all = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("tamis-caller"), ["spiffe://tamis.local/client/dev"]);
        assert_eq!(all("traceparent"), [trace.to_string()]);
        assert_eq!(all("te"), ["trailers"]);
        assert_eq!(all("x-tenant"), ["a", "a"]);
        assert_eq!(headers.keys_len(), 4);
    }

    #[test]
    fn a_hint_that_cannot_be_read_is_no_hint() {
        let mut headers = HeaderMap::new();
        assert_eq!(units(&headers), None);
        for (text, expected) in [("17", Some(17)), ("-1", None), ("many", None), ("99999999999", None)] {
            headers.insert(UNITS, text.parse().unwrap());
            assert_eq!(units(&headers), expected, "{text}");
        }
    }
}
