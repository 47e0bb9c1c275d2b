//! A text's answer has the same bits alone and in a pool, whatever waits there with it.

use proptest::prelude::*;

use super::*;
use crate::{
    DeviceChoice, Pool, PoolSettings,
    pool::{Call, Lane},
    quantize::calibrate,
};

fn words(most: usize) -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["a", "man", "eats", "food", "foods", "zebra"]);
    prop::collection::vec(word, 0..most).prop_map(|words| words.join(" "))
}

/// Short ones, long ones, pairs, tokens; some are empty, or have too many windows.
fn any_input() -> impl Strategy<Value = TextInput> {
    let cut = prop::sample::select(vec![Truncation::End, Truncation::Start, Truncation::ChunkMean]);
    let text = (words(22), cut).prop_map(|(text, cut)| input(&text, cut));
    let pair = (words(9), words(9)).prop_map(|(first, second)| TextInput {
        content: Content::Pair(First::text(first), second),
        work: Work::Compute(Truncation::End),
    });
    let tokens = prop::collection::vec(0..WORDS.len() as u32, 0..22)
        .prop_map(|ids| TextInput { content: Content::Tokens(ids), work: Work::Compute(Truncation::ChunkMean) });
    prop_oneof![4 => text, 1 => pair, 1 => tokens]
}

fn any_call() -> impl Strategy<Value = (Lane, Vec<TextInput>)> {
    (prop::sample::select(vec![Lane::Interactive, Lane::Batch]), prop::collection::vec(any_input(), 0..8))
}

fn bits(result: Result<TextOutput, ItemError>) -> Result<(Vec<u32>, u32, bool), ItemError> {
    result.map(|output| (output.values.into_iter().map(f32::to_bits).collect(), output.tokens, output.truncated))
}

#[test]
fn a_text_has_the_same_bits_in_a_pool_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    let files = quantize::written(folder.path());
    let smoothing = calibrate(&files, &["a man".to_owned()], &|| ()).unwrap().smoothing;
    let int8 = ModelFiles { manifest: quantize::quantized(&files.manifest, smoothing), ..files.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (precision, files) in [(Precision::F32, &files), (Precision::Bf16, &files), (Precision::Int8, &int8)] {
        let compute = Compute { precision: PrecisionChoice::Only(precision), ..Compute::default() };
        let model = Arc::new(TextModel::load_sharing(files, LIMITS, &Parts::new(compute)).unwrap());
        assert_eq!(model.info().plan.precision, precision);
        let calls = prop::collection::vec(any_call(), 1..8);
        let config = ProptestConfig::with_cases(64);
        proptest!(config, |(calls in calls, workers in 1_usize..4, chunk_units_max in 1_u32..60)| {
            let settings =
                PoolSettings { workers, queue_units_max: 100_000, chunk_units_max, device_chunk_units_max: 1 };
            let pool = Arc::new(Pool::start(settings, DeviceChoice::Cpu, "company").unwrap());
            let begin = |(lane, inputs): &(Lane, Vec<TextInput>)| {
                let (pool, model, inputs) = (Arc::clone(&pool), Arc::clone(&model), inputs.clone());
                let call = Call { lane: *lane, deadline: None };
                runtime.spawn(async move { pool.run(&model, inputs, call).await })
            };
            let running: Vec<_> = calls.iter().map(begin).collect();
            for (running, (_, inputs)) in running.into_iter().zip(&calls) {
                let results = runtime.block_on(running).unwrap().unwrap().results;
                prop_assert_eq!(results.len(), inputs.len());
                for (result, input) in results.into_iter().zip(inputs) {
                    let alone = super::compute(&model, std::slice::from_ref(input)).remove(0);
                    prop_assert_eq!(bits(result), bits(alone));
                }
            }
        });
    }
}
