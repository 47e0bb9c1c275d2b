//! `tamis call see`.

use std::path::PathBuf;

use anyhow::Context as _;
use proto::vision::v1::{self as pb, vision_service_client::VisionServiceClient};

use super::{
    Flags, client,
    labels::{Labelled, NAME_WIDTH_MAX},
};
use crate::{advice::Advice, home::Home, output::excerpt_path};

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

/// Labels the images.
pub(crate) async fn call(images: Images, flags: &Flags, home: &Home) -> anyhow::Result<Labelled> {
    let connection = client::connect(flags, home).await?;
    let (names, bytes): (Vec<_>, Vec<_>) = images.into_iter().unzip();
    let input = |bytes: Vec<u8>| pb::ImageInput {
        source: Some(pb::image_input::Source::Encoded(bytes.into())),
        ..Default::default()
    };
    let images: Vec<_> = bytes.into_iter().map(input).collect();
    let units = u32::try_from(images.len()).unwrap_or(u32::MAX);
    let message = pb::ClassifyImagesRequest { model: client::selector(flags), images, ..Default::default() };
    let mut request = client::request(message, flags);
    // The gateway sees bytes; how much work they are is known here.
    request.metadata_mut().insert("tamis-units", units.into());
    let mut service =
        VisionServiceClient::new(connection.channel.clone()).max_decoding_message_size(client::REPLY_BYTES_MAX);
    let response = service.classify_images(request).await;
    let response = match response {
        Ok(response) => response.into_inner(),
        Err(status) => return Err(connection.explain(&status).await),
    };
    let pb::ClassifyImagesResponse { results, model, usage, .. } = response;
    let names = names.iter().map(|name| excerpt_path(name, NAME_WIDTH_MAX)).collect();
    Ok(Labelled { heading: "IMAGE", names, results, model, usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_said_before_anything_is_sent() {
        let error = read(vec!["/nowhere/a.jpg".into()]).unwrap_err();
        assert!(crate::advice::report(&error).starts_with("error: cannot read /nowhere/a.jpg: "));
    }
}
