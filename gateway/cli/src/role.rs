//! The roles that a process can take in the mesh.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The trust domain of the certificates that this program makes.
pub(crate) const TRUST_DOMAIN: &str = "tamis.local";

/// A role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Embedding,
    Classification,
    Vision,
    Gateway,
}

impl Role {
    /// The roles that compute, in the order in which they are shown.
    pub(crate) const SERVICES: [Self; 3] = [Self::Embedding, Self::Classification, Self::Vision];

    /// Its name in commands, configurations, files and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Classification => "classification",
            Self::Vision => "vision",
            Self::Gateway => "gateway",
        }
    }

    /// What it serves behind the gateway.
    pub(crate) const fn grpc_service(self) -> Option<&'static str> {
        match self {
            Self::Embedding => Some("tamis.embedding.v1.EmbeddingService"),
            Self::Classification => Some("tamis.classification.v1.ClassificationService"),
            Self::Vision => Some("tamis.vision.v1.VisionService"),
            Self::Gateway => None,
        }
    }

    /// The path of its SPIFFE identity.
    pub(crate) fn identity(self) -> String {
        match self {
            Self::Gateway => self.name().to_owned(),
            _ => format!("service/{}", self.name()),
        }
    }

    /// Its SPIFFE identity in the development mesh.
    pub(crate) fn spiffe_id(self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/{}", self.identity())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
