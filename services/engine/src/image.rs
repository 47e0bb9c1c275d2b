//! Image models: a file or raw pixels in, logits or features out.

use bytes::Bytes;
use kernels::Precision;

use crate::{
    Compute, Error, Head, ItemError, Model, ModelInfo, Plan, Reason, Watch,
    efficientnet::{self, Network, Numbers},
    info::Measured,
    manifest::{Architecture, ImageRecipe, ModelFiles},
    weights::Weights,
};

mod decode;
mod jpeg;
mod region;
mod resize;
#[cfg(test)]
mod samples;

/// A network with the recipe around it.
#[derive(Debug)]
pub struct ImageModel {
    info: ModelInfo,
    recipe: ImageRecipe,
    limits: ImageLimits,
    network: Box<dyn Network>,
    head: Head,
}

/// What an image may cost. Both are checked before anything is decoded; beyond lies [`Reason::TooLarge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Most bytes of an encoded image.
    pub bytes_max: usize,
    /// Most pixels of an image before it is cropped or resized. A pixel takes up to 11 bytes of memory while it is
    /// decoded, once per worker.
    pub pixels_max: u64,
}

/// One image to look at.
#[derive(Clone, Debug)]
pub struct ImageInput {
    /// Where its pixels come from.
    pub source: ImageSource,
    /// The part to look at. None: all of it.
    pub crop: Option<Crop>,
    /// What is wanted of it.
    pub output: ImageOutputKind,
}

/// Where the pixels of an image come from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A JPEG, PNG, WebP or GIF file (its first frame), turned as its EXIF data says.
    Encoded(Bytes),
    /// Pixels as they are.
    Raw(RawImage),
}

/// Pixels in sRGB: row-major from the top left, no padding between rows.
#[derive(Clone, Debug)]
pub struct RawImage {
    /// Pixels in a row; at least 1.
    pub width: u32,
    /// Rows; at least 1.
    pub height: u32,
    /// Layout of a pixel.
    pub format: PixelFormat,
    /// Exactly as many bytes as the pixels take.
    pub pixels: Bytes,
}

/// Layout of a raw pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb8,
    /// Red, green, blue, alpha. Alpha is dropped, not blended.
    Rgba8,
    /// Luminance.
    Gray8,
}

/// A part of an upright image in relative coordinates, 0 to 1 from the top left. At least one pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crop {
    /// Left edge.
    pub x_min: f32,
    /// Upper edge.
    pub y_min: f32,
    /// Right edge, above `x_min`.
    pub x_max: f32,
    /// Lower edge, above `y_min`.
    pub y_max: f32,
}

/// Size of an upright image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// What is wanted of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageOutputKind {
    /// One number per label, for [`Head::scores`].
    Logits,
    /// The pooled features before the last layer, not normalised.
    Features,
}

/// What becomes of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageOutput {
    /// Logits or features.
    pub values: Vec<f32>,
    /// Pixels of the image as it came, before crop and resizing.
    pub pixels: u64,
}

/// The precisions that there are kernels for; none: the network has no fast path.
pub(crate) fn kernel_precisions(architecture: Architecture) -> &'static [Precision] {
    match architecture {
        Architecture::EfficientnetLite0 | Architecture::EfficientnetLite1 | Architecture::EfficientnetLite2 => {
            efficientnet::KERNEL_PRECISIONS
        }
    }
}

/// What the bytes of an image stand for.
fn numbers(recipe: &ImageRecipe) -> Numbers {
    std::array::from_fn(|colour| std::array::from_fn(|byte| (byte as f32 - recipe.mean[colour]) / recipe.std[colour]))
}

fn abandoned() -> ItemError {
    ItemError::new(Reason::Abandoned, "nobody waits for this image any more")
}

// === impl Dimensions ===

impl Dimensions {
    /// Reads what a file says of itself: its format, its size and how to turn it. No pixel is decoded, so that a file
    /// that passes may still be damaged.
    ///
    /// # Errors
    /// When it is no image, or one that these limits refuse.
    pub fn read(file: &[u8], limits: &ImageLimits) -> Result<Self, ItemError> {
        decode::dimensions(file, limits)
    }
}

// === impl ImageModel ===

impl ImageModel {
    /// Reads the weights of a model whose manifest is of the task vision.
    ///
    /// # Errors
    /// When the files are not those of the architecture that the manifest names, or it can not be computed so.
    pub fn load(files: &ModelFiles, limits: ImageLimits, compute: &Compute) -> Result<Self, Error> {
        let manifest = &files.manifest;
        let name = format!("model {}", manifest.name);
        let (Some(recipe), Some(head)) = (&manifest.image, &manifest.head) else {
            return Err(Error::load(name, format!("its task is {}, which reads no images", manifest.task)));
        };
        let scale = match recipe.architecture {
            Architecture::EfficientnetLite0 => efficientnet::LITE0,
            Architecture::EfficientnetLite1 => efficientnet::LITE1,
            Architecture::EfficientnetLite2 => efficientnet::LITE2,
        };
        let head = Head::new(head, Vec::new())?;
        for (what, is, must) in [
            ("image.crop", recipe.crop as usize, scale.side),
            ("the number of labels", head.labels.len(), efficientnet::CLASSES),
        ] {
            if is != must {
                return Err(Error::load(name, format!("{what} is {is}, but the network has {must}")));
            }
        }
        let plan = Plan::new(files, compute)?;
        let device = plan.device.open()?;
        // Mapped only while it loads: folding the batch norms rewrites every weight.
        let weights = Weights::map(&files.path("model.safetensors"))?.on(&device);
        let network = efficientnet::load(&weights.builder, scale, &numbers(recipe), plan);
        let network = network.map_err(|error| Error::load(name, error))?;
        let measured = Measured {
            max_input_tokens: 0,
            dimensions: efficientnet::FEATURES as u32,
            labels: head.labels.clone(),
            parameter_bytes: network.parameter_bytes(),
        };
        Ok(Self { info: ModelInfo::new(manifest, plan, measured), recipe: recipe.clone(), limits, network, head })
    }

    /// What the model says of itself.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What makes labels of logits.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    fn run_one(&self, input: &ImageInput, watch: &mut Watch<'_>) -> Result<ImageOutput, ItemError> {
        if !watch.wanted() {
            return Err(abandoned());
        }
        let prepared = self.prepare(input);
        watch.prepared();
        let (pixels, prepared) = prepared?;
        let values = self.compute(&prepared, input.output, &|| watch.wanted());
        watch.computed();
        Ok(ImageOutput { values: values?, pixels })
    }

    /// The pixels of the image, and those that the network sees.
    fn prepare(&self, input: &ImageInput) -> Result<(u64, Vec<u8>), ItemError> {
        let picture = decode::decode(&input.source, &self.limits)?;
        let pixels = u64::from(picture.width) * u64::from(picture.height);
        Ok((pixels, resize::prepare(picture, input.crop, &self.recipe)?))
    }

    fn compute(
        &self,
        prepared: &[u8],
        output: ImageOutputKind,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>, ItemError> {
        let failed = |error: candle_core::Error| ItemError::new(Reason::Engine, error.to_string());
        let features = self.network.features(prepared, wanted).map_err(failed)?.ok_or_else(abandoned)?;
        let values = match output {
            ImageOutputKind::Features => features,
            ImageOutputKind::Logits => self.network.logits(&features).map_err(failed)?,
        };
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        tracing::error!(model = %self.info.name, "output is not finite");
        Err(ItemError::new(Reason::Engine, "the model's output is not finite"))
    }
}

impl Model for ImageModel {
    type Input = ImageInput;
    type Output = ImageOutput;

    fn units(&self, _: &Self::Input) -> u32 {
        1
    }

    fn run(&self, inputs: &[&Self::Input], watch: &mut Watch<'_>) -> Vec<Result<Self::Output, ItemError>> {
        inputs.iter().map(|input| self.run_one(input, watch)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use ::image::ImageFormat;

    use super::{
        samples::{LIMITS, encoded, photo, recipe},
        *,
    };
    use crate::{ComputePath, DeviceChoice, Manifest, efficientnet::LITE0, seeded::Seeded};

    fn model() -> ImageModel {
        model_with(recipe())
    }

    fn model_with(recipe: ImageRecipe) -> ImageModel {
        let manifest = Manifest::builtin().into_iter().find(|manifest| manifest.image.is_some()).unwrap();
        let head = Head::new(manifest.head.as_ref().unwrap(), Vec::new()).unwrap();
        let measured =
            Measured { max_input_tokens: 0, dimensions: 1280, labels: head.labels.clone(), parameter_bytes: 0 };
        let path = ComputePath::Kernels(kernels::Tier::detect());
        let plan = Plan { device: DeviceChoice::Cpu, path, precision: Precision::F32 };
        let network = efficientnet::load(&Seeded::builder(), LITE0, &numbers(&recipe), plan).unwrap();
        ImageModel { info: ModelInfo::new(&manifest, plan, measured), recipe, limits: LIMITS, network, head }
    }

    fn input(bytes: Vec<u8>, output: ImageOutputKind) -> ImageInput {
        ImageInput { source: ImageSource::Encoded(bytes.into()), crop: None, output }
    }

    #[test]
    fn a_bad_image_fails_alone() {
        let (model, wanted) = (model(), || true);
        let good = encoded(&photo(64, 48), ImageFormat::Png);
        let inputs = [
            &input(good.clone(), ImageOutputKind::Logits),
            &input(good[..200].to_vec(), ImageOutputKind::Logits),
            &input(good, ImageOutputKind::Features),
        ];
        let mut watch = Watch::start(&wanted);
        let outputs = model.run(&inputs, &mut watch);
        let logits = outputs[0].as_ref().unwrap();
        assert_eq!((logits.values.len(), logits.pixels), (1000, 64 * 48));
        assert_eq!(outputs[1].as_ref().unwrap_err().reason, Reason::BadImage);
        assert_eq!(outputs[2].as_ref().unwrap().values.len(), 1280);
        assert!(!watch.prepare.is_zero() && watch.compute > watch.prepare);
    }

    #[test]
    fn abandoned_images_are_not_decoded() {
        let outputs = model().run(&[&input(vec![], ImageOutputKind::Logits)], &mut Watch::start(&|| false));
        assert_eq!(outputs[0].as_ref().unwrap_err().reason, Reason::Abandoned);
    }

    #[test]
    fn an_image_is_given_up_between_blocks() {
        let asked = Cell::new(0);
        let wanted = || {
            asked.set(asked.get() + 1);
            asked.get() < 5
        };
        let mut watch = Watch::start(&wanted);
        let photo = encoded(&photo(64, 48), ImageFormat::Png);
        let outputs = model().run(&[&input(photo, ImageOutputKind::Logits)], &mut watch);
        assert_eq!(outputs[0].as_ref().unwrap_err().reason, Reason::Abandoned);
        // Before it is decoded, and before each of the first blocks.
        assert_eq!(asked.get(), 5);
        assert!(!watch.prepare.is_zero());
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_and_no_other_takes_its_place() {
        for device in [DeviceChoice::Cuda(0), DeviceChoice::Metal(0)] {
            let manifest = Manifest::builtin().into_iter().find(|manifest| manifest.image.is_some()).unwrap();
            let files = ModelFiles { manifest, folder: "/nowhere".into(), base: None };
            let compute = Compute { device, ..Compute::default() };
            let error = ImageModel::load(&files, LIMITS, &compute).unwrap_err().to_string();
            assert!(device.is_built() || error.contains(&format!("device {device}: this build can not")), "{error}");
        }
    }

    #[test]
    fn output_that_is_not_finite_fails_with_its_image_only() {
        let std = [f32::MIN_POSITIVE, 1.0, 1.0];
        let model = model_with(ImageRecipe { std, ..recipe() }); // (255 - 127) / std is infinite, (127 - 127) / std is 0
        let raw = |gray: u8| ImageInput {
            source: ImageSource::Raw(RawImage {
                width: 1,
                height: 1,
                format: PixelFormat::Gray8,
                pixels: vec![gray].into(),
            }),
            crop: None,
            output: ImageOutputKind::Logits,
        };
        let outputs = model.run(&[&raw(255), &raw(127)], &mut Watch::start(&|| true));
        assert_eq!(outputs[0].as_ref().unwrap_err().reason, Reason::Engine);
        assert!(outputs[1].is_ok());
    }

    #[test]
    fn bytes_are_normalised_by_colour() {
        let numbers = numbers(&ImageRecipe { std: [128.0, 64.0, 128.0], ..recipe() });
        assert_eq!([numbers[0][127], numbers[1][255], numbers[2][0]], [0.0, 2.0, -127.0 / 128.0]);
    }

    #[test]
    fn labels_are_those_of_the_classes() {
        let model = model();
        assert_eq!(model.info().labels.len(), 1000);
        assert_eq!((&*model.info().labels[243], &*model.info().labels[559]), ("bull mastiff", "folding chair"));
        let mut unique = model.info().labels.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 1000);
    }

    #[test]
    fn a_manifest_that_does_not_fit_the_network_is_refused() {
        let mut manifest = Manifest::builtin().into_iter().find(|manifest| manifest.image.is_some()).unwrap();
        manifest.image.as_mut().unwrap().crop = 260;
        let files = ModelFiles { manifest, folder: "/nowhere".into(), base: None };
        let error = ImageModel::load(&files, LIMITS, &Compute::default()).unwrap_err().to_string();
        assert!(error.contains("260") && error.contains("224"), "{error}");
    }
}
