//! `ModelService` for the whole mesh.

use proto::{common::v1::ErrorReason, model::v1 as pb};
use tonic::Code;

use crate::harness::{embed, mesh, refused, refused_field};

const NAMES: [&str; 4] =
    ["all-minilm-l6-v2", "efficientnet-lite0", "prompt-injection-minilm-v5", "sentiment-minilm-v1"];

#[tokio::test]
async fn the_models_of_all_services_are_listed_by_name() {
    let mesh = mesh();
    let client = mesh.client().await;
    let response = client.models().list_models(pb::ListModelsRequest::default()).await.unwrap().into_inner();
    let names: Vec<_> = response.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!((names.as_slice(), response.next_page_token.as_str()), (NAMES.as_slice(), ""));
    let [embedding, vision, classification, head] = response.models.as_slice() else { panic!("{names:?}") };

    let method = |name: &str| format!("tamis.embedding.v1.EmbeddingService/{name}");
    let labelling = |name: &str| format!("tamis.classification.v1.ClassificationService/{name}");
    let (ours, by_label): (Vec<_>, Vec<_>) = embedding.methods.iter().partition(|name| name.contains("embedding"));
    assert_eq!(ours, ["Embed", "EmbedStream", "CountTokens"].map(method).iter().collect::<Vec<_>>());
    assert_eq!(by_label, [&labelling("ClassifyZeroShot")]);
    assert_eq!(classification.methods, ["Classify", "ClassifyStream"].map(labelling));
    assert_eq!(head.methods, ["Classify", "ClassifyStream", "ClassifyZeroShot"].map(labelling));
    assert_eq!(head.labels, ["negative", "positive"]);
    assert_eq!((embedding.dimensions, embedding.max_input_tokens, embedding.max_batch_items), (384, 256, 1024));
    let response = client.embedding().embed(embed(["a"])).await.unwrap().into_inner();
    assert_eq!((&embedding.revision, &embedding.space_id), (&response.model.unwrap().revision, &response.space_id));
    assert_eq!(classification.labels, ["injection", "aux"]);
    assert!(classification.space_id.is_empty() && classification.dimensions == 0, "{classification:?}");
    assert_eq!((vision.labels.len(), vision.labels[243].as_str(), vision.dimensions), (1000, "bull mastiff", 1280));
    assert_eq!(vision.methods.len(), 2);
    for model in &response_models(&client).await {
        assert!(model.parameter_bytes > 1_000_000 && model.loaded_at.is_some(), "{}", model.name);
        // A head answers when it is named; what it was trained on is under another licence.
        let is_head = model.name == head.name;
        let licence = if is_head { "MIT" } else { "Apache-2.0" };
        assert_eq!((model.licence.as_str(), model.device.as_str(), model.dtype.as_str()), (licence, "cpu", "f32"));
        assert!(!model.compute_path.is_empty(), "{}", model.name);
        assert!(model.is_default || is_head, "{}", model.name);
        assert!(model.file_digests.values().all(|digest| digest.len() == 71 && digest.starts_with("sha256:")));
        assert!(model.file_digests.contains_key("model.safetensors"), "{:?}", model.file_digests);
        assert!(model.sources.iter().any(|source| source.starts_with("pip:")), "{:?}", model.sources);
    }
}

async fn response_models(client: &crate::harness::Channels) -> Vec<pb::Model> {
    client.models().list_models(pb::ListModelsRequest::default()).await.unwrap().into_inner().models
}

#[tokio::test]
async fn pages_follow_one_another_to_the_end() {
    let mesh = mesh();
    let mut client = mesh.client().await.models();
    let (mut seen, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = pb::ListModelsRequest { page_size: 2, page_token };
        let page = client.list_models(request).await.unwrap().into_inner();
        sizes.push(page.models.len());
        seen.extend(page.models.into_iter().map(|model| model.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((seen, sizes), (NAMES.map(str::to_owned).into(), vec![2, 2]));
    for page_size in [-1, 101] {
        let request = pb::ListModelsRequest { page_size, ..Default::default() };
        let status = client.list_models(request).await.unwrap_err();
        refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
        refused_field(&status, ErrorReason::BadParameter, "page_size");
    }
}

#[tokio::test]
async fn one_model_is_found_by_its_name_whoever_serves_it() {
    let mesh = mesh();
    let mut client = mesh.client().await.models();
    for name in NAMES {
        let response = client.get_model(pb::GetModelRequest { name: name.into() }).await.unwrap().into_inner();
        assert_eq!(response.model.unwrap().name, name);
    }
    let status = client.get_model(pb::GetModelRequest { name: "no-such-model".into() }).await.unwrap_err();
    refused(&status, Code::NotFound, ErrorReason::ModelNotFound);
    let status = client.get_model(pb::GetModelRequest::default()).await.unwrap_err();
    refused(&status, Code::InvalidArgument, ErrorReason::BadParameter);
    refused_field(&status, ErrorReason::BadParameter, "name");
}
