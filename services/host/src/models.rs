//! `tamis.model.v1.ModelService` for the models of this process.

use std::sync::Arc;

use chassis::refusal::Refusal;
use proto::model::v1::{self as pb, model_service_server::ModelService};
use tonic::{Request, Response, Status};

use crate::{
    Host, Hosted, bad_parameter,
    catalog::{Key, Snapshot},
};

/// Models of one page, unless the request says otherwise.
const PAGE_DEFAULT: usize = 100;
/// Between name and revision in a page token; no name has one.
const TOKEN_SEPARATOR: char = ' ';

/// Answers for a host.
pub(crate) struct Models<M: Hosted> {
    pub(crate) host: Arc<Host<M>>,
    /// Methods of the service.
    pub(crate) methods: &'static [&'static str],
}

#[tonic::async_trait]
impl<M: Hosted> ModelService for Models<M> {
    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size).map_err(Refusal::into_status)?;
        let snapshot = self.host.catalog.snapshot();
        let mut models: Vec<_> = snapshot.models().collect();
        models.sort_by_key(|(key, _)| *key);
        // A page token is the last model of the page before: it stays right when models come and go.
        let token = request.page_token.as_str();
        let (name, revision) = token.split_once(TOKEN_SEPARATOR).unwrap_or((token, ""));
        models.retain(|(key, _)| (key.name.as_str(), key.revision.as_str()) > (name, revision));
        let more = models.len() > size;
        models.truncate(size);
        let last =
            models.last().filter(|_| more).map(|(key, _)| format!("{}{TOKEN_SEPARATOR}{}", key.name, key.revision));
        let describe = |model| describe(&self.host, self.methods, &snapshot, model);
        let models = models.into_iter().map(describe).collect();
        Ok(Response::new(pb::ListModelsResponse { models, next_page_token: last.unwrap_or_default() }))
    }

    async fn get_model(&self, request: Request<pb::GetModelRequest>) -> Result<Response<pb::GetModelResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(bad_parameter("name", "name is empty; ListModels has the names").into_status());
        }
        let snapshot = self.host.catalog.snapshot();
        // A model whose name stands for nothing is there for those that pin its revision.
        let found = snapshot.standing(&name).or_else(|| snapshot.latest(&name));
        let model = found.ok_or_else(|| snapshot.unknown(&name).field("name").into_status())?;
        let model = describe(&self.host, self.methods, &snapshot, model);
        Ok(Response::new(pb::GetModelResponse { model: Some(model) }))
    }
}

/// A loaded model as the contract has it.
pub(crate) fn describe<M: Hosted>(
    host: &Host<M>,
    methods: &[&str],
    snapshot: &Snapshot<M>,
    (key, model): (&Key, &Arc<M>),
) -> pb::Model {
    let info = model.info();
    let vectors = info.dimensions > 0;
    let served = methods.iter().filter(|method| model.serves(method));
    pb::Model {
        name: key.name.clone(),
        revision: key.revision.clone(),
        methods: served.map(|method| (*method).to_owned()).collect(),
        is_default: snapshot.is_default(model, methods),
        max_batch_items: host.batch_items_max,
        max_input_tokens: info.max_input_tokens,
        dimensions: info.dimensions,
        space_id: if vectors { info.space_id(info.normalize_default, None) } else { String::new() },
        labels: info.labels.clone(),
        file_digests: info.file_digests.clone().into_iter().collect(),
        sources: info.sources.clone(),
        licence: info.licence.clone(),
        parameter_bytes: info.parameter_bytes,
        loaded_at: Some(info.loaded_at.into()),
        device: info.plan.device.to_string(),
        dtype: info.plan.precision.to_string(),
        compute_path: info.plan.path.to_string(),
        aliases: snapshot.aliases_of(key),
    }
}

fn page_size(asked: i32) -> Result<usize, Refusal> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(size) if size <= PAGE_DEFAULT => Ok(size),
        _ => Err(bad_parameter("page_size", format!("page_size is {asked}; send 0 to {PAGE_DEFAULT}"))),
    }
}
