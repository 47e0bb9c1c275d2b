//! `tamis call see`.

use std::{ops::Range, path::PathBuf};

use anyhow::Context as _;
use proto::{
    classification::v1::{ClassifyResult, classify_result::Outcome},
    common::v1 as common,
    model::v1::{ListModelsRequest, Model, model_service_client::ModelServiceClient},
    vision::v1::{self as pb, image_input::Source, vision_service_client::VisionServiceClient},
};
use tokio_stream::iter;
use tonic::{Code, Status, codegen::Bytes, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    Flags, client,
    labels::{Labelled, NAME_WIDTH_MAX},
};
use crate::{advice::Advice, home::Home, output::excerpt_path};

/// Most bytes of the images in one call: a message has 16 MiB, and something stands around them.
const CALL_BYTES_MAX: usize = 15 << 20;
/// Bytes of an upload's messages.
const CHUNK_BYTES: usize = 1 << 20;
/// The method, as models list it.
const METHOD: &str = "tamis.vision.v1.VisionService/ClassifyImages";

/// Files and their bytes.
pub(crate) type Images = Vec<(String, Vec<u8>)>;

/// Reads the files before anything is sent.
pub(crate) fn read(paths: Vec<PathBuf>) -> anyhow::Result<Images> {
    let read = |path: PathBuf| {
        let name = path.display().to_string();
        let advice = || Advice::new(format!("cannot read {name}"), "name image files: JPEG, PNG, WebP or GIF");
        Ok((name.clone(), std::fs::read(&path).with_context(advice)?))
    };
    paths.into_iter().map(read).collect()
}

/// Labels the images, in as many calls as they need. The deadline is that of each.
pub(crate) async fn call(images: Images, flags: &Flags, home: &Home) -> anyhow::Result<Labelled> {
    let connection = client::connect(flags, home).await?;
    let (names, files): (Vec<_>, Vec<Bytes>) = images.into_iter().map(|(name, file)| (name, Bytes::from(file))).unzip();
    let mut eyes = Eyes { channel: connection.channel.clone(), flags };
    let names = names.iter().map(|name| excerpt_path(name, NAME_WIDTH_MAX)).collect();
    let mut all = Labelled { heading: "IMAGE", names, results: Vec::new(), model: None, usage: None };
    if let Err(status) = eyes.see(&files, &mut all).await {
        return Err(connection.explain(&status).await);
    }
    Ok(all)
}

/// Calls that look at images.
struct Eyes<'a> {
    channel: Channel,
    flags: &'a Flags,
}

impl Eyes<'_> {
    async fn see(&mut self, files: &[Bytes], all: &mut Labelled) -> Result<(), Status> {
        // One image is always taken, so that nobody needs to be asked.
        let items_max = if files.len() > 1 { self.items_max().await? } else { 1 };
        let sizes: Vec<_> = files.iter().map(Bytes::len).collect();
        for range in calls(&sizes, items_max) {
            let first = range.start;
            let images = match self.images(&files[range]).await? {
                Ok(images) => images,
                Err(refused) => {
                    let outcome = Some(Outcome::Error(refused));
                    all.results.push(ClassifyResult { index: index(first), outcome, ..Default::default() });
                    continue;
                }
            };
            let response = self.classify(images).await?;
            let placed = response.results.into_iter().map(|result| {
                let index = result.index.saturating_add(index(first));
                ClassifyResult { index, ..result }
            });
            all.results.extend(placed);
            all.model = all.model.take().or(response.model);
            all.usage = sum(all.usage.take(), response.usage);
        }
        Ok(())
    }

    /// The images of one call. One that is larger than a message is uploaded, and named by its digest; it may be refused.
    async fn images(&mut self, files: &[Bytes]) -> Result<Result<Vec<pb::ImageInput>, common::ItemError>, Status> {
        let mut images = Vec::with_capacity(files.len());
        for file in files {
            let source = if file.len() <= CALL_BYTES_MAX {
                Source::Encoded(file.clone())
            } else {
                match self.upload(file).await {
                    Ok(digest) => Source::Digest(digest),
                    Err(status) => return item_error(&status).map(Err).ok_or(status),
                }
            };
            images.push(pb::ImageInput { source: Some(source), crop: None });
        }
        Ok(Ok(images))
    }

    async fn upload(&mut self, file: &Bytes) -> Result<String, Status> {
        let file = file.clone();
        let starts = (0..file.len()).step_by(CHUNK_BYTES);
        let chunk = move |start: usize| {
            let chunk = file.slice(start..file.len().min(start + CHUNK_BYTES));
            pb::UploadImageRequest { chunk }
        };
        let request = client::request(iter(starts.map(chunk)), self.flags);
        Ok(self.vision().upload_image(request).await?.into_inner().digest)
    }

    async fn classify(&mut self, images: Vec<pb::ImageInput>) -> Result<pb::ClassifyImagesResponse, Status> {
        let units = index(images.len());
        let message = pb::ClassifyImagesRequest { model: client::selector(self.flags), images, ..Default::default() };
        let mut request = client::request(message, self.flags);
        // The gateway sees bytes; how much work they are is known here.
        request.metadata_mut().insert("tamis-units", units.into());
        Ok(self.vision().classify_images(request).await?.into_inner())
    }

    /// Most images of one call, as the model says; without end if there is no such model, which the call will find out.
    async fn items_max(&mut self) -> Result<usize, Status> {
        let mut models = ModelServiceClient::new(self.channel.clone());
        let mut page_token = String::new();
        loop {
            let request = ListModelsRequest { page_token, ..Default::default() };
            let page = models.list_models(client::request(request, self.flags)).await?.into_inner();
            if let Some(model) = page.models.iter().find(|model| answers(model, self.flags.model.as_deref())) {
                return Ok(usize::try_from(model.max_batch_items).unwrap_or(usize::MAX));
            }
            if page.next_page_token.is_empty() {
                return Ok(usize::MAX);
            }
            page_token = page.next_page_token;
        }
    }

    fn vision(&self) -> VisionServiceClient<Channel> {
        VisionServiceClient::new(self.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX)
    }
}

/// Whether a model answers a call that names `wanted`, or none.
fn answers(model: &Model, wanted: Option<&str>) -> bool {
    let chosen = match wanted {
        Some(name) => model.name == name || model.aliases.iter().any(|alias| alias == name),
        None => model.is_default,
    };
    chosen && model.methods.iter().any(|method| method == METHOD)
}

/// Which images go into which call: as many as fit by number and by bytes, one at least.
fn calls(sizes: &[usize], items_max: usize) -> Vec<Range<usize>> {
    let (mut calls, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, size) in sizes.iter().enumerate() {
        let fits = at - start < items_max && bytes + size <= CALL_BYTES_MAX;
        if at > start && !fits {
            calls.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    calls.push(start..sizes.len());
    calls
}

/// The refusal of an image, as its item's error. Anything else is no fault of the image.
fn item_error(status: &Status) -> Option<common::ItemError> {
    if status.code() != Code::InvalidArgument {
        return None;
    }
    let reason = status.get_error_details().error_info()?.reason.clone();
    let reason = common::ErrorReason::from_str_name(&format!("ERROR_REASON_{reason}"))?;
    Some(common::ItemError { reason: reason.into(), message: status.message().to_owned() })
}

fn sum(one: Option<common::Usage>, other: Option<common::Usage>) -> Option<common::Usage> {
    let (Some(one), Some(other)) = (one, other) else { return one.or(other) };
    Some(common::Usage {
        items: one.items + other.items,
        input_tokens: one.input_tokens + other.input_tokens,
        input_bytes: one.input_bytes + other.input_bytes,
        input_pixels: one.input_pixels + other.input_pixels,
    })
}

fn index(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_file_that_is_not_there_is_said_before_anything_is_sent() {
        let error = read(vec!["/nowhere/a.jpg".into()]).unwrap_err();
        assert!(crate::advice::report(&error).starts_with("error: cannot read /nowhere/a.jpg: "));
    }

    #[test]
    fn calls_hold_what_fits_and_every_image_once() {
        let one = |calls: Vec<std::ops::Range<usize>>| calls.first().cloned().filter(|_| calls.len() == 1);
        assert_eq!(one(calls(&[1, 2, 3], 64)), Some(0..3));
        assert_eq!(calls(&[1; 5], 2), [0..2, 2..4, 4..5]);
        assert_eq!(calls(&[8 * MIB, 7 * MIB, 1, 40 * MIB, 1], 64), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(one(calls(&[40 * MIB], 1)), Some(0..1));
    }

    #[test]
    fn only_what_is_wrong_with_the_image_is_the_images_fault() {
        let details = |reason: &str| tonic_types::ErrorDetails::with_error_info(reason, "tamis", []);
        let refused = Status::with_error_details(Code::InvalidArgument, "20 bytes", details("INPUT_TOO_LARGE"));
        assert_eq!(item_error(&refused).unwrap().reason(), common::ErrorReason::InputTooLarge);
        let full = Status::with_error_details(Code::ResourceExhausted, "full", details("QUEUE_FULL"));
        assert_eq!(item_error(&full), None);
    }

    #[test]
    fn the_chosen_model_says_how_many_images_it_takes() {
        let model = |name: &str, is_default| Model {
            name: name.into(),
            is_default,
            methods: vec![METHOD.into()],
            aliases: vec!["canary".into()],
            ..Default::default()
        };
        assert!(answers(&model("a", true), None) && !answers(&model("a", false), None));
        assert!(answers(&model("a", false), Some("a")) && answers(&model("a", false), Some("canary")));
        let text = Model { methods: vec!["tamis.embedding.v1.EmbeddingService/Embed".into()], ..model("a", true) };
        assert!(!answers(&text, None));
    }
}
