//! A fan-out as it is asked for: its steps, whose requests stay bytes, and its policy.

use std::{collections::HashSet, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::WireType;
use proto::{common::v1::ErrorReason, gateway::v1 as pb};

use super::{calls, policy::Policy};
use crate::{
    refuse::Refusal,
    wire::{Field, fields},
};

/// Most bytes of a step's id.
const ID_BYTES_MAX: usize = 64;

/// One call of a fan-out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) id: String,
    /// The field that holds its request, and that will hold its reply.
    pub(super) number: u32,
    /// Of its method.
    pub(super) path: &'static str,
    /// Its request.
    pub(super) message: Bytes,
    pub(super) timeout: Option<Duration>,
    pub(super) optional: bool,
}

/// All that is asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) steps: Vec<Step>,
    pub(super) policy: Policy,
}

/// Takes the `FanOutRequest` out of a `FanOutStreamRequest`.
pub(super) fn inner(message: Bytes) -> Result<Bytes, Refusal> {
    let mut request = Bytes::new();
    for field in fields(message) {
        let field = field.map_err(|malformed| Refusal::Malformed(malformed.to_string()))?;
        if field.number == 1 {
            request = joined(request, content(field, "request")?);
        }
    }
    Ok(request)
}

/// Reads a `FanOutRequest`. `root` stands before the paths of its fields: it may be a field itself.
pub(super) fn parse(message: Bytes, root: &str, steps_max: usize) -> Result<Request, Refusal> {
    let (mut steps, mut policy, mut quorum) = (Vec::new(), 0, 0);
    for field in fields(message) {
        let field = field.map_err(|malformed| Refusal::Malformed(malformed.to_string()))?;
        match field.number {
            1 if steps.len() == steps_max => {
                let message = format!("there are more than {steps_max} steps");
                return Err(refused(ErrorReason::TooManyItems, format!("{root}steps"), message));
            }
            1 => {
                let at = format!("{root}steps[{}]", steps.len());
                steps.push(step(content(field, &at)?, &at)?);
            }
            2 => policy = number(&field, root, "failure_policy")?,
            3 => quorum = number(&field, root, "quorum")?,
            _ => {}
        }
    }
    if steps.is_empty() {
        return Err(refused(ErrorReason::EmptyInput, format!("{root}steps"), "there are no steps".into()));
    }
    let mut ids = HashSet::new();
    if let Some((index, step)) = steps.iter().enumerate().find(|(_, step)| !ids.insert(step.id.as_str())) {
        let message = format!("the id `{}` stands twice", step.id);
        return Err(bad(format!("{root}steps[{index}].id"), message));
    }
    let policy = chosen(policy, quorum, root, &steps)?;
    Ok(Request { steps, policy })
}

fn step(message: Bytes, at: &str) -> Result<Step, Refusal> {
    let (mut id, mut call, mut timeout, mut optional) = (Bytes::new(), None, None, false);
    for field in fields(message) {
        let field = field.map_err(|malformed| Refusal::Malformed(format!("{at}: {malformed}")))?;
        match field.number {
            1 => id = content(field, &format!("{at}.id"))?,
            20 => {
                let content = content(field, &format!("{at}.timeout"))?;
                let merged = timeout.get_or_insert_with(prost_types::Duration::default).merge(content);
                merged.map_err(|error| Refusal::Malformed(format!("{at}.timeout: {error}")))?;
            }
            21 => optional = number(&field, at, ".optional")? != 0,
            number => {
                if let Some(path) = calls::path(number) {
                    let content = content(field, &format!("{at}.call"))?;
                    // Of a oneof the last member counts; the same one again adds to what stands.
                    call = Some(match call {
                        Some((first, _, message)) if first == number => (number, path, joined(message, content)),
                        _ => (number, path, content),
                    });
                }
            }
        }
    }
    let id = String::from_utf8(id.into()).map_err(|_| Refusal::Malformed(format!("{at}.id is not UTF-8")))?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        let message = format!("the id has {} bytes, not 1 to {ID_BYTES_MAX}", id.len());
        return Err(bad(format!("{at}.id"), message));
    }
    let none = || bad(format!("{at}.call"), "the step holds no call that this gateway knows".into());
    let (number, path, message) = call.ok_or_else(none)?;
    let timeout = timeout.map(|wanted| positive(wanted, at)).transpose()?;
    Ok(Step { id, number, path, message, timeout, optional })
}

fn positive(wanted: prost_types::Duration, at: &str) -> Result<Duration, Refusal> {
    let timeout = Duration::try_from(wanted).ok().filter(|timeout| !timeout.is_zero());
    timeout.ok_or_else(|| bad(format!("{at}.timeout"), "the timeout is not above 0".into()))
}

fn chosen(policy: u64, quorum: u64, root: &str, steps: &[Step]) -> Result<Policy, Refusal> {
    use pb::FailurePolicy as P;
    let known = i32::try_from(policy).ok().and_then(|policy| P::try_from(policy).ok());
    let required = steps.iter().filter(|step| !step.optional).count();
    let policy = match known {
        Some(P::Unspecified | P::Partial) => Policy::Partial,
        Some(P::FailFast) => Policy::FailFast,
        Some(P::Quorum) => {
            let fits = usize::try_from(quorum).ok().filter(|quorum| (1..=required).contains(quorum));
            let message = || format!("the quorum is {quorum}, not 1 to the {required} steps that are not optional");
            return fits.map(Policy::Quorum).ok_or_else(|| bad(format!("{root}quorum"), message()));
        }
        None => return Err(bad(format!("{root}failure_policy"), format!("{policy} is no failure policy"))),
    };
    if quorum != 0 {
        return Err(bad(format!("{root}quorum"), "a quorum is set and the policy is another".into()));
    }
    Ok(policy)
}

fn content(field: Field, at: &str) -> Result<Bytes, Refusal> {
    match field.kind {
        WireType::LengthDelimited => Ok(field.content),
        _ => Err(Refusal::Malformed(format!("{at} is not encoded as the contract says"))),
    }
}

fn number(field: &Field, at: &str, name: &str) -> Result<u64, Refusal> {
    field.value().ok_or_else(|| Refusal::Malformed(format!("{at}{name} is not encoded as the contract says")))
}

/// Two messages as one: the second adds to the first.
fn joined(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() {
        return second;
    }
    let mut both = BytesMut::from(first);
    both.extend_from_slice(&second);
    both.freeze()
}

fn bad(field: String, message: String) -> Refusal {
    refused(ErrorReason::BadParameter, field, message)
}

fn refused(reason: ErrorReason, field: String, message: String) -> Refusal {
    Refusal::BadInput { reason, field, message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{
        classification::v1::ClassifyRequest,
        embedding::v1::{EmbedParams, EmbedRequest},
    };

    use super::*;
    use crate::wire::{put_content, put_number};

    fn request_of(params: EmbedParams) -> EmbedRequest {
        EmbedRequest { params: Some(params), ..EmbedRequest::default() }
    }

    fn embed(id: &str) -> pb::Step {
        let request = request_of(EmbedParams { dimensions: Some(64), ..EmbedParams::default() });
        pb::Step { id: id.into(), call: Some(pb::step::Call::Embed(request)), ..pb::Step::default() }
    }

    fn of(steps: Vec<pb::Step>) -> pb::FanOutRequest {
        pb::FanOutRequest { steps, ..pb::FanOutRequest::default() }
    }

    fn read(request: &pb::FanOutRequest) -> Result<Request, Refusal> {
        parse(request.encode_to_vec().into(), "", 3)
    }

    #[track_caller]
    fn check(request: &pb::FanOutRequest, reason: ErrorReason, path: &str) {
        match read(request).unwrap_err() {
            Refusal::BadInput { reason: found, field, .. } => assert_eq!((found, field.as_str()), (reason, path)),
            other => panic!("{other:?}"),
        }
    }

    fn with(change: impl FnOnce(&mut pb::Step)) -> pb::FanOutRequest {
        let mut second = embed("b");
        change(&mut second);
        of(vec![embed("a"), second])
    }

    fn quorum(policy: i32, quorum: u32) -> pb::FanOutRequest {
        let optional = pb::Step { optional: true, ..embed("c") };
        pb::FanOutRequest { steps: vec![embed("a"), embed("b"), optional], failure_policy: policy, quorum }
    }

    fn lasting(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos })
    }

    #[test]
    fn a_request_is_read_and_its_steps_stay_bytes() {
        let mut request = with(|step| {
            step.call = Some(pb::step::Call::Classify(ClassifyRequest::default()));
            step.timeout = lasting(0, 1_000_000);
            step.optional = true;
        });
        request.failure_policy = pb::FailurePolicy::FailFast.into();
        let Request { steps, policy } = read(&request).unwrap();
        assert_eq!(policy, Policy::FailFast);
        let message = request_of(EmbedParams { dimensions: Some(64), ..EmbedParams::default() }).encode_to_vec();
        let path = "/tamis.embedding.v1.EmbeddingService/Embed";
        let first = Step { id: "a".into(), number: 2, path, message: message.into(), timeout: None, optional: false };
        assert_eq!(steps[0], first);
        assert_eq!((steps[1].number, steps[1].timeout, steps[1].optional), (5, Some(Duration::from_millis(1)), true));
    }

    #[test]
    fn the_number_of_steps_is_bounded() {
        check(&of(vec![]), ErrorReason::EmptyInput, "steps");
        check(&of(["a", "b", "c", "d"].map(embed).into()), ErrorReason::TooManyItems, "steps");
        read(&of(["a", "b", "c"].map(embed).into())).unwrap();
    }

    #[test]
    fn steps_that_cannot_be_called_are_refused_by_path() {
        let check = |change: fn(&mut pb::Step), path| check(&with(change), ErrorReason::BadParameter, path);
        check(|step| step.id.clear(), "steps[1].id");
        check(|step| step.id = "x".repeat(65), "steps[1].id");
        check(|step| step.id = "a".into(), "steps[1].id");
        check(|step| step.call = None, "steps[1].call");
        check(|step| step.timeout = lasting(0, 0), "steps[1].timeout");
        check(|step| step.timeout = lasting(-1, 0), "steps[1].timeout");
        check(|step| step.timeout = lasting(0, -1), "steps[1].timeout");
        read(&with(|step| step.id = "x".repeat(64))).unwrap();
        read(&with(|step| step.timeout = lasting(i64::MAX, 0))).unwrap();
    }

    #[test]
    fn a_quorum_counts_the_steps_that_are_not_optional() {
        let by_quorum = pb::FailurePolicy::Quorum.into();
        for count in [0, 3, u32::MAX] {
            check(&quorum(by_quorum, count), ErrorReason::BadParameter, "quorum");
        }
        check(&quorum(0, 1), ErrorReason::BadParameter, "quorum");
        check(&quorum(7, 0), ErrorReason::BadParameter, "failure_policy");
        check(&quorum(-1, 0), ErrorReason::BadParameter, "failure_policy");
        assert_eq!(read(&quorum(by_quorum, 2)).unwrap().policy, Policy::Quorum(2));
    }

    #[test]
    fn the_path_of_a_field_begins_at_the_request() {
        let request = of(vec![embed("")]).encode_to_vec();
        let mut message = BytesMut::new();
        put_content(&mut message, 1, &request);
        let refusal = parse(inner(message.freeze()).unwrap(), "request.", 3).unwrap_err();
        assert!(matches!(&refusal, Refusal::BadInput { field, .. } if field == "request.steps[0].id"), "{refusal:?}");
    }

    #[test]
    fn a_call_that_stands_twice_is_merged_and_the_last_of_several_counts() {
        let mut step = BytesMut::from(&embed("a").encode_to_vec()[..]);
        put_content(
            &mut step,
            2,
            &request_of(EmbedParams { normalize: Some(true), ..EmbedParams::default() }).encode_to_vec(),
        );
        let twice = super::step(step.clone().freeze(), "").unwrap();
        let both = EmbedRequest::decode(twice.message).unwrap().params.unwrap();
        assert_eq!((both.dimensions, both.normalize), (Some(64), Some(true)));
        put_content(&mut step, 5, b"");
        let last = super::step(step.freeze(), "").unwrap();
        assert_eq!((last.number, last.message.len()), (5, 0));
    }

    #[test]
    fn what_is_not_encoded_as_the_contract_says_is_malformed() {
        let malformed = |message: BytesMut| {
            let refusal = parse(message.freeze(), "", 3).unwrap_err();
            assert!(matches!(refusal, Refusal::Malformed(_)), "{refusal:?}");
        };
        let step = |fill: fn(&mut BytesMut)| {
            let (mut step, mut message) = (BytesMut::new(), BytesMut::new());
            fill(&mut step);
            put_content(&mut message, 1, &step);
            message
        };
        let mut number = BytesMut::new();
        put_number(&mut number, 1, 7);
        malformed(number);
        malformed(step(|step| put_content(step, 1, b"\xff\xfe")));
        malformed(step(|step| put_number(step, 2, 7)));
        malformed(step(|step| put_content(step, 20, b"\x08")));
        malformed(step(|step| put_content(step, 21, b"")));
        malformed(step(|step| step.extend_from_slice(b"\x0a\x7f")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(inner(bytes.clone().into()).map(|message| parse(message, "request.", 3)));
            drop(parse(bytes.into(), "", 3));
        }
    }
}
