//! Which method a step calls: told by the number of the field that holds its request.

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet, MethodDescriptorProto};

/// Numbers in the oneof `Step.call`, and in `StepResult.outcome` for the reply, with the paths of their methods.
const CALLS: [(u32, &str); 7] = [
    (2, "/tamis.embedding.v1.EmbeddingService/Embed"),
    (3, "/tamis.embedding.v1.EmbeddingService/Rerank"),
    (4, "/tamis.embedding.v1.EmbeddingService/CountTokens"),
    (5, "/tamis.classification.v1.ClassificationService/Classify"),
    (6, "/tamis.classification.v1.ClassificationService/ClassifyZeroShot"),
    (7, "/tamis.vision.v1.VisionService/ClassifyImages"),
    (8, "/tamis.vision.v1.VisionService/EmbedImages"),
];

/// The path of the method whose request stands in this field of a step.
pub(super) fn path(number: u32) -> Option<&'static str> {
    CALLS.iter().find(|(call, _)| *call == number).map(|(_, path)| *path)
}

/// Compares the table with the contracts: steps pass through as bytes, and a wrong entry would send one message for another.
///
/// # Errors
/// Says where they differ.
pub(crate) fn check(descriptors: &[u8]) -> Result<(), String> {
    let set = FileDescriptorSet::decode(descriptors).map_err(|error| error.to_string())?;
    let (step, result) = (message(&set, "Step")?, message(&set, "StepResult")?);
    let call = step.oneof_decl.iter().position(|oneof| oneof.name() == "call").ok_or("Step has no oneof `call`")?;
    let members =
        step.field.iter().filter(|field| field.oneof_index.and_then(|i| usize::try_from(i).ok()) == Some(call));
    let mut known = 0;
    for member in members {
        let number = member.number();
        let path = u32::try_from(number).ok().and_then(path).ok_or(format!("Step.{} has no method", member.name()))?;
        let method = method(&set, path).ok_or(format!("{path} is no method"))?;
        if method.input_type() != member.type_name() {
            return Err(format!("Step.{} is not what {path} takes", member.name()));
        }
        let outcome = result.field.iter().find(|field| field.number() == number);
        if outcome.is_none_or(|outcome| outcome.type_name() != method.output_type()) {
            return Err(format!("StepResult.{} is not what {path} answers", member.name()));
        }
        known += 1;
    }
    if known == CALLS.len() { Ok(()) } else { Err(format!("Step has {known} calls and not {}", CALLS.len())) }
}

fn message<'a>(set: &'a FileDescriptorSet, name: &str) -> Result<&'a DescriptorProto, String> {
    let files = set.file.iter().filter(|file| file.package() == "tamis.gateway.v1");
    files
        .flat_map(|file| &file.message_type)
        .find(|message| message.name() == name)
        .ok_or(format!("there is no {name}"))
}

fn method<'a>(set: &'a FileDescriptorSet, path: &str) -> Option<&'a MethodDescriptorProto> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let mut methods = services
        .filter(|(package, found)| format!("{package}.{}", found.name()) == service)
        .flat_map(|(_, service)| &service.method);
    methods.find(|method| method.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contracts with one change.
    fn changed(change: impl Fn(&mut DescriptorProto)) -> Vec<u8> {
        let mut set = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
        for file in set.file.iter_mut().filter(|file| file.package() == "tamis.gateway.v1") {
            file.message_type.iter_mut().for_each(&change);
        }
        set.encode_to_vec()
    }

    #[test]
    fn every_call_of_a_step_has_its_method_and_the_types_agree() {
        check(proto::DESCRIPTORS).unwrap();
    }

    #[test]
    fn a_call_without_a_method_is_noticed() {
        let more = changed(|message| {
            if message.name() == "Step" {
                let member = message.field.iter().find(|field| field.name() == "embed").unwrap().clone();
                message.field.push(prost_types::FieldDescriptorProto { number: Some(19), ..member });
            }
        });
        assert_eq!(check(&more).unwrap_err(), "Step.embed has no method");
    }

    #[test]
    fn types_that_do_not_agree_are_noticed() {
        let swapped = |of: &'static str| {
            changed(move |message| {
                if message.name() == of {
                    let embed = message.field.iter_mut().find(|field| field.name() == "embed").unwrap();
                    embed.type_name = Some(".tamis.embedding.v1.Other".into());
                }
            })
        };
        assert!(check(&swapped("Step")).unwrap_err().contains("takes"));
        assert!(check(&swapped("StepResult")).unwrap_err().contains("answers"));
    }

    #[test]
    fn a_method_without_a_call_is_noticed() {
        let fewer = changed(|message| message.field.retain(|field| field.name() != "embed"));
        assert_eq!(check(&fewer).unwrap_err(), "Step has 6 calls and not 7");
    }
}
