//! EfficientNet-Lite2 beside the default model, chosen by the call.

use proto::{
    classification::v1::{ClassifyResult, classify_result::Outcome},
    common::v1::ModelSelector,
    vision::v1 as pb,
};

use crate::harness::{Channels, Roles, image, photos, see};

async fn seen(client: &Channels, model: &str) -> (String, Vec<ClassifyResult>) {
    let model = Some(ModelSelector { model: model.into(), ..Default::default() });
    let request = pb::ClassifyImagesRequest { model, ..see(photos().into_iter().map(|photo| image(photo.file))) };
    let response = client.vision().classify_images(request).await.unwrap().into_inner();
    (response.model.unwrap().model, response.results)
}

/// How many photos have their class among the first `n` labels.
fn right(results: &[ClassifyResult], n: usize) -> usize {
    let right = |(photo, result): (crate::harness::Photo, &ClassifyResult)| match &result.outcome {
        Some(Outcome::Labels(labels)) => labels.labels.iter().take(n).any(|label| label.id == photo.class),
        other => panic!("no labels: {other:?}"),
    };
    photos().into_iter().zip(results).map(right).filter(|right| *right).count()
}

#[tokio::test]
async fn the_larger_model_is_chosen_by_name_and_sees_no_less() {
    let more = |role: &str| match role {
        "vision" => "models = [\"efficientnet-lite0\", \"efficientnet-lite2\"]\n",
        _ => "",
    };
    let roles = Roles::configured(&["vision"], more).await;
    let client = roles.client().await;
    assert_eq!(seen(&client, "").await.0, "efficientnet-lite0");
    let (name, small) = seen(&client, "efficientnet-lite0").await;
    assert_eq!(name, "efficientnet-lite0");
    let (name, large) = seen(&client, "efficientnet-lite2").await;
    assert_eq!(name, "efficientnet-lite2");
    let numbers = [1, 5].map(|n| (right(&small, n), right(&large, n)));
    assert!(numbers.iter().all(|(small, large)| large >= small), "(lite0, lite2) at 1 and at 5: {numbers:?}");
    assert!(numbers[0].1 >= 17 && numbers[1].1 >= 19, "(lite0, lite2) at 1 and at 5: {numbers:?}");
}
