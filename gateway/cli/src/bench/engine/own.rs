//! This program's engine as a contestant, as a service runs it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use engine::{
    Call as PoolCall, Compute, Content, DeviceChoice, Dimensions, ImageLimits, ImageModel, Lane, Model, ModelFiles,
    Parts, PathChoice, Pool, PoolSettings, Precision, PrecisionChoice, ScoreMode, TextInput, TextLimits, TextModel,
    Tier, Truncation, Watch, Work,
};
use tokio::runtime::Runtime;

use super::{
    Engine, Library,
    rounds::{Contestant, Turn},
    work::{Call, Picture, Task},
};
use crate::process;

/// Tokens that a worker computes at once, as services have it by default.
const CHUNK_TOKENS: usize = 256;
const RUNS_MAX: usize = 1000;
/// Labels that one asks for.
const LABELS: usize = 5;
const TEXT_LIMITS: TextLimits = TextLimits { bytes_max: 64 << 10, windows_max: 1 };
const IMAGE_LIMITS: ImageLimits = ImageLimits { bytes_max: 15 << 20, pixels_max: 50_000_000 };
const CALL: PoolCall = PoolCall { lane: Lane::Interactive, deadline: None };

/// A model for texts.
pub(crate) struct Texts {
    engine: Engine,
    model: Arc<TextModel>,
    /// Only if there is more than one thread: a single one needs none to hand it work.
    crew: Option<Crew>,
    calls: Vec<Call>,
}

/// Workers, and what waits for them.
struct Crew {
    pool: Pool<TextModel>,
    runtime: Runtime,
}

/// A model for images.
pub(crate) struct Images {
    engine: Engine,
    model: ImageModel,
    task: Option<ImageTask>,
}

#[derive(Clone)]
enum ImageTask {
    Network(Picture),
    Photo(Picture),
}

/// How this program is to compute.
pub(crate) fn compute(precision: Precision, tier: Option<Tier>) -> Compute {
    let path = tier.map_or(PathChoice::Auto, PathChoice::Kernels);
    Compute { path, precision: PrecisionChoice::Only(precision), ..Compute::default() }
}

/// Loads a model for texts, in this number format only.
pub(crate) fn load_texts(files: &ModelFiles, compute: Compute) -> anyhow::Result<Arc<TextModel>> {
    let model = TextModel::load_sharing(files, TEXT_LIMITS, &Parts::new(compute))?;
    check(compute, model.info().plan.precision)?;
    Ok(Arc::new(model))
}

/// Workers for a model of texts.
pub(crate) fn pool(workers: u16) -> anyhow::Result<Pool<TextModel>> {
    let chunk_units_max = u32::try_from(CHUNK_TOKENS)?;
    let settings = PoolSettings {
        workers: workers.into(),
        queue_units_max: 1 << 20,
        chunk_units_max,
        device_chunk_units_max: chunk_units_max,
    };
    Ok(Pool::start(settings, DeviceChoice::Cpu, "bench")?)
}

/// The size of an image that is read here.
pub(crate) fn dimensions(file: &[u8]) -> anyhow::Result<Dimensions> {
    Ok(Dimensions::read(file, &IMAGE_LIMITS)?)
}

/// Inputs of token ids.
pub(crate) fn inputs(texts: &[Vec<u32>]) -> Vec<TextInput> {
    let input =
        |ids: &Vec<u32>| TextInput { content: Content::Tokens(ids.clone()), work: Work::Compute(Truncation::Error) };
    texts.iter().map(input).collect()
}

/// A model that quietly computes in another format would be compared with the wrong rivals.
fn check(compute: Compute, done: Precision) -> anyhow::Result<()> {
    match compute.precision {
        PrecisionChoice::Only(wanted) if wanted != done => bail!("it is computed in {done} here"),
        _ => Ok(()),
    }
}

// === impl Texts ===

impl Texts {
    /// A loaded model, on so many threads.
    pub(crate) fn new(precision: Precision, model: Arc<TextModel>, threads: u16) -> anyhow::Result<Self> {
        let crew = || -> anyhow::Result<Crew> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(Crew { pool: pool(threads)?, runtime })
        };
        let crew = if threads > 1 { Some(crew()?) } else { None };
        Ok(Self { engine: Engine { library: Library::Tamis, precision }, model, crew, calls: Vec::new() })
    }

    /// Computes a call, in chunks of whole texts.
    fn run(&self, call: &[Vec<u32>]) -> anyhow::Result<Vec<Vec<f32>>> {
        let outputs = match &self.crew {
            Some(crew) => crew.runtime.block_on(crew.pool.run(&self.model, inputs(call), CALL))?.results,
            None => {
                let run = |chunk: &[Vec<u32>]| {
                    let inputs = inputs(chunk);
                    self.model.run(&inputs.iter().collect::<Vec<_>>(), &mut Watch::start(&|| true))
                };
                chunks(call).into_iter().flat_map(run).collect()
            }
        };
        outputs.into_iter().map(|output| Ok(output?.values)).collect()
    }
}

impl Contestant for Texts {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn take(&mut self, task: &Task) -> anyhow::Result<()> {
        let Task::Texts(calls) = task else { bail!("a model for texts reads no images") };
        self.calls.clone_from(calls);
        Ok(())
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Vec<f32>>> {
        let answers: anyhow::Result<Vec<_>> = self.calls.iter().map(|call| self.run(call)).collect();
        Ok(answers?.concat())
    }

    fn turn(&mut self, time: Duration) -> anyhow::Result<Turn> {
        repeat(time, || {
            let began = Instant::now();
            for call in &self.calls {
                self.run(call)?;
            }
            Ok(began.elapsed())
        })
    }
}

// === impl Images ===

impl Images {
    /// Loads a model in this number format.
    pub(crate) fn load(files: &ModelFiles, compute: Compute, precision: Precision) -> anyhow::Result<Self> {
        let model = ImageModel::load(files, IMAGE_LIMITS, &compute)?;
        check(compute, model.info().plan.precision)?;
        Ok(Self { engine: Engine { library: Library::Tamis, precision }, model, task: None })
    }

    /// The logits, and the time that the network alone took.
    fn logits(&self, picture: &Picture) -> anyhow::Result<(Vec<f32>, Duration)> {
        let mut watch = Watch::start(&|| true);
        let output = self.model.run(&[&picture.input], &mut watch).pop();
        let output = output.ok_or_else(|| anyhow!("the model gave no answer"))??;
        Ok((output.values, watch.compute))
    }

    /// The best labels with their probabilities.
    fn labels(&self, picture: &Picture) -> anyhow::Result<Vec<(String, f32)>> {
        let (logits, _) = self.logits(picture)?;
        let head = self.model.head();
        let scores = head.scores(&logits, ScoreMode::Native);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        Ok(order.into_iter().take(LABELS).map(|index| (head.labels[index].clone(), scores[index])).collect())
    }
}

impl Contestant for Images {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn take(&mut self, task: &Task) -> anyhow::Result<()> {
        self.task = Some(match task {
            Task::Network(picture) => ImageTask::Network(picture.clone()),
            Task::Photo(picture) => ImageTask::Photo(picture.clone()),
            Task::Texts(_) => bail!("a model for images reads no texts"),
        });
        Ok(())
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Vec<f32>>> {
        match &self.task {
            Some(ImageTask::Network(picture) | ImageTask::Photo(picture)) => Ok(vec![self.logits(picture)?.0]),
            None => Ok(Vec::new()),
        }
    }

    fn turn(&mut self, time: Duration) -> anyhow::Result<Turn> {
        repeat(time, || match &self.task {
            Some(ImageTask::Network(picture)) => Ok(self.logits(picture)?.1),
            Some(ImageTask::Photo(picture)) => {
                let began = Instant::now();
                self.labels(picture)?;
                Ok(began.elapsed())
            }
            None => bail!("there is no image"),
        })
    }
}

/// Whole texts that are computed at once: at most [`CHUNK_TOKENS`] tokens, or one text.
fn chunks(call: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut chunks, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, ids) in call.iter().enumerate() {
        if index > start && tokens + ids.len() > CHUNK_TOKENS {
            chunks.push(&call[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += ids.len();
    }
    chunks.push(&call[start..]);
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}

/// Runs for about so long. The rivals' script does just the same.
fn repeat(time: Duration, mut run: impl FnMut() -> anyhow::Result<Duration>) -> anyhow::Result<Turn> {
    let cpu = || process::usage(std::process::id()).map(|usage| usage.cpu);
    let (began, cpu_before) = (Instant::now(), cpu());
    // The first run warms what the others' turns have cooled; where it takes a whole turn that makes no difference.
    let mut times = vec![run()?];
    if times[0] < time {
        times.clear();
    }
    let mut spent: Duration = times.iter().sum();
    while times.is_empty() || (spent < time && times.len() < RUNS_MAX) {
        let once = run()?;
        times.push(once);
        spent += once;
    }
    let cpu = cpu().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    let cores = cpu.map_or(f64::NAN, |cpu| cpu.as_secs_f64() / began.elapsed().as_secs_f64().max(1e-9));
    Ok(Turn { times: times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect(), cores })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(texts: &[usize]) -> Vec<Vec<usize>> {
        let call: Vec<Vec<u32>> = texts.iter().map(|length| vec![1; *length]).collect();
        chunks(&call).into_iter().map(|chunk| chunk.iter().map(Vec::len).collect()).collect()
    }

    #[test]
    fn a_call_is_cut_into_chunks_of_whole_texts() {
        assert_eq!(lengths(&[100, 100, 100]), [vec![100, 100], vec![100]]);
        assert_eq!(lengths(&[300, 10]), [vec![300], vec![10]]);
        assert!(lengths(&[]).is_empty());
    }

    #[test]
    fn a_long_run_is_not_run_twice_only_to_warm_up() {
        let count = std::cell::Cell::new(0);
        let run = |took: u64| {
            count.set(0);
            let turn = repeat(Duration::from_millis(10), || {
                count.set(count.get() + 1);
                Ok(Duration::from_millis(took))
            });
            (turn.unwrap().times.len(), count.get())
        };
        assert_eq!(run(20), (1, 1));
        assert_eq!(run(4), (3, 4));
        assert_eq!(run(0).0, RUNS_MAX);
    }

    #[test]
    fn a_model_in_another_format_than_was_asked_for_is_no_contestant() {
        assert!(check(compute(Precision::F32, None), Precision::F32).is_ok());
        assert!(check(compute(Precision::Bf16, None), Precision::F32).is_err());
    }
}
