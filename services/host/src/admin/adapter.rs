//! `tamis.model.v1.ModelAdminService`: who asked for what, and what became of it.

use std::sync::Arc;

use chassis::{peer::Peer, readiness::Readiness, refusal::Refusal};
use engine::Plan;
use proto::{
    common::v1::ErrorReason,
    model::v1::{self as pb, model_admin_service_server::ModelAdminService},
};
use tonic::{Code, Request, Response, Status};

use super::Changes;
use crate::{Hosted, models, status::refusal};

/// Answers for the changes of a host.
pub(crate) struct Admin<M: Hosted> {
    pub(crate) changes: Arc<Changes<M>>,
    pub(crate) readiness: Readiness,
}

impl<M: Hosted> Admin<M> {
    /// A process that is shutting down changes nothing any more.
    fn check(&self) -> Result<(), Status> {
        if !self.readiness.state().draining {
            return Ok(());
        }
        let refused = refusal(Code::Unavailable, ErrorReason::Draining, "the server is shutting down");
        Err(refused.retry_after(std::time::Duration::from_millis(100)).into_status())
    }
}

#[tonic::async_trait]
impl<M: Hosted> ModelAdminService for Admin<M> {
    async fn load_model(
        &self,
        request: Request<pb::LoadModelRequest>,
    ) -> Result<Response<pb::LoadModelResponse>, Status> {
        self.check()?;
        let (who, request) = open(request);
        let (key, model) = self.changes.load(&request).await.map_err(|refused| told(&who, "load", refused))?;
        let snapshot = self.changes.host.catalog.snapshot();
        let aliases = snapshot.aliases_of(&key).join(", ");
        let Plan { device, path, precision } = model.info().plan;
        tracing::info!(who, model = key.name, revision = key.revision, aliases, %precision, %path, %device, "loaded");
        let model = models::describe(&self.changes.host, self.changes.methods, &snapshot, (&key, &model));
        Ok(Response::new(pb::LoadModelResponse { model: Some(model) }))
    }

    async fn set_alias(&self, request: Request<pb::SetAliasRequest>) -> Result<Response<pb::SetAliasResponse>, Status> {
        self.check()?;
        let (who, request) = open(request);
        let before = self.changes.set_alias(&request).await.map_err(|refused| told(&who, "alias", refused))?;
        let previous_revision = before.map(|key| key.revision).unwrap_or_default();
        let pb::SetAliasRequest { alias, name, revision } = request;
        tracing::info!(who, alias, model = name, revision, previous_revision, "alias set");
        Ok(Response::new(pb::SetAliasResponse { previous_revision }))
    }

    async fn unload_model(
        &self,
        request: Request<pb::UnloadModelRequest>,
    ) -> Result<Response<pb::UnloadModelResponse>, Status> {
        self.check()?;
        let (who, request) = open(request);
        let key = self.changes.unload(&request).await.map_err(|refused| told(&who, "unload", refused))?;
        tracing::info!(who, model = key.name, revision = key.revision, "unloaded");
        Ok(Response::new(pb::UnloadModelResponse {}))
    }
}

/// Who asks, and for what. The identity is there: the admin port lets nobody in without one.
fn open<T>(request: Request<T>) -> (String, T) {
    let peer = request.extensions().get::<Peer>();
    let who = peer.and_then(|peer| peer.id.as_ref().ok()).map(ToString::to_string).unwrap_or_default();
    (who, request.into_inner())
}

fn told(who: &str, what: &str, refused: Refusal) -> Status {
    tracing::info!(who, what, reason = refused.reason, why = refused.message, "a change was refused");
    refused.into_status()
}
