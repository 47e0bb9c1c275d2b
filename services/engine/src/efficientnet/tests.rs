use std::cell::Cell;

use kernels::Tier;

use super::*;
use crate::{DeviceChoice, seeded::Seeded};

/// The published normalisation.
fn numbers() -> Numbers {
    [std::array::from_fn(|byte| (byte as f32 - 127.0) / 128.0); 3]
}

fn network(scale: Scale, path: ComputePath, precision: Precision) -> Box<dyn Network> {
    let plan = Plan { device: DeviceChoice::Cpu, path, precision };
    load(&Seeded::builder(), scale, &numbers(), plan).unwrap()
}

fn image(scale: Scale, seed: usize) -> Vec<u8> {
    (0..scale.side * scale.side * 3).map(|index| ((index + seed) * 7919 % 255) as u8).collect()
}

fn features_of(network: &dyn Network, image: &[u8]) -> Vec<f32> {
    network.features(image, &|| true).unwrap().unwrap()
}

/// Greatest difference, of the greatest number.
fn relative(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    assert!(scale > 0.1);
    found.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / scale
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn tiers() -> impl Iterator<Item = Tier> {
    Tier::ALL.into_iter().filter(|tier| tier.is_available())
}

fn equals_candle(scale: Scale) {
    let image = image(scale, 0);
    let stock = network(scale, ComputePath::Candle, Precision::F32);
    let features = features_of(&*stock, &image);
    let logits = stock.logits(&features).unwrap();
    for tier in tiers() {
        let exact = network(scale, ComputePath::Kernels(tier), Precision::F32);
        let found = features_of(&*exact, &image);
        assert!(relative(&found, &features) < 1e-4, "{tier}: off by {}", relative(&found, &features));
        let found = exact.logits(&found).unwrap();
        assert!(relative(&found, &logits) < 1e-4, "{tier}: off by {}", relative(&found, &logits));

        let rounded = network(scale, ComputePath::Kernels(tier), Precision::Bf16);
        assert!(rounded.parameter_bytes() < exact.parameter_bytes() * 6 / 10);
        let found = features_of(&*rounded, &image);
        assert!(cosine(&found, &features) > 0.9999, "{tier} in bf16: {}", cosine(&found, &features));
        let found = rounded.logits(&found).unwrap();
        assert!(cosine(&found, &logits) > 0.9999, "{tier} in bf16: {}", cosine(&found, &logits));
    }
}

#[test]
fn the_smallest_network_equals_candle_in_every_tier() {
    equals_candle(LITE0);
}

/// Their maps have odd sides, where the padding of a stride of two has two sides.
#[test]
fn larger_networks_equal_candle_in_every_tier() {
    equals_candle(LITE1);
    equals_candle(LITE2);
}

#[test]
fn an_image_gives_the_same_bits_whatever_was_computed_before_and_beside_it() {
    for precision in [Precision::F32, Precision::Bf16] {
        let network = network(LITE0, ComputePath::Kernels(Tier::detect()), precision);
        let first = features_of(&*network, &image(LITE0, 0));
        std::thread::scope(|scope| {
            for seed in [1, 0, 2, 0] {
                let (network, first) = (&network, &first);
                scope.spawn(move || {
                    let features = features_of(&**network, &image(LITE0, seed));
                    assert_eq!(features == *first, seed == 0);
                });
            }
        });
    }
}

#[test]
fn the_scales_are_those_of_the_publishers() {
    let shapes = |scale: Scale| scale.stages().map(|stage| (stage.blocks, stage.channels));
    assert_eq!(shapes(LITE0), [(1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)]);
    assert_eq!(shapes(LITE1), [(1, 16), (3, 24), (3, 40), (4, 80), (4, 112), (5, 192), (1, 320)]);
    assert_eq!(shapes(LITE2), [(1, 16), (3, 24), (3, 48), (4, 88), (4, 120), (5, 208), (1, 352)]);
}

#[test]
fn an_image_of_another_size_is_refused() {
    for path in [ComputePath::Candle, ComputePath::Kernels(Tier::detect())] {
        let network = network(LITE0, path, Precision::F32);
        assert!(network.features(&[0; 12], &|| true).is_err() && network.logits(&[0.0; 12]).is_err());
    }
}

#[test]
fn an_image_that_nobody_wants_is_given_up_before_its_next_block() {
    let image = image(LITE0, 0);
    for path in [ComputePath::Candle, ComputePath::Kernels(Tier::detect())] {
        let network = network(LITE0, path, Precision::F32);
        let asked = Cell::new(0);
        let given_up_at = |last: usize| {
            asked.set(0);
            let wanted = || {
                asked.set(asked.get() + 1);
                asked.get() < last
            };
            network.features(&image, &wanted).unwrap()
        };
        assert_eq!((given_up_at(3), asked.get()), (None, 3));
        // What was given up leaves nothing behind for the next image.
        assert_eq!(given_up_at(usize::MAX), Some(features_of(&*network, &image)));
        assert_eq!(asked.get(), LITE0.blocks().count());
    }
}
