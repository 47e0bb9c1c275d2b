//! `tamis.model.v1.ModelService` for the whole mesh: asks one replica of every service and merges what they say.
//!
//! A service that does not answer is left out of a list, with a warning in the log: the models of the others are there,
//! and a list that fails because one service is down would hide them. A service without a `ModelService` has no models.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, header};
use proto::model::v1::{self as pb, model_service_server::ModelService};
use tonic::{Code, Request, Response, Status};

use crate::{
    balance::Work,
    call::{Call, Message, Patience},
    contracts::Contracts,
    cutoff::Deadline,
    flight::Plan,
    metrics::Metrics,
    refuse::Refusal,
    replay::Replay,
    reply::Reply,
    request::CALLER,
    retry::Failure,
    route::Method,
    upstream::Upstream,
};

/// Name of the service.
pub(crate) const MODELS: &str = "tamis.model.v1.ModelService";
/// Models on a page, at most and by default.
const PAGE_MAX: usize = 100;
/// Pages that one service is asked for: it has as many models as fit a machine, not thousands.
const PAGES_MAX: usize = 10;

/// Answers for the whole mesh.
pub(crate) struct Models {
    upstreams: Vec<Arc<Upstream>>,
    list: Arc<Method>,
    get: Arc<Method>,
    metrics: Arc<Metrics>,
    patience: Patience,
    reply_bytes_max: usize,
}

/// Which worker's connections a request of a service of the gateway's own may use. A request extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker(pub(crate) usize);

/// What a fan-out needs of the request that caused it.
struct Origin {
    headers: HeaderMap,
    deadline: Option<Deadline>,
    worker: usize,
}

impl Models {
    /// A model service over these services; `None` if the contracts have none.
    pub(crate) fn new(
        upstreams: &[Arc<Upstream>],
        contracts: &Contracts,
        metrics: &Arc<Metrics>,
        patience: Patience,
        reply_bytes_max: usize,
    ) -> Option<Self> {
        // A service without a ready replica is left out at once; waiting for it would delay every list.
        let patience = Patience { ready_wait: std::time::Duration::ZERO, ..patience };
        let method = |name: &str| contracts.method(&format!("/{MODELS}/{name}")).cloned();
        let (list, get) = (method("ListModels")?, method("GetModel")?);
        Some(Self { upstreams: upstreams.to_vec(), list, get, metrics: Arc::clone(metrics), patience, reply_bytes_max })
    }

    async fn all_of(&self, upstream: &Arc<Upstream>, origin: &Origin) -> Result<Vec<pb::Model>, Failed> {
        let mut models = Vec::new();
        let mut page = pb::ListModelsRequest::default();
        for _ in 0..PAGES_MAX {
            let response: pb::ListModelsResponse = self.ask(upstream, &self.list, origin, &page).await?;
            models.extend(response.models);
            page.page_token = response.next_page_token;
            if page.page_token.is_empty() {
                break;
            }
        }
        Ok(models)
    }

    /// One call to one service.
    async fn ask<T: prost::Message + Default>(
        &self,
        upstream: &Arc<Upstream>,
        method: &Method,
        origin: &Origin,
        message: &impl prost::Message,
    ) -> Result<T, Failed> {
        let replay = Replay::of(framed(message));
        let plan = Plan {
            method,
            upstream,
            headers: &origin.headers,
            deadline: origin.deadline,
            work: Work::new(None, replay.bytes()),
            worker: origin.worker,
            held_bytes_max: self.reply_bytes_max,
        };
        let (reply, _) =
            Call::new(plan, self.patience, &self.metrics).run(Message::Held(replay)).await.map_err(Failed::Refused)?;
        decode(&reply)
    }
}

/// Why a service did not answer.
#[derive(Debug)]
enum Failed {
    Refused(Refusal),
    Answered(Code),
    Garbled,
}

impl Failed {
    fn name(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Answered(code) => chassis::calls::code_name(*code),
            Self::Garbled => "garbled",
        }
    }
}

fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(crate::replay::PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    framed.put_slice(&message.encode_to_vec());
    framed.freeze()
}

fn decode<T: prost::Message + Default>(reply: &Reply) -> Result<T, Failed> {
    match reply.failure() {
        Some(Failure::Status(code, _)) => Err(Failed::Answered(code)),
        _ => reply.message().and_then(|message| T::decode(message).ok()).ok_or(Failed::Garbled),
    }
}

#[tonic::async_trait]
impl ModelService for Models {
    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let origin = Origin::of(&request);
        let wanted = request.into_inner();
        let page_max = page_size(wanted.page_size).map_err(|refusal| refusal.status())?;
        let lists = join_all(self.upstreams.iter().map(async |upstream| match self.all_of(upstream, &origin).await {
            Ok(models) => models,
            Err(Failed::Answered(Code::Unimplemented)) => Vec::new(),
            Err(why) => {
                tracing::warn!(service = %upstream.name, why = why.name(), "left out of the list of models");
                Vec::new()
            }
        }));
        Ok(Response::new(page(merge(lists.await.into_iter().flatten()), page_max, &wanted.page_token)))
    }

    async fn get_model(&self, request: Request<pb::GetModelRequest>) -> Result<Response<pb::GetModelResponse>, Status> {
        let origin = Origin::of(&request);
        let wanted = request.into_inner();
        if wanted.name.is_empty() {
            let refusal = Refusal::BadParameter { field: "name", message: "name is empty".into() };
            return Err(refusal.status());
        }
        let asks = self.upstreams.iter().map(|upstream| self.ask(upstream, &self.get, &origin, &wanted));
        let (mut found, mut unknown) = (Vec::new(), None);
        for (upstream, answer) in self.upstreams.iter().zip(join_all(asks).await) {
            match answer {
                Ok(pb::GetModelResponse { model }) => found.extend(model),
                Err(Failed::Answered(Code::NotFound | Code::Unimplemented)) => {}
                Err(_) => unknown = Some(Refusal::NoCapacity { service: upstream.name.to_string() }),
            }
        }
        match merge(found).pop() {
            Some(model) => Ok(Response::new(pb::GetModelResponse { model: Some(model) })),
            // While a service is down nobody knows whether it has the model.
            None => Err(unknown.unwrap_or(Refusal::ModelNotFound).status()),
        }
    }
}

impl Origin {
    fn of<T>(request: &Request<T>) -> Self {
        let mut headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (header::TE, HeaderValue::from_static("trailers")),
        ]);
        for name in [CALLER, chassis::trace::HEADER] {
            if let Some(value) = request.metadata().as_ref().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let extensions = request.extensions();
        let worker = extensions.get::<Worker>().map_or(0, |worker| worker.0);
        Self { headers, deadline: extensions.get::<Deadline>().copied(), worker }
    }
}

/// Models by name, then revision. Where several services have one, it serves the methods of all, and is the default of some.
fn merge(models: impl IntoIterator<Item = pb::Model>) -> Vec<pb::Model> {
    let mut merged = BTreeMap::<(String, String), pb::Model>::new();
    for model in models {
        let key = (model.name.clone(), model.revision.clone());
        match merged.get_mut(&key) {
            Some(first) => {
                first.methods.extend(model.methods);
                first.is_default |= model.is_default;
            }
            None => _ = merged.insert(key, model),
        }
    }
    merged.into_values().collect()
}

fn page_size(wanted: i32) -> Result<usize, Refusal> {
    match usize::try_from(wanted) {
        Ok(0) => Ok(PAGE_MAX),
        Ok(size) if size <= PAGE_MAX => Ok(size),
        _ => {
            let message = format!("page_size is {wanted}, not 0 to {PAGE_MAX}");
            Err(Refusal::BadParameter { field: "page_size", message })
        }
    }
}

/// One page of the models, which are ordered by name, then revision. The token is the last of the page before: a model that
/// comes or goes between two pages shifts no other.
fn page(models: Vec<pb::Model>, page_max: usize, token: &str) -> pb::ListModelsResponse {
    // No name has a blank.
    let after = token.split_once(' ').unwrap_or((token, ""));
    let is_after = |model: &pb::Model| (model.name.as_str(), model.revision.as_str()) > after || token.is_empty();
    let mut rest = models.into_iter().filter(is_after).peekable();
    let models: Vec<_> = rest.by_ref().take(page_max).collect();
    let more = rest.peek().and(models.last());
    let next_page_token = more.map(|model| format!("{} {}", model.name, model.revision)).unwrap_or_default();
    pb::ListModelsResponse { next_page_token, models }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, method: &str) -> pb::Model {
        pb::Model { name: name.into(), methods: vec![method.into()], ..pb::Model::default() }
    }

    fn names(models: &[pb::Model]) -> Vec<&str> {
        models.iter().map(|model| model.name.as_str()).collect()
    }

    #[test]
    fn models_of_all_services_are_ordered_by_name_and_merged() {
        let default = pb::Model { is_default: true, ..model("b", "y") };
        let merged = merge([model("b", "x"), model("a", "x"), default]);
        assert_eq!(names(&merged), ["a", "b"]);
        assert_eq!(
            (merged[1].methods.as_slice(), merged[1].is_default),
            (["x", "y"].map(str::to_owned).as_slice(), true)
        );
    }

    #[test]
    fn revisions_of_one_name_are_listed_each_and_paged_one_by_one() {
        let revision = |revision: &str| pb::Model { revision: revision.into(), ..model("a", "x") };
        let all = || merge([revision("2"), revision("1"), revision("2")]);
        assert_eq!(all().len(), 2);
        let first = page(all(), 1, "");
        let second = page(all(), 1, &first.next_page_token);
        assert_eq!((first.models[0].revision.as_str(), second.models[0].revision.as_str()), ("1", "2"));
        assert!(second.next_page_token.is_empty());
    }

    #[test]
    fn pages_follow_one_another_and_end() {
        let all = || ["a", "b", "c", "d", "e"].map(|name| model(name, "x")).to_vec();
        let (mut token, mut seen) = (String::new(), Vec::new());
        for expected in [2, 2, 1] {
            let page = page(all(), 2, &token);
            assert_eq!(page.models.len(), expected);
            seen.extend(page.models);
            token = page.next_page_token;
        }
        assert_eq!(names(&seen), ["a", "b", "c", "d", "e"]);
        assert!(token.is_empty());
    }

    #[test]
    fn a_full_last_page_has_no_successor() {
        assert!(page(vec![model("a", "x"), model("b", "x")], 2, "").next_page_token.is_empty());
    }

    #[test]
    fn page_sizes_are_bounded() {
        assert_eq!(page_size(0), Ok(100));
        assert_eq!(page_size(7), Ok(7));
        for bad in [-1, 101] {
            assert!(matches!(page_size(bad), Err(Refusal::BadParameter { field: "page_size", .. })));
        }
    }
}
