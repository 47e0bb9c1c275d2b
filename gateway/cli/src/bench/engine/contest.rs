//! Brings everybody together, and measures row after row.

use std::{
    cell::RefCell,
    num::NonZero,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use engine::{ImageInput, ImageOutputKind, ImageSource, ModelFiles, Precision, Store, TextModel, Tier, manifest};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{
    Args, Engine, Group, Library,
    corpus::{self, Corpus},
    field::{self, Entrant, Nearness},
    own, peak,
    report::{Report, Row},
    rival::{self, Loading, Purpose, Rival, Seat},
    rounds::{self, Contestant, Plan},
    scaling,
    setup::Place,
    work::{self, Picture, Shape, Task, Work},
};
use crate::{
    advice::Advice,
    bench::{conditions::Conditions, mixed},
    home::Home,
    models,
    output::warn,
};

/// The network for images whose structure the rivals' script knows.
const IMAGE_MODEL: &str = "efficientnet-lite0";
/// Time of each contestant's turn.
const TURN: Duration = Duration::from_millis(150);
/// Texts by which answers are compared: once together, padded by those who pad, and once each alone.
const EXAMINED: usize = 16;
/// Texts by which int8 is calibrated.
const CALIBRATED: usize = 300;

/// A contest in preparation.
struct Contest<'a> {
    args: &'a Args,
    store: Store,
    runtime: Rc<Runtime>,
    /// Where rivals live; none without rivals.
    place: Option<Place>,
    rivals: Vec<Rc<RefCell<Rival>>>,
    report: Report,
}

/// This program's models for texts.
struct Own {
    files: ModelFiles,
    /// The one in f32, by which the others' answers are judged.
    reference: Arc<TextModel>,
    models: Vec<(Precision, Arc<TextModel>)>,
}

/// Measures all that was asked for.
pub(crate) fn hold(args: &Args, home: &Home) -> anyhow::Result<Report> {
    let tier = args.tier.unwrap_or_else(Tier::detect);
    if !tier.is_available() {
        bail!(Advice::new(format!("this CPU has no {tier}"), format!("it has {}", Tier::detect())));
    }
    let mut contest = Contest::prepare(args, home, tier)?;
    if args.wants_texts() {
        contest.texts()?;
    }
    if args.wants(Group::Image) {
        contest.images()?;
    }
    contest.report.finish();
    Ok(contest.report)
}

impl<'a> Contest<'a> {
    fn prepare(args: &'a Args, home: &Home, tier: Tier) -> anyhow::Result<Self> {
        let conditions = Conditions::now("this process".to_owned());
        let runtime = Rc::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        let place = if args.against.is_empty() { None } else { Some(Place::claim(home)?) };
        let mut report = Report::new(conditions, tier, args);
        let mut rivals = Vec::new();
        if let Some(place) = &place {
            runtime.block_on(place.furnish(&args.python))?;
            for library in args.rivals() {
                let mut rival = Rival::start(library, Purpose::Measure, place, &runtime)?;
                report.versions.push((library, rival.versions()?));
                rivals.push(Rc::new(RefCell::new(rival)));
            }
        }
        Ok(Self { args, store: Store::new(home.data()), runtime, place, rivals, report })
    }

    /// The rows of texts.
    fn texts(&mut self) -> anyhow::Result<()> {
        let own = self.own_texts()?;
        let corpus = self.corpus(&own.reference)?;
        let shape = Shape::read(&own.files)?;
        let few: Vec<_> = corpus.texts().iter().cycle().take(EXAMINED).cloned().collect();
        let alone = few.iter().map(|ids| vec![ids.clone()]);
        let examined = Task::Texts(std::iter::once(few.clone()).chain(alone).collect());
        let mut judge = own::Texts::new(Precision::F32, Arc::clone(&own.reference), 1)?;
        judge.take(&examined)?;
        let reference = judge.answers()?;
        if [Group::Single, Group::Batch, Group::Mixed].into_iter().any(|group| self.args.wants(group)) {
            let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
            for (precision, model) in &own.models {
                contestants.push(Box::new(own::Texts::new(*precision, Arc::clone(model), self.args.threads)?));
            }
            self.seat_for_texts(&own.files, &corpus, &mut contestants)?;
            let admitted = self.examine(&mut contestants, &examined, &reference, field::OF_TEXTS)?;
            self.report.text_entrants = admitted;
            for group in [Group::Single, Group::Batch, Group::Mixed] {
                self.rows(group, &mut contestants, &|work| Ok((corpus.task(work), shape)))?;
            }
        }
        if self.args.wants(Group::Scaling) {
            self.scaling(&own, &corpus)?;
        }
        let (mean, most) = corpus.lengths();
        self.report.corpus =
            Some(format!("{}; mixed rows: {mean:.0} tokens on average, {most} at most", corpus.source));
        Ok(())
    }

    /// This program's models, in the formats in which there is one.
    fn own_texts(&mut self) -> anyhow::Result<Own> {
        let name = &self.args.model;
        let files = self.files(name)?;
        let compute = |precision| own::compute(precision, self.args.tier);
        let reference =
            own::load_texts(&files, compute(Precision::F32)).with_context(|| format!("model {name} in f32"))?;
        let mut models = Vec::new();
        for precision in self.args.precisions() {
            let loaded = match precision {
                Precision::F32 => Ok(Arc::clone(&reference)),
                Precision::Bf16 => own::load_texts(&files, compute(precision)),
                Precision::Int8 => self.quantized(name).and_then(|files| own::load_texts(&files, compute(precision))),
            };
            match loaded {
                Ok(model) => models.push((precision, model)),
                Err(why) => self.report.notes.push(format!("tamis {precision} is not measured: {why:#}")),
            }
        }
        Ok(Own { files, reference, models })
    }

    fn files(&self, name: &str) -> anyhow::Result<ModelFiles> {
        let manifest = self.store.manifest(name)?;
        if !self.store.is_present(&manifest) {
            warn(format!("pulling {name}"));
            models::pull(&self.store, &manifest)?;
        }
        Ok(self.store.open(&manifest)?)
    }

    fn quantized(&self, name: &str) -> anyhow::Result<ModelFiles> {
        let own_name = format!("{name}-int8");
        let manifest = self.store.manifest(&own_name).ok();
        let files = manifest.and_then(|manifest| self.store.open(&manifest).ok());
        files.with_context(|| format!("there is no {own_name} here; `tamis models quantize {name}` makes it"))
    }

    fn corpus(&mut self, model: &TextModel) -> anyhow::Result<Corpus> {
        if let Some(path) = &self.args.texts {
            return Corpus::new(path.display().to_string(), &corpus::read(path)?, model);
        }
        let (Some(rival), Some(place)) = (self.rivals.first(), &self.place) else {
            return Corpus::new("built-in texts".into(), &mixed::texts(), model);
        };
        let answer = rival.borrow_mut().ask("corpus", json!({ "folder": place.folder() }))?;
        let texts: Vec<String> = serde_json::from_value(answer["texts"].clone()).context("texts of VADER's data")?;
        Corpus::new("texts of VADER's data".into(), &texts, model)
    }

    /// Gives the rivals this program's weights, and a seat for each format that was asked for.
    fn seat_for_texts(
        &mut self,
        files: &ModelFiles,
        corpus: &Corpus,
        contestants: &mut Vec<Box<dyn Contestant>>,
    ) -> anyhow::Result<()> {
        let Some(recipe) = &files.manifest.text else { bail!("{} reads no texts", files.manifest.name) };
        let pooling = serde_json::to_value(recipe.pooling)?;
        let texts = rival::calibration(corpus.texts(), CALIBRATED);
        for rival in self.rivals.clone() {
            let library = rival.borrow().library();
            let place = self.place.as_ref().context("a place for rivals")?;
            let made_from = format!("{} {}", files.manifest.revision().as_str(), corpus.source);
            let workshop = place.workshop(files.manifest.name.as_str(), &made_from)?;
            let exported = workshop.join("f32.onnx");
            let make = |what: &str, request: Value| {
                Rival::start(library, Purpose::Make, place, &self.runtime)?.ask(what, request).map(drop)
            };
            rival::make(&exported, |to| {
                warn("exporting the model to ONNX");
                make("export", json!({ "kind": "texts", "folder": files.folder, "pooling": pooling, "to": to }))
            })?;
            let quantized =
                workshop.join(if library == Library::Openvino { "openvino-int8.xml" } else { "onnxruntime-int8.onnx" });
            for engine in self.engines(library) {
                let is_int8 = engine.precision == Precision::Int8;
                if is_int8 {
                    rival::make(&quantized, |to| {
                        warn(format!("quantizing the model with {}", library.as_str()));
                        make("quantize", json!({ "source": exported, "to": to, "calls": texts }))
                    })?;
                }
                self.load(&rival, engine, "texts", if is_int8 { &quantized } else { &exported })?;
                contestants.push(Box::new(Seat::texts(engine, &rival)));
            }
        }
        Ok(())
    }

    /// The formats in which a rival is measured: those that were asked for, and the one that stands beside bf16.
    fn engines(&self, library: Library) -> Vec<Engine> {
        let wanted = self.args.precisions();
        let engines = library.precisions().iter().map(|precision| Engine { library, precision: *precision });
        engines.filter(|engine| wanted.iter().any(|precision| engine.rivals(*precision))).collect()
    }

    fn load(&self, rival: &RefCell<Rival>, engine: Engine, kind: &str, path: &Path) -> anyhow::Result<()> {
        let name = Seat::name(engine, kind);
        let (threads, shapes) = (self.args.threads, self.args.shapes);
        rival.borrow_mut().load(Loading { engine, name: &name, path, threads, shapes })
    }

    fn examine(
        &mut self,
        contestants: &mut Vec<Box<dyn Contestant>>,
        task: &Task,
        reference: &[Vec<f32>],
        nearness: Nearness,
    ) -> anyhow::Result<Vec<Entrant>> {
        warn("comparing answers");
        let (entrants, notes) = field::examine(contestants, task, reference, nearness)?;
        self.report.notes.extend(notes);
        Ok(entrants)
    }

    fn rows(
        &mut self,
        group: Group,
        contestants: &mut [Box<dyn Contestant>],
        task: &dyn Fn(Work) -> anyhow::Result<(Task, Shape)>,
    ) -> anyhow::Result<()> {
        if !self.args.wants(group) || contestants.is_empty() {
            return Ok(());
        }
        let plan = Plan { rounds: self.args.rounds.into(), turn: TURN };
        let tier = self.report.tier;
        for work in work::rows(group) {
            warn(format!("measuring {work}"));
            let (task, shape) = task(work)?;
            let measured = rounds::measure(contestants, &task, &|| peak::measure(tier), plan)?;
            self.report.rows.push(Row { work, tokens: task.tokens(), operations: task.operations(shape), measured });
        }
        Ok(())
    }

    fn scaling(&mut self, own: &Own, corpus: &Corpus) -> anyhow::Result<()> {
        if std::thread::available_parallelism().map_or(1, NonZero::get) < 2 {
            self.report.notes.push("two workers are not measured: this process may use one processor only".into());
            return Ok(());
        }
        for (precision, model) in &own.models {
            warn(format!("measuring one worker and two, {precision}"));
            let scaled = scaling::measure(*precision, model, &corpus.mixed(), self.args.rounds.into())?;
            self.report.scaling.push(scaled);
        }
        Ok(())
    }

    /// The rows of images.
    fn images(&mut self) -> anyhow::Result<()> {
        let Some(picture) = self.picture()? else {
            self.report.notes.push("images are not measured: without rivals --image names a photo".into());
            return Ok(());
        };
        let files = self.files(IMAGE_MODEL)?;
        let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
        let task = Task::Network(picture.clone());
        let mut reference = self.own_images(&files, Precision::F32)?;
        reference.take(&task)?;
        let reference = reference.answers()?;
        for precision in self.args.precisions().into_iter().filter(|precision| *precision != Precision::Int8) {
            match self.own_images(&files, precision) {
                Ok(images) => contestants.push(Box::new(images)),
                Err(why) => self.report.notes.push(format!("tamis {precision} sees no images: {why:#}")),
            }
        }
        self.seat_for_images(&files, &mut contestants)?;
        self.report.image_entrants = self.examine(&mut contestants, &task, &reference, field::OF_IMAGES)?;
        // A network for images has no shape of an encoder.
        let shape = Shape { hidden: 0.0, wide: 0.0, layers: 0.0 };
        self.rows(Group::Image, &mut contestants, &|work| {
            let picture = picture.clone();
            Ok((if work == Work::Photo { Task::Photo(picture) } else { Task::Network(picture) }, shape))
        })
    }

    fn own_images(&self, files: &ModelFiles, precision: Precision) -> anyhow::Result<own::Images> {
        own::Images::load(files, own::compute(precision, self.args.tier), precision)
    }

    /// The photo: the one that was named, or the one that comes with the rivals.
    fn picture(&mut self) -> anyhow::Result<Option<Picture>> {
        let path = match (&self.args.image, self.rivals.first(), &self.place) {
            (Some(path), _, _) => std::path::absolute(path)?,
            (None, Some(rival), Some(place)) => {
                let path: PathBuf = place.folder().join("photo.jpg");
                rival.borrow_mut().ask("picture", json!({ "to": path }))?;
                path
            }
            _ => return Ok(None),
        };
        let file = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().display();
        let size = own::dimensions(&file).with_context(|| format!("cannot use {}", path.display()))?;
        self.report.photo = Some(format!("{name}: {} x {} pixels, {} bytes", size.width, size.height, file.len()));
        let source = ImageSource::Encoded(file.into());
        Ok(Some(Picture { path, input: ImageInput { source, crop: None, output: ImageOutputKind::Logits } }))
    }

    fn seat_for_images(
        &mut self,
        files: &ModelFiles,
        contestants: &mut Vec<Box<dyn Contestant>>,
    ) -> anyhow::Result<()> {
        let recipe = recipe(files)?;
        for rival in self.rivals.clone() {
            let library = rival.borrow().library();
            let place = self.place.as_ref().context("a place for rivals")?;
            let exported = place.workshop(IMAGE_MODEL, files.manifest.revision().as_str())?.join("f32.onnx");
            rival::make(&exported, |to| {
                warn("exporting the network for images to ONNX");
                let request = json!({ "kind": "images", "folder": files.folder, "to": to });
                Rival::start(library, Purpose::Make, place, &self.runtime)?.ask("export", request).map(drop)
            })?;
            for engine in self.engines(library).into_iter().filter(|engine| engine.precision != Precision::Int8) {
                self.load(&rival, engine, "images", &exported)?;
                contestants.push(Box::new(Seat::images(engine, &rival, recipe.clone())));
            }
        }
        Ok(())
    }
}

/// How a file becomes what the network reads, and its logits labels, in the rivals' words.
fn recipe(files: &ModelFiles) -> anyhow::Result<Value> {
    let manifest = &files.manifest;
    let (Some(image), Some(head)) = (&manifest.image, &manifest.head) else {
        bail!("{} has no recipe for images", manifest.name)
    };
    let labels = head.labels.as_ref().map(manifest::Labels::names).unwrap_or_default();
    Ok(json!({
        "resize": image.resize, "filter": serde_json::to_value(image.filter)?, "crop": image.crop,
        "mean": image.mean, "std": image.std, "labels": labels,
    }))
}
