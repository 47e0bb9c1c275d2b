//! The contracts: everything on the wire is defined by the `.proto` files beside this one.
//!
//! Wire types are used qualified, so that a reader sees where the wire ends: `use proto::embedding::v1 as pb;`.

#![allow(missing_docs, reason = "generated; the .proto files carry the documentation")]
#![allow(clippy::doc_markdown, clippy::large_enum_variant, clippy::too_many_lines, reason = "generated")]

/// What every service shares: selection, accounting, timing, errors.
pub mod common {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tamis.common.v1");
    }
}

/// Text embeddings.
pub mod embedding {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tamis.embedding.v1");
    }
}

/// Text classification.
pub mod classification {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tamis.classification.v1");
    }
}

/// Image classification and embeddings.
pub mod vision {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tamis.vision.v1");
    }
}

/// Fan-out over services, and what the mesh looks like.
pub mod gateway {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tamis.gateway.v1");
    }
}

/// What is served: models, their limits and provenance.
pub mod model {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tamis.model.v1");
    }
}

/// The descriptors of every contract with their comments, as an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The domain of every `google.rpc.ErrorInfo` that Tamis sends.
pub const ERROR_DOMAIN: &str = "tamis";

impl common::v1::ErrorReason {
    /// The reason as `google.rpc.ErrorInfo.reason` spells it: the enum value without its prefix, `"QUEUE_FULL"`.
    #[must_use]
    pub fn as_error_info(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix("ERROR_REASON_").unwrap_or(name)
    }
}
