//! Brings everybody together, and measures row after row. Whoever fails on the way is named in the report's notes, and what
//! was measured stays.

mod named;
mod seating;

use std::{cell::RefCell, num::NonZero, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use engine::{ImageInput, ImageOutputKind, ImageSource, ModelFiles, ModelName, Precision, Store, TextModel, Tier};
use serde_json::json;
use tokio::runtime::Runtime;

use self::named::Named;
use super::{
    Args, Group,
    corpus::Corpus,
    field::{self, Entrant, Nearness},
    own, peak,
    report::{Report, Row},
    rival::{Purpose, Rival},
    rounds::{self, Contestant, Fallen, Peak, Plan},
    scaling, service,
    setup::Place,
    work::{self, Picture, Shape, Task, Work},
};
use crate::{
    advice::{Advice, remark},
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
/// Groups of rows that contestants play for.
const ROWS_OF_TEXTS: [Group; 3] = [Group::Single, Group::Batch, Group::Mixed];

/// A contest in preparation.
struct Contest<'a> {
    args: &'a Args,
    named: Named,
    store: Store,
    runtime: Rc<Runtime>,
    /// Where rivals live; none without rivals.
    place: Option<Place>,
    rivals: Vec<Rc<RefCell<Rival>>>,
    report: Report,
    /// Why the first group that failed did.
    failure: Option<anyhow::Error>,
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
    let store = Store::new(home.data());
    let named = Named::read(args, &store)?;
    let mut contest = Contest::prepare(args, named, (store, home), tier)?;
    if args.wants_texts() {
        contest.attempt("texts are", Contest::texts);
    }
    if args.wants(Group::Image) {
        contest.attempt("images are", Contest::images);
    }
    contest.report.finish();
    match contest.failure {
        Some(failure) if contest.report.is_empty() => Err(failure),
        _ => Ok(contest.report),
    }
}

impl<'a> Contest<'a> {
    fn prepare(args: &'a Args, named: Named, (store, home): (Store, &Home), tier: Tier) -> anyhow::Result<Self> {
        let conditions = Conditions::now("this process".to_owned());
        let runtime = Rc::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        let place = if args.against.is_empty() { None } else { Some(Place::claim(home)?) };
        let mut report = Report::new(conditions, tier, args);
        let mut rivals = Vec::new();
        if let Some(place) = &place {
            runtime.block_on(place.furnish(args.python.as_deref()))?;
            for library in args.rivals() {
                let started = Rival::start(library, Purpose::Measure, place, &runtime);
                match started.and_then(|mut rival| Ok((rival.versions()?, rival))) {
                    Ok((versions, rival)) => {
                        report.versions.push((library, versions));
                        rivals.push(Rc::new(RefCell::new(rival)));
                    }
                    Err(why) => report.miss(library.as_str(), &why),
                }
            }
        }
        Ok(Self { args, named, store, runtime, place, rivals, report, failure: None })
    }

    /// Measures some rows. If that fails, what was measured before is still worth reading.
    fn attempt(&mut self, what: &str, measure: impl FnOnce(&mut Self) -> anyhow::Result<()>) {
        if let Err(why) = measure(self) {
            self.report.notes.push(format!("{what} not measured to the end: {}", remark(&why)));
            self.failure.get_or_insert(why);
        }
    }

    /// All that is about texts.
    fn texts(&mut self) -> anyhow::Result<()> {
        let own = self.own_texts()?;
        if self.wants_rows_of_texts() || self.args.wants(Group::Scaling) {
            self.attempt("rows of texts are", |contest| contest.corpus_rows(&own));
        }
        if self.args.wants(Group::Service) && self.has_processors("what a service could answer is") {
            self.attempt("what a service could answer is", |contest| contest.service(&own));
        }
        Ok(())
    }

    fn wants_rows_of_texts(&self) -> bool {
        ROWS_OF_TEXTS.into_iter().any(|group| self.args.wants(group))
    }

    /// The rows of token ids, which all contestants read alike.
    fn corpus_rows(&mut self, own: &Own) -> anyhow::Result<()> {
        let corpus = self.corpus(&own.reference)?;
        self.report.corpus = Some(corpus.describe());
        if self.wants_rows_of_texts() {
            self.attempt("rows of texts are", |contest| contest.rows_of_texts(own, &corpus));
        }
        if self.args.wants(Group::Scaling) && self.has_processors("one worker beside two is") {
            self.attempt("one worker beside two is", |contest| contest.scaling(own, &corpus));
        }
        Ok(())
    }

    fn rows_of_texts(&mut self, own: &Own, corpus: &Corpus) -> anyhow::Result<()> {
        let shape = Shape::read(&own.files)?;
        let few: Vec<_> = corpus.texts().iter().cycle().take(EXAMINED).cloned().collect();
        let alone = few.iter().map(|ids| vec![ids.clone()]);
        let examined = Task::Texts(std::iter::once(few.clone()).chain(alone).collect());
        let mut judge = own::Texts::new(Precision::F32, Arc::clone(&own.reference), 1)?;
        judge.take(&examined)?;
        let reference = judge.answers()?;
        let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
        for (precision, model) in &own.models {
            contestants.push(Box::new(own::Texts::new(*precision, Arc::clone(model), self.args.threads)?));
        }
        self.seat_for_texts(&own.files, corpus, &mut contestants)?;
        self.report.text_entrants = self.examine(&mut contestants, &examined, &reference, field::OF_TEXTS);
        for group in ROWS_OF_TEXTS {
            self.rows(group, &mut contestants, &|work| (corpus.task(work), shape));
        }
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
                Err(why) => self.report.miss(&format!("tamis {precision}"), &why),
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

    /// The files of the model's int8 form, which is built in or was made on this machine.
    fn quantized(&self, name: &str) -> anyhow::Result<ModelFiles> {
        let own_name = format!("{name}-int8");
        let known = ModelName::try_from(own_name.clone()).is_ok_and(|name| self.store.is_known(&name).unwrap_or(true));
        if !known {
            bail!(Advice::new(
                format!("there is no model {own_name}"),
                format!("`tamis models quantize {name}` makes it")
            ));
        }
        self.files(&own_name)
    }

    /// The texts that were named, or VADER's, or the built-in ones.
    fn corpus(&mut self, model: &TextModel) -> anyhow::Result<Corpus> {
        if let Some((source, texts)) = &self.named.texts {
            return Corpus::new(source.clone(), texts, model);
        }
        if let (Some(rival), Some(place)) = (self.rivals.first(), &self.place) {
            let asked = rival.borrow_mut().ask("corpus", json!({ "folder": place.folder() }));
            match asked.and_then(|answer| Ok(serde_json::from_value::<work::Snippets>(answer)?)) {
                Ok(snippets) => return Corpus::new(snippets.source, &snippets.texts, model),
                Err(why) => self.report.notes.push(format!("built-in texts, for others are missing: {}", remark(&why))),
            }
        }
        Corpus::new("built-in texts".into(), &mixed::texts(), model)
    }

    fn examine(
        &mut self,
        contestants: &mut Vec<Box<dyn Contestant>>,
        task: &Task,
        reference: &[Vec<f32>],
        nearness: Nearness,
    ) -> Vec<Entrant> {
        warn("comparing answers");
        let (entrants, notes) = field::examine(contestants, task, reference, nearness);
        self.report.notes.extend(notes);
        entrants
    }

    /// The rows of a group. A contestant that fails leaves, and the row begins anew without it.
    fn rows(&mut self, group: Group, contestants: &mut Vec<Box<dyn Contestant>>, task: &dyn Fn(Work) -> (Task, Shape)) {
        if !self.args.wants(group) {
            return;
        }
        let plan = Plan { rounds: self.args.rounds.into(), turn: TURN };
        let (tier, threads) = (self.report.tier, self.args.threads);
        for work in work::rows(group) {
            let (task, shape) = task(work);
            while !contestants.is_empty() {
                warn(format!("measuring {work}"));
                match rounds::measure(contestants, &task, &|| peak::measure(tier, threads), plan) {
                    Ok(measured) => {
                        let (tokens, operations) = (task.tokens(), task.operations(shape));
                        self.report.rows.push(Row { work, tokens, operations, measured });
                        break;
                    }
                    Err(Fallen { place, why }) => {
                        let engine = contestants.remove(place).engine();
                        self.report.notes.push(format!("{engine} failed in {work} and left: {}", remark(&why)));
                    }
                }
            }
        }
    }

    /// Whether two workers can compute at once; if not, that is said.
    fn has_processors(&mut self, what: &str) -> bool {
        let has = std::thread::available_parallelism().map_or(1, NonZero::get) >= 2;
        if !has {
            self.report.notes.push(format!("{what} not measured: this process may use one processor only"));
        }
        has
    }

    fn scaling(&mut self, own: &Own, corpus: &Corpus) -> anyhow::Result<()> {
        let gauge = self.gauge_of_two();
        for (precision, model) in &own.models {
            warn(format!("measuring one worker and two, {precision}"));
            let scaled = scaling::measure(*precision, model, &corpus.mixed(), self.args.rounds.into(), &gauge)?;
            self.report.scaling.push(scaled);
        }
        Ok(())
    }

    fn service(&mut self, own: &Own) -> anyhow::Result<()> {
        warn(format!("measuring {} callers on {} workers", service::CALLERS, service::WORKERS));
        let texts = match &self.named.texts {
            Some((source, texts)) => (source.clone(), texts.clone()),
            None => ("its built-in ones".to_owned(), mixed::texts()),
        };
        let (gauge, rounds) = (self.gauge_of_two(), self.args.rounds.into());
        self.report.service = Some(service::measure(&own.models, (texts.0, &texts.1), rounds, &gauge)?);
        Ok(())
    }

    /// Both workers' tables are about two processors, however many threads the rows have.
    fn gauge_of_two(&self) -> impl Fn() -> Peak + use<> {
        let tier = self.report.tier;
        move || peak::measure(tier, service::WORKERS)
    }

    /// The rows of images.
    fn images(&mut self) -> anyhow::Result<()> {
        let precisions = self.args.precisions().into_iter().filter(|precision| *precision != Precision::Int8);
        let precisions: Vec<_> = precisions.collect();
        if precisions.is_empty() {
            self.report.notes.push(format!("images are not measured: {IMAGE_MODEL} has no int8"));
            return Ok(());
        }
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
        for precision in precisions {
            match self.own_images(&files, precision) {
                Ok(images) => contestants.push(Box::new(images)),
                Err(why) => self.report.miss(&format!("tamis {precision} for images"), &why),
            }
        }
        self.seat_for_images(&files, &mut contestants)?;
        self.report.image_entrants = self.examine(&mut contestants, &task, &reference, field::OF_IMAGES);
        // A network for images has no shape of an encoder.
        let shape = Shape { hidden: 0.0, wide: 0.0, layers: 0.0 };
        self.rows(Group::Image, &mut contestants, &|work| {
            let picture = picture.clone();
            (if work == Work::Photo { Task::Photo(picture) } else { Task::Network(picture) }, shape)
        });
        Ok(())
    }

    fn own_images(&self, files: &ModelFiles, precision: Precision) -> anyhow::Result<own::Images> {
        own::Images::load(files, own::compute(precision, self.args.tier), precision)
    }

    /// The photo: the one that was named, or the one that comes with the rivals.
    fn picture(&mut self) -> anyhow::Result<Option<Picture>> {
        let (path, file) = match (&self.named.image, self.rivals.first(), &self.place) {
            (Some((path, file)), _, _) => (path.clone(), file.clone()),
            (None, Some(rival), Some(place)) => {
                let path: PathBuf = place.folder().join("photo.jpg");
                rival.borrow_mut().ask("picture", json!({ "to": path }))?;
                let file = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                (path, file)
            }
            _ => return Ok(None),
        };
        let name = path.file_name().unwrap_or_default().display();
        let size = own::dimensions(&file).with_context(|| format!("cannot use {}", path.display()))?;
        self.report.photo = Some(format!("{name}: {} x {} pixels, {} bytes", size.width, size.height, file.len()));
        let source = ImageSource::Encoded(file.into());
        Ok(Some(Picture { path, input: ImageInput { source, crop: None, output: ImageOutputKind::Logits } }))
    }
}
