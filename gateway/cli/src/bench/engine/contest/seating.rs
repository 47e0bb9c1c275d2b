//! Gives the rivals this program's weights, and a seat in each number format.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context as _, bail};
use engine::{ModelFiles, Precision, manifest};
use serde_json::{Value, json};

use super::{
    super::{
        Engine, Library,
        corpus::Corpus,
        rival::{self, Loading, Purpose, Rival, Seat},
        rounds::Contestant,
        work::Call,
    },
    Contest, IMAGE_MODEL,
};
use crate::output::warn;

/// Texts by which int8 is calibrated.
const CALIBRATED: usize = 300;

/// The models for texts that a rival is given.
struct Models {
    /// The folder where they are made.
    workshop: PathBuf,
    /// The ids of texts to calibrate by.
    calibration: Vec<Call>,
    /// How vectors of tokens become one, in the manifest's words.
    pooling: Value,
}

impl Contest<'_> {
    /// Seats all rivals that can take the model. Who can not is named in the notes.
    pub(super) fn seat_for_texts(
        &mut self,
        files: &ModelFiles,
        corpus: &Corpus,
        contestants: &mut Vec<Box<dyn Contestant>>,
    ) -> anyhow::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let Some(recipe) = &files.manifest.text else { bail!("{} reads no texts", files.manifest.name) };
        let calibration = rival::calibration(corpus.texts(), CALIBRATED);
        let made_from = format!("{} {}", files.manifest.revision(), corpus.digest(CALIBRATED));
        let workshop = place.workshop(files.manifest.name.as_str(), &made_from)?;
        let models = Models { workshop, calibration, pooling: serde_json::to_value(recipe.pooling)? };
        for rival in self.rivals.clone() {
            let library = rival.borrow().library();
            for engine in self.engines(library) {
                let made = self.model_for_texts(engine, files, &models);
                match made.and_then(|path| self.load(&rival, engine, "texts", &path)) {
                    Ok(()) => contestants.push(Box::new(Seat::texts(engine, &rival))),
                    Err(why) => self.report.miss(&engine.to_string(), &why),
                }
            }
        }
        Ok(())
    }

    /// The file of the model that a rival computes with, made if it is not there.
    fn model_for_texts(&self, engine: Engine, files: &ModelFiles, models: &Models) -> anyhow::Result<PathBuf> {
        let library = engine.library;
        let exported = models.workshop.join("f32.onnx");
        rival::make(&exported, |to| {
            warn("exporting the model to ONNX");
            let request = json!({ "kind": "texts", "folder": files.folder, "pooling": models.pooling, "to": to });
            self.have_made(library, "export", request)
        })?;
        if engine.precision != Precision::Int8 {
            return Ok(exported);
        }
        let name = if library == Library::Openvino { "openvino-int8.xml" } else { "onnxruntime-int8.onnx" };
        let quantized = models.workshop.join(name);
        rival::make(&quantized, |to| {
            warn(format!("quantizing the model with {}", library.as_str()));
            self.have_made(library, "quantize", json!({ "source": exported, "to": to, "calls": models.calibration }))
        })?;
        Ok(quantized)
    }

    /// Seats all rivals for images.
    pub(super) fn seat_for_images(
        &mut self,
        files: &ModelFiles,
        contestants: &mut Vec<Box<dyn Contestant>>,
    ) -> anyhow::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let recipe = recipe(files)?;
        let exported = place.workshop(IMAGE_MODEL, files.manifest.revision().as_str())?.join("f32.onnx");
        for rival in self.rivals.clone() {
            let library = rival.borrow().library();
            for engine in self.engines(library).into_iter().filter(|engine| engine.precision != Precision::Int8) {
                let made = rival::make(&exported, |to| {
                    warn("exporting the network for images to ONNX");
                    self.have_made(library, "export", json!({ "kind": "images", "folder": files.folder, "to": to }))
                });
                match made.and_then(|()| self.load(&rival, engine, "images", &exported)) {
                    Ok(()) => contestants.push(Box::new(Seat::images(engine, &rival, recipe.clone()))),
                    Err(why) => self.report.miss(&format!("{engine} for images"), &why),
                }
            }
        }
        Ok(())
    }

    /// Has a process of its own make a model: what that leaves in memory is no part of what is measured.
    fn have_made(&self, library: Library, what: &str, request: Value) -> anyhow::Result<()> {
        let place = self.place.as_ref().context("a place for rivals")?;
        Rival::start(library, Purpose::Make, place, &self.runtime)?.ask(what, request).map(drop)
    }

    /// The formats in which a rival is measured: those that were asked for, and the one that stands beside bf16.
    fn engines(&self, library: Library) -> Vec<Engine> {
        let wanted = self.args.precisions();
        let engines = library.precisions().iter().map(|precision| Engine { library, precision: *precision });
        engines.filter(|engine| wanted.iter().any(|precision| engine.rivals(*precision))).collect()
    }

    fn load(&self, rival: &Rc<RefCell<Rival>>, engine: Engine, kind: &str, path: &Path) -> anyhow::Result<()> {
        let name = Seat::name(engine, kind);
        let (threads, shapes) = (self.args.threads, self.args.shapes);
        rival.borrow_mut().load(Loading { engine, name: &name, path, threads, shapes })
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
