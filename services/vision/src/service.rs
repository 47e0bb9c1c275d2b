//! One call: parse, compute, reply.

use std::sync::Arc;

use chassis::{content::Contents, refusal::Refusal};
use engine::{ImageLimits, ImageModel, ImageOutput, ImageOutputKind, normalize};
use host::{Call, Computed, Host, LabelChoice, Scored, Vector};
use proto::{
    common::v1 as common,
    vision::v1::{self as pb, vision_service_server::VisionService},
};
use tonic::{Request, Response, Status, Streaming};

use crate::{parse, upload};

/// Labels of one image, unless the request says otherwise: nobody wants a thousand.
const TOP_K: usize = 5;

/// Full names of the methods.
pub(crate) const CLASSIFY_IMAGES: &str = "tamis.vision.v1.VisionService/ClassifyImages";
pub(crate) const EMBED_IMAGES: &str = "tamis.vision.v1.VisionService/EmbedImages";

/// Answers `VisionService`.
pub(crate) struct Vision {
    pub(crate) host: Arc<Host<ImageModel>>,
    /// What UploadImage took.
    pub(crate) contents: Arc<Contents>,
    pub(crate) limits: ImageLimits,
}

#[tonic::async_trait]
impl VisionService for Vision {
    async fn classify_images(
        &self,
        request: Request<pb::ClassifyImagesRequest>,
    ) -> Result<Response<pb::ClassifyImagesResponse>, Status> {
        let call = Call::begin(request.extensions());
        self.classify(call, request.into_inner()).await.map_err(Refusal::into_status)
    }

    async fn embed_images(
        &self,
        request: Request<pb::EmbedImagesRequest>,
    ) -> Result<Response<pb::EmbedImagesResponse>, Status> {
        let call = Call::begin(request.extensions());
        self.embed(call, request.into_inner()).await.map_err(Refusal::into_status)
    }

    async fn upload_image(
        &self,
        request: Request<Streaming<pb::UploadImageRequest>>,
    ) -> Result<Response<pb::UploadImageResponse>, Status> {
        upload::take(request.into_inner(), &self.contents, self.limits).await.map(Response::new)
    }
}

impl Vision {
    async fn classify(
        &self,
        call: Call,
        request: pb::ClassifyImagesRequest,
    ) -> Result<Response<pb::ClassifyImagesResponse>, Refusal> {
        let (selector, options) = (request.model.as_ref(), request.options.as_ref());
        self.host.check_items("images", request.images.len())?;
        host::refuse_space(selector)?;
        let choice = LabelChoice::parse(request.params.as_ref(), TOP_K)?;
        let model = self.host.catalog.select(selector, CLASSIFY_IMAGES)?;
        let head = host::labelling(&*model)?;

        let images = parse::resolve(request.images, &self.contents);
        let (items, input_bytes) = (images.len() as u64, parse::input_bytes(&images));
        let inputs = images.into_iter().map(|image| parse::input(image, ImageOutputKind::Logits)).collect();
        let Computed { results, cost, spent } = self.host.compute(&model, inputs, call, options).await?;

        let input_pixels = results.iter().flatten().map(|output| output.pixels).sum();
        let scored = |output: ImageOutput| Scored { logits: output.values, tokens: 0, truncated: false };
        let outcomes = results.into_iter().map(|result| result.map(scored));
        let mut response = Response::new(pb::ClassifyImagesResponse {
            results: host::label_results(outcomes, head, choice),
            model: Some(host::model_info(model.info())),
            usage: Some(common::Usage { items, input_tokens: 0, input_bytes, input_pixels }),
            timing: call.timing(options, &spent, &self.host.replica),
        });
        response.extensions_mut().insert(cost);
        Ok(response)
    }

    async fn embed(
        &self,
        call: Call,
        request: pb::EmbedImagesRequest,
    ) -> Result<Response<pb::EmbedImagesResponse>, Refusal> {
        let (selector, options) = (request.model.as_ref(), request.options.as_ref());
        self.host.check_items("images", request.images.len())?;
        let params = request.params.unwrap_or_default();
        let encoding = host::encoding(params.encoding)?;
        let model = self.host.catalog.select(selector, EMBED_IMAGES)?;
        let info = model.info();
        let unit = params.normalize.unwrap_or(true);
        let space_id = info.space_id(unit, None);
        host::require_space(selector, &space_id)?;

        let images = parse::resolve(request.images, &self.contents);
        let (items, input_bytes) = (images.len() as u64, parse::input_bytes(&images));
        let inputs = images.into_iter().map(|image| parse::input(image, ImageOutputKind::Features)).collect();
        let Computed { results, cost, spent } = self.host.compute(&model, inputs, call, options).await?;

        let input_pixels = results.iter().flatten().map(|output| output.pixels).sum();
        let vector = |output: ImageOutput| {
            let mut values = output.values;
            if unit {
                normalize(&mut values);
            }
            Vector { values, tokens: 0, truncated: false }
        };
        let outcomes = results.into_iter().map(|result| result.map(vector));
        let mut response = Response::new(pb::EmbedImagesResponse {
            results: host::vector_results(outcomes, encoding),
            model: Some(host::model_info(info)),
            space_id,
            usage: Some(common::Usage { items, input_tokens: 0, input_bytes, input_pixels }),
            timing: call.timing(options, &spent, &self.host.replica),
        });
        response.extensions_mut().insert(cost);
        Ok(response)
    }
}
