//! W3C trace context: which trace a call belongs to, across every hop.
//!
//! Source: the W3C recommendation Trace Context, version 00 of `traceparent`. `tracestate` passes through untouched.

use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    str::FromStr,
};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Name of the header.
pub const HEADER: HeaderName = HeaderName::from_static("traceparent");

/// A position in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// The start of a new trace, not sampled: nobody asked for it.
    #[must_use]
    pub fn root() -> Self {
        Self { trace_id: (u128::from(random()) << 64) | u128::from(random()), span_id: random(), flags: 0 }
    }

    /// The span of this process below the caller's, or a new trace where the caller sent none or a malformed one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let parent = headers.get(HEADER).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        parent.map_or_else(Self::root, Self::child)
    }

    /// A span below this one.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: random(), ..self }
    }

    /// The trace's id, 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// As a header for the next hop.
    #[must_use]
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let ok = part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if ok { u128::from_str_radix(part, 16).ok() } else { None }
        };
        let (Some(version), Some(trace_id), Some(span_id), Some(flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
            return Err(Malformed);
        };
        // Later versions may append fields; version 00 may not, and ff is forbidden.
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace_id == 0 || span_id == 0 {
            return Err(Malformed);
        }
        let (span_id, flags) =
            (u64::try_from(span_id).map_err(|_| Malformed)?, u8::try_from(flags).map_err(|_| Malformed)?);
        Ok(Self { trace_id, span_id, flags })
    }
}

/// A `traceparent` that is not of the recommendation's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed traceparent")]
pub struct Malformed;

/// Not zero, and different in every call. Ids need to be unique, not secret, so the standard library's hash keys, which
/// the system seeds at random, are enough.
fn random() -> u64 {
    RandomState::new().build_hasher().finish() | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_child_keeps_the_trace_and_its_flags() {
        let headers = HeaderMap::from_iter([(HEADER, HeaderValue::from_static(PARENT))]);
        let child = TraceContext::of(&headers).to_string();
        assert_eq!(&child[..36], &PARENT[..36]);
        assert_ne!(&child[36..52], &PARENT[36..52]);
        assert_eq!(&child[52..], "-01");
    }

    #[test]
    fn malformed_parents_start_a_new_trace() {
        for text in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn roots_differ() {
        assert_ne!(TraceContext::root().trace_id(), TraceContext::root().trace_id());
    }
}
