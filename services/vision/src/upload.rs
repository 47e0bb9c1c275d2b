//! One upload: takes an image's chunks, hashes them as they arrive, and keeps the image if it is one.

use std::{sync::Arc, time::Duration};

use chassis::{
    content::{Contents, NotTaken, Upload},
    refusal::Refusal,
};
use engine::{Dimensions, ImageLimits, ItemError, Reason};
use host::{bad_parameter, refusal, refuse_item};
use proto::{common::v1::ErrorReason, vision::v1 as pb};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

/// Bytes that are hashed without a pause for other calls: a tenth of a millisecond, or half of one without the
/// processor's help.
const HASHED_BYTES: usize = 128 << 10;

/// How soon an upload that found no room may be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Takes the chunks of one image.
///
/// # Errors
/// As the contract says.
pub(crate) async fn take(
    chunks: impl Stream<Item = Result<pb::UploadImageRequest, Status>> + Unpin,
    contents: &Arc<Contents>,
    limits: ImageLimits,
) -> Result<pb::UploadImageResponse, Status> {
    let upload = receive(chunks, contents.upload(limits.bytes_max)).await?;
    // Reading a header may mean to look for the end of 15 MiB, and hashing was enough for this thread.
    let taken = tokio::task::spawn_blocking(move || {
        let size = Dimensions::read(upload.bytes(), &limits)?;
        Ok::<_, ItemError>((size, upload.finish()))
    });
    let failed = |_| Refusal::engine("the server failed on this image; its log has the cause").into_status();
    let (size, content) = taken.await.map_err(failed)?.map_err(|error| refuse_item(error).into_status())?;
    let response = pb::UploadImageResponse {
        digest: content.digest.to_string(),
        size_bytes: content.bytes.len() as u64,
        width: size.width,
        height: size.height,
    };
    contents.keep(content);
    Ok(response)
}

async fn receive(
    mut chunks: impl Stream<Item = Result<pb::UploadImageRequest, Status>> + Unpin,
    mut upload: Upload,
) -> Result<Upload, Status> {
    let empty = || bad_parameter("chunk", "a chunk is empty; send one byte or more in each").into_status();
    let mut empty_chunks = false;
    while let Some(next) = chunks.next().await {
        let chunk = next.map_err(|status| Refusal::unreadable(&status).into_status())?.chunk;
        // Alone it says that the image is empty, which has a reason of its own.
        if empty_chunks || (chunk.is_empty() && !upload.bytes().is_empty()) {
            return Err(empty());
        }
        empty_chunks = chunk.is_empty();
        for part in chunk.chunks(HASHED_BYTES) {
            upload.add(part).map_err(|not_taken| refuse(not_taken).into_status())?;
            tokio::task::yield_now().await;
        }
    }
    if upload.bytes().is_empty() {
        return Err(refuse_item(ItemError::new(Reason::Empty, "the image has no bytes")).into_status());
    }
    Ok(upload)
}

fn refuse(not_taken: NotTaken) -> Refusal {
    match not_taken {
        NotTaken::TooLarge { bytes_max } => {
            let message = format!("the image has more than {bytes_max} bytes, the bound of this service");
            refusal(Code::InvalidArgument, ErrorReason::InputTooLarge, message).field("chunk")
        }
        NotTaken::Full { bytes_max } => {
            let message = format!("uploads under way take {bytes_max} bytes of memory, the most that they may");
            Refusal::full(message, RETRY_AFTER)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::iter;
    use tonic_types::StatusExt as _;

    use super::*;

    const LIMITS: ImageLimits = ImageLimits { bytes_max: 1000, pixels_max: 100 };

    /// A GIF of 7 x 5 pixels as far as its header says, up to where its first frame begins.
    const GIF: &[u8] = b"GIF89a\x07\0\x05\0\0\0\0,\0\0\0\0\x07\0\x05\0\0";

    fn contents() -> Arc<Contents> {
        Arc::new(Contents::new(10_000, 1500))
    }

    async fn upload(chunks: &[&[u8]], contents: &Arc<Contents>) -> Result<pb::UploadImageResponse, Status> {
        let chunks = chunks.iter().map(|chunk| Ok(pb::UploadImageRequest { chunk: chunk.to_vec().into() }));
        take(iter(chunks), contents, LIMITS).await
    }

    async fn refuses(chunks: &[&[u8]], expected: &str) {
        let contents = contents();
        let status = upload(chunks, &contents).await.unwrap_err();
        let reason = status.get_error_details().error_info().unwrap().reason.clone();
        assert_eq!((status.code(), reason.as_str()), (Code::InvalidArgument, expected), "{status:?}");
    }

    #[tokio::test]
    async fn an_image_is_kept_however_it_is_cut() {
        let contents = contents();
        let whole = upload(&[GIF], &contents).await.unwrap();
        assert_eq!((whole.size_bytes, whole.width, whole.height), (GIF.len() as u64, 7, 5));
        assert_eq!(contents.find(&whole.digest.parse().unwrap()).unwrap(), GIF);
        let bytes: Vec<_> = GIF.chunks(1).collect();
        assert_eq!(upload(&bytes, &contents).await.unwrap(), whole);
    }

    #[tokio::test]
    async fn what_is_no_image_is_refused_and_not_kept() {
        refuses(&[b"a text file, whatever its name says"], "UNSUPPORTED_IMAGE").await;
        refuses(&[b"GIF89a"], "BAD_IMAGE").await;
        refuses(&[b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0"], "INPUT_TOO_LARGE").await;
        let contents = contents();
        drop(upload(&[b"GIF89a"], &contents).await);
        assert!(contents.find(&chassis::content::Digest::of(b"GIF89a")).is_none());
    }

    #[tokio::test]
    async fn nothing_is_empty_and_an_empty_chunk_among_others_is_a_fault() {
        refuses(&[], "EMPTY_INPUT").await;
        refuses(&[b""], "EMPTY_INPUT").await;
        refuses(&[b"", b""], "BAD_PARAMETER").await;
        refuses(&[b"", GIF], "BAD_PARAMETER").await;
        refuses(&[GIF, b""], "BAD_PARAMETER").await;
    }

    #[tokio::test]
    async fn an_upload_beyond_the_bound_is_refused_before_its_end() {
        let endless = iter(std::iter::repeat_with(|| Ok(pb::UploadImageRequest { chunk: vec![0; 100].into() })));
        let status = take(endless, &contents(), LIMITS).await.unwrap_err();
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "INPUT_TOO_LARGE");
    }

    #[tokio::test]
    async fn a_chunk_that_cannot_be_read_is_refused_with_its_reason() {
        for (status, code, expected) in [
            (Status::out_of_range("too large"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::internal("invalid wire type"), Code::InvalidArgument, "MALFORMED_REQUEST"),
        ] {
            let chunks = iter([Ok(pb::UploadImageRequest { chunk: GIF.into() }), Err(status)]);
            let status = take(chunks, &contents(), LIMITS).await.unwrap_err();
            let reason = status.get_error_details().error_info().unwrap().reason.clone();
            assert_eq!((status.code(), reason.as_str()), (code, expected), "{status:?}");
        }
    }

    #[tokio::test]
    async fn an_upload_without_room_is_told_when_to_come_back() {
        let contents = contents();
        let mut other = contents.upload(1000);
        other.add(&[0; 1000]).unwrap();
        let status = upload(&[&[0; 600]], &contents).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_error_details().retry_info().is_some());
        drop(other);
        upload(&[GIF], &contents).await.unwrap();
    }
}
