//! `UploadImage` and digests, through the gateway and with every replica.

use std::collections::HashSet;

use proto::{
    common::v1::{ErrorReason, RequestOptions},
    vision::v1 as pb,
};
use tonic::{Code, codegen::Bytes};

use crate::harness::{
    Channels, Roles, digest, error_reason, image, mesh, metric, metrics, photos, png, png_claiming, refused,
    refused_field, see, signal, tamis, upload,
};

/// The replica that answers a call which names this digest.
async fn seen_by(client: &Channels, named: &str) -> Result<String, Option<ErrorReason>> {
    let options = Some(RequestOptions { include_timing: true, ..Default::default() });
    let request = pb::ClassifyImagesRequest { options, ..see([digest(named)]) };
    let response = client.vision().classify_images(request).await.unwrap().into_inner();
    match error_reason(&response.results[0]) {
        None => Ok(response.timing.unwrap().replica),
        reason => Err(reason),
    }
}

#[tokio::test]
async fn an_uploaded_image_is_seen_as_the_same_image() {
    let (mesh, photo) = (mesh(), photos().remove(0));
    let client = mesh.client().await;
    let uploaded = upload(&client, &photo.file).await.unwrap();
    assert_eq!(uploaded.size_bytes, photo.file.len() as u64);
    assert!(uploaded.digest.len() == 71 && uploaded.digest.starts_with("sha256:"), "{}", uploaded.digest);
    let request = see([digest(&uploaded.digest), image(photo.file.clone())]);
    let response = client.vision().classify_images(request).await.unwrap().into_inner();
    assert_eq!(response.results[0].outcome, response.results[1].outcome);
    let usage = response.usage.unwrap();
    assert_eq!(usage.input_bytes, 2 * uploaded.size_bytes);
    assert_eq!(usage.input_pixels, 2 * u64::from(uploaded.width) * u64::from(uploaded.height));
    let images = vec![digest(uploaded.digest)];
    let request = pb::EmbedImagesRequest { images, ..Default::default() };
    assert_eq!(error_reason(&client.vision().embed_images(request).await.unwrap().into_inner().results[0]), None);
}

#[tokio::test]
async fn a_digest_works_with_every_replica_and_outlives_the_one_that_took_it() {
    let roles = Roles::start(&["vision", "vision"]).await;
    let client = roles.client().await;
    let named = upload(&client, &photos().remove(0).file).await.unwrap().digest;
    let mut replicas = HashSet::new();
    for _ in 0..24 {
        replicas.insert(seen_by(&client, &named).await.unwrap());
    }
    assert_eq!(replicas.len(), 2, "{replicas:?}");

    let mut took = Vec::new();
    for service in &roles.services {
        took.push(metric(&metrics(service.at.admin).await, "tamis_content_entries"));
    }
    assert_eq!(took.iter().sum::<f64>(), 1.0, "one replica took it: {took:?}");
    assert_eq!(metric(&metrics(roles.gateway.at.admin).await, "tamis_gateway_content_entries"), 1.0);
    let taker = &roles.services[took.iter().position(|entries| *entries == 1.0).unwrap()];
    signal(taker.process.pid, "KILL");
    for _ in 0..8 {
        seen_by(&client, &named).await.unwrap();
    }
}

#[tokio::test]
async fn a_digest_that_finds_nothing_fails_its_item_alone() {
    let (mesh, photo) = (mesh(), photos().remove(0));
    let unknown = format!("sha256:{}", "0".repeat(64));
    let images = [
        (digest(unknown), Some(ErrorReason::ContentNotFound)),
        (digest("sha256:12"), Some(ErrorReason::BadParameter)),
        (digest("md5:d41d8cd98f00b204e9800998ecf8427e"), Some(ErrorReason::BadParameter)),
        (digest(""), Some(ErrorReason::BadParameter)),
        (image(photo.file), None),
    ];
    let request = see(images.iter().map(|(image, _)| image.clone()));
    let response = mesh.client().await.vision().classify_images(request).await.unwrap().into_inner();
    for (result, (_, expected)) in response.results.iter().zip(&images) {
        assert_eq!(error_reason(result), *expected, "{result:?}");
    }
}

#[tokio::test]
async fn what_is_no_image_is_not_taken() {
    let mesh = mesh();
    let client = mesh.client().await;
    let photo = photos().remove(1).file;
    for (file, reason) in [
        (Bytes::new(), ErrorReason::EmptyInput),
        (Bytes::from_static(b"a text file that is named photo.jpg"), ErrorReason::UnsupportedImage),
        (photo.slice(..photo.len() / 2), ErrorReason::BadImage),
        (Bytes::from_static(b"GIF89a"), ErrorReason::BadImage),
        (png_claiming(20_000, 20_000, &[0; 64]), ErrorReason::InputTooLarge),
        (vec![0xff; 16 << 20].into(), ErrorReason::InputTooLarge),
    ] {
        let status = upload(&client, &file).await.unwrap_err();
        refused(&status, Code::InvalidArgument, reason);
    }
    let chunks = [&photo[..], b""].map(|chunk| pb::UploadImageRequest { chunk: Bytes::copy_from_slice(chunk) });
    let status = client.vision().upload_image(futures_util::stream::iter(chunks)).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
    refused_field(&status, ErrorReason::BadParameter, "chunk");
    upload(&client, &photo).await.unwrap();
}

#[tokio::test]
async fn contents_that_were_unused_the_longest_make_room() {
    let more = |role: &str| match role {
        "gateway" => "[content]\nbytes_max = \"1MiB\"\n",
        _ => "[limits]\nimage_bytes_max = \"700KiB\"\ncontent_bytes_max = \"1MiB\"\n",
    };
    let roles = Roles::configured(&["vision"], more).await;
    let client = roles.client().await;
    let first = upload(&client, &png(450, 450, 1)).await.unwrap().digest;
    assert!(seen_by(&client, &first).await.is_ok());
    let second = upload(&client, &png(450, 450, 2)).await.unwrap().digest;
    assert!(seen_by(&client, &second).await.is_ok());
    assert_eq!(seen_by(&client, &first).await, Err(Some(ErrorReason::ContentNotFound)));
    for (admin, prefix) in [(roles.gateway.at.admin, "tamis_gateway"), (roles.services[0].at.admin, "tamis")] {
        let text = metrics(admin).await;
        let value = |name: &str| metric(&text, &format!("{prefix}_content_{name}"));
        assert_eq!((value("entries"), value("evictions_total"), value("upload_bytes")), (1.0, 1.0, 0.0), "{prefix}");
        assert!(value("bytes") > 600_000.0, "{}", value("bytes"));
    }
}

#[tokio::test]
async fn an_image_above_the_message_limit_is_uploaded_and_seen() {
    let more = |role: &str| if role == "vision" { "[limits]\nimage_bytes_max = \"32MiB\"\n" } else { "" };
    let roles = Roles::configured(&["vision"], more).await;
    let client = roles.client().await;
    let large = png(2600, 2600, 1);
    assert!(large.len() > 19 << 20);
    let uploaded = upload(&client, &large).await.unwrap();
    assert_eq!((uploaded.width, uploaded.height), (2600, 2600));
    assert!(seen_by(&client, &uploaded.digest).await.is_ok());

    let four = see(vec![digest(&uploaded.digest); 4]);
    let status = client.vision().classify_images(four).await.unwrap_err();
    refused(&status, Code::ResourceExhausted, ErrorReason::MessageTooLarge);
    assert!(status.message().contains("name fewer"), "{}", status.message());

    let file = roles.folder.path().join("large.png");
    std::fs::write(&file, &large).unwrap();
    let address = roles.gateway.at.grpc.to_string();
    let seen = tamis(roles.folder.path(), &["call", "see", "--address", &address, file.to_str().unwrap()]).await;
    assert!(seen.success, "{}", seen.stderr);
}

#[tokio::test]
async fn the_command_line_splits_what_does_not_fit_one_call() {
    let mesh = mesh();
    let file = mesh.folder.path().join("tiny.png");
    std::fs::write(&file, png(8, 8, 1)).unwrap();
    let file = file.to_str().unwrap();
    let mut arguments = vec!["call", "see", "--json"];
    arguments.extend([file; 70]);
    let seen = tamis(mesh.folder.path(), &arguments).await;
    assert!(seen.success, "{}", seen.stderr);
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    let indices: Vec<_> = json["results"].as_array().unwrap().iter().map(|result| result["index"].as_u64()).collect();
    assert_eq!(indices, (0..70).map(Some).collect::<Vec<_>>());
    assert_eq!(json["usage"]["items"], 70);
}
