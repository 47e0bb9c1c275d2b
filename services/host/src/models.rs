//! `tamis.model.v1.ModelService` for the models of this process.

use std::sync::Arc;

use chassis::refusal::Refusal;
use engine::ModelInfo;
use proto::model::v1::{self as pb, model_service_server::ModelService};
use tonic::{Request, Response, Status};

use crate::{Host, Hosted, bad_parameter};

/// Models of one page, unless the request says otherwise.
const PAGE_DEFAULT: usize = 100;

/// Answers for a host.
pub(crate) struct Models<M: Hosted> {
    pub(crate) host: Arc<Host<M>>,
    /// Methods for every model.
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
        // A page token is the last name of the page before: it stays right when models come and go.
        let mut models: Vec<_> = self
            .host
            .catalog
            .models()
            .filter(|model| model.info().name.as_str() > request.page_token.as_str())
            .take(size + 1)
            .map(|model| self.describe(model.info()))
            .collect();
        let more = models.len() > size;
        models.truncate(size);
        let next_page_token = models.last().filter(|_| more).map(|model| model.name.clone()).unwrap_or_default();
        Ok(Response::new(pb::ListModelsResponse { models, next_page_token }))
    }

    async fn get_model(&self, request: Request<pb::GetModelRequest>) -> Result<Response<pb::GetModelResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(bad_parameter("name", "name is empty; ListModels has the names").into_status());
        }
        let model = self.host.catalog.find(&name).map_err(|refusal| refusal.field("name").into_status())?;
        Ok(Response::new(pb::GetModelResponse { model: Some(self.describe(model.info())) }))
    }
}

impl<M: Hosted> Models<M> {
    fn describe(&self, info: &ModelInfo) -> pb::Model {
        let vectors = info.dimensions > 0;
        pb::Model {
            name: info.name.to_string(),
            revision: info.revision.to_string(),
            methods: self.methods.iter().map(|method| (*method).to_owned()).collect(),
            is_default: self.host.catalog.is_default(info.name.as_str()),
            max_batch_items: self.host.batch_items_max,
            max_input_tokens: info.max_input_tokens,
            dimensions: info.dimensions,
            space_id: if vectors { info.space_id(info.normalize_default) } else { String::new() },
            labels: info.labels.clone(),
            file_digests: info.file_digests.clone().into_iter().collect(),
            sources: info.sources.clone(),
            licence: info.licence.clone(),
            parameter_bytes: info.parameter_bytes,
            loaded_at: Some(info.loaded_at.into()),
            device: info.device.to_owned(),
            dtype: info.dtype.to_owned(),
            aliases: vec![info.name.to_string()],
        }
    }
}

fn page_size(asked: i32) -> Result<usize, Refusal> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(size) if size <= PAGE_DEFAULT => Ok(size),
        _ => Err(bad_parameter("page_size", format!("page_size is {asked}; send 0 to {PAGE_DEFAULT}"))),
    }
}
