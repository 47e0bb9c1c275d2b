//! Texts to vectors, in this process.

use std::{io::IsTerminal as _, sync::Arc};

use engine::{
    Compute, Content, ItemError, ModelFiles, Parts, Pool, PoolSettings, Precision, PrecisionChoice, Role, TextInput,
    TextLimits, TextModel, TextOutput, Truncation, Work, normalize,
    pool::{Call, Lane},
};
use indicatif::{ProgressBar, ProgressStyle};

/// Texts of one call: enough to keep all cores busy, few enough for the bar to move.
const BATCH: usize = 512;
/// As the services have it: a chunk of 256 tokens fills a core. What waits is bounded by the batch.
const POOL: PoolSettings =
    PoolSettings { workers: 0, queue_units_max: u64::MAX, chunk_units_max: 256, device_chunk_units_max: 16_384 };

/// The vectors of all texts.
pub(crate) struct Vectors {
    /// One after the other.
    pub(crate) values: Vec<f32>,
    pub(crate) dimensions: usize,
    /// Texts that were cut.
    pub(crate) truncated: usize,
    pub(crate) tokens: u64,
    /// Most tokens that the model takes.
    pub(crate) tokens_max: u32,
}

/// Embeds the texts on all cores, as the service embeds them by default.
pub(crate) fn embed(files: &ModelFiles, texts: &[String]) -> anyhow::Result<Vectors> {
    let bytes_max = texts.iter().map(String::len).max().unwrap_or(0);
    // A head serves its base in every precision, so that it is trained on the vectors that all of them stand around.
    let compute = Compute { precision: PrecisionChoice::Only(Precision::F32), ..Compute::default() };
    let limits = TextLimits { bytes_max, windows_max: 1 };
    let model = Arc::new(TextModel::load_sharing(files, limits, &Parts::new(compute))?);
    let info = model.info();
    let dimensions = info.dimensions as usize;
    let values = Vec::with_capacity(texts.len() * dimensions);
    let mut vectors = Vectors { values, dimensions, truncated: 0, tokens: 0, tokens_max: info.max_input_tokens };
    let pool = Pool::start(POOL, compute.device, "train")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let bar = bar(texts.len() as u64, "embedding");
    for batch in texts.chunks(BATCH) {
        let inputs = batch
            .iter()
            .map(|text| TextInput {
                content: Content::Text(text.clone(), Role::default()),
                work: Work::Compute(Truncation::End),
            })
            .collect();
        let done = runtime.block_on(pool.run(&model, inputs, Call { lane: Lane::Batch, deadline: None }))?;
        for result in done.results {
            vectors.add(result, info.normalize_default)?;
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(vectors)
}

impl Vectors {
    fn add(&mut self, result: Result<TextOutput, ItemError>, unit: bool) -> Result<(), ItemError> {
        let mut output = result?;
        if unit {
            normalize(&mut output.values);
        }
        self.values.extend(output.values);
        self.truncated += usize::from(output.truncated);
        self.tokens += u64::from(output.tokens);
        Ok(())
    }
}

/// A bar on standard error, if that is a terminal.
pub(crate) fn bar(length: u64, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("  {prefix:10} {bar:30} {pos} of {len}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_prefix(what)
}
