//! The methods of the mesh, from the descriptor sets of its contracts.
//!
//! Nothing is configured a second time: paths, whether a method streams and whether it may be repeated are in the
//! contracts. A service in any language joins with its own descriptor set.

use std::{collections::HashMap, sync::Arc};

use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto, method_options::IdempotencyLevel};

use crate::{
    batch::{self, Batch},
    content::Use,
};

/// Whether a call that may have been processed may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Its contract says NO_SIDE_EFFECTS or IDEMPOTENT.
    Safe,
    /// Its contract says nothing.
    Unsafe,
}

/// How many messages a call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One request and one reply: it can be held, and sent again.
    Unary,
    /// Several in at least one direction: it passes through frame by frame.
    Streaming,
}

/// A method of a contract.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/pkg.Service/Method`.
    pub(crate) path: PathAndQuery,
    /// `pkg.Service`.
    pub(crate) service: Arc<str>,
    /// `Method`.
    pub(crate) name: Box<str>,
    pub(crate) shape: Shape,
    /// Unary also for a stream of requests with one reply: it is held until its status is known.
    pub(crate) reply: Shape,
    pub(crate) repeat: Repeat,
    pub(crate) content: Option<Use>,
    /// How its batches are written, if it takes any.
    pub(crate) batch: Option<&'static Batch>,
}

/// Every method of the given contracts.
///
/// # Errors
/// When a set does not decode or a name in it is no path.
pub(crate) fn methods<'a>(descriptor_sets: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Method>, String> {
    let mut methods = Vec::new();
    for set in descriptor_sets {
        let set = FileDescriptorSet::decode(set).map_err(|error| format!("not a descriptor set: {error}"))?;
        for file in &set.file {
            for service in &file.service {
                let name: Arc<str> = match file.package() {
                    "" => service.name().into(),
                    package => format!("{package}.{}", service.name()).into(),
                };
                for method in &service.method {
                    methods.push(Method::new(&name, method)?);
                }
            }
        }
    }
    Ok(methods)
}

/// Where each path leads.
#[derive(Debug)]
pub(crate) struct Routes<T>(HashMap<Box<str>, T>);

// === impl Method ===

impl Method {
    fn new(service: &Arc<str>, method: &MethodDescriptorProto) -> Result<Self, String> {
        let path = format!("/{service}/{}", method.name());
        let path = PathAndQuery::try_from(path.clone()).map_err(|_| format!("`{path}` is not a path"))?;
        let idempotency = method.options.as_ref().map(prost_types::MethodOptions::idempotency_level);
        Ok(Self {
            service: Arc::clone(service),
            name: method.name().into(),
            shape: if method.client_streaming() || method.server_streaming() { Shape::Streaming } else { Shape::Unary },
            reply: if method.server_streaming() { Shape::Streaming } else { Shape::Unary },
            content: Use::of(path.as_str()),
            batch: batch::of(path.as_str()),
            repeat: match idempotency {
                Some(IdempotencyLevel::NoSideEffects | IdempotencyLevel::Idempotent) => Repeat::Safe,
                Some(IdempotencyLevel::IdempotencyUnknown) | None => Repeat::Unsafe,
            },
            path,
        })
    }
}

// === impl Routes ===

impl<T> Routes<T> {
    /// The route of a path; the first of several.
    pub(crate) fn find(&self, path: &str) -> Option<&T> {
        self.0.get(path)
    }
}

impl<T> FromIterator<(PathAndQuery, T)> for Routes<T> {
    fn from_iter<I: IntoIterator<Item = (PathAndQuery, T)>>(routes: I) -> Self {
        let mut table = HashMap::new();
        for (path, route) in routes {
            table.entry(path.as_str().into()).or_insert(route);
        }
        Self(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(path: &str) -> Method {
        let sets = [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];
        methods(sets).unwrap().into_iter().find(|method| method.path == path).unwrap()
    }

    #[test]
    fn inference_may_be_repeated() {
        let embed = method("/tamis.embedding.v1.EmbeddingService/Embed");
        assert_eq!((embed.shape, embed.repeat), (Shape::Unary, Repeat::Safe));
        assert_eq!((&*embed.service, &*embed.name), ("tamis.embedding.v1.EmbeddingService", "Embed"));
    }

    #[test]
    fn a_method_without_a_promise_may_not_be_repeated() {
        assert_eq!(method("/grpc.health.v1.Health/Check").repeat, Repeat::Unsafe);
    }

    #[test]
    fn streams_are_told_from_the_descriptor() {
        let watch = method("/grpc.health.v1.Health/Watch");
        assert_eq!((watch.shape, watch.reply), (Shape::Streaming, Shape::Streaming));
        let upload = method("/tamis.vision.v1.VisionService/UploadImage");
        assert_eq!((upload.shape, upload.reply), (Shape::Streaming, Shape::Unary));
    }

    #[test]
    fn what_is_no_descriptor_set_is_refused() {
        assert!(methods([b"\xff\xff".as_slice()]).is_err());
    }

    #[test]
    fn unknown_paths_lead_nowhere() {
        let routes: Routes<u8> =
            [(PathAndQuery::from_static("/a.B/C"), 1), (PathAndQuery::from_static("/a.B/C"), 2)].into_iter().collect();
        assert_eq!(routes.find("/a.B/C"), Some(&1));
        assert_eq!(routes.find("/a.B/D"), None);
    }
}
