//! The network in the kernels of crate `kernels`.
//!
//! Feature maps are pixels of channels, so that a pointwise convolution, which is nine tenths of the work, is a product
//! of pixels by packed weights. A block widens some lines of its map, convolves each channel, and narrows them again,
//! strip by strip: see [`kernels::Ring`]. One thread computes an image: other cores have images of their own.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use kernels::{Cpu, Depthwise, Epilogue, Precision, Reserve, Size, Stem, Weights, average, multiply, round};

use self::arena::{Arena, Room};
use super::{CLASSES, FEATURES, Numbers, STEM_CHANNELS, Shape, folded::Layer};

mod arena;

/// Bytes of widened and convolved lines that are kept at a time: with the weights that stream by they stay in a
/// second-level cache of 1 MB.
const STRIP_BYTES: usize = 448 << 10;

/// The layers of a checkpoint.
pub(super) struct Layers {
    pub(super) stem: Layer,
    pub(super) blocks: Vec<(Shape, BlockLayers)>,
    pub(super) head: Layer,
    pub(super) classifier: Layer,
}

/// The layers of one block.
pub(super) struct BlockLayers {
    /// None: the block takes its map as it is, which the stem has made.
    pub(super) expand: Option<Layer>,
    pub(super) depthwise: Layer,
    pub(super) project: Layer,
}

/// The network of one image. Loaded once, shared by all workers.
pub(super) struct Fused {
    cpu: Cpu,
    precision: Precision,
    image: Size,
    blocks: Vec<Block>,
    head: Weights,
    classifier: Weights,
    room: Room,
    bytes: u64,
    /// As many as images have been computed at once.
    arenas: Mutex<Vec<Arena>>,
}

/// An inverted bottleneck: widen, convolve each channel, narrow.
struct Block {
    widen: Widen,
    convolve: Depthwise,
    narrow: Weights,
    /// Whether the output is added to the input, which has the same shape.
    adds: bool,
    /// Size of the widened map.
    size: Size,
    /// Lines of output that are computed at a time.
    strip: usize,
}

/// What makes the wide map.
enum Widen {
    /// The stem, of the image.
    Image(Stem),
    /// A product, of the map.
    Map(Weights),
}

// === impl Fused ===

impl Fused {
    /// Packs the layers of a network for images of `side` by `side` pixels.
    pub(super) fn new(
        layers: &Layers,
        side: usize,
        numbers: &Numbers,
        (cpu, precision): (Cpu, Precision),
    ) -> Result<Self, &'static str> {
        let bytes = bytes(layers, cpu, precision);
        let mut reserve = Reserve::new(bytes);
        let image = Size { height: side, width: side };
        let mut size = Stem::output(image);
        let mut blocks = Vec::new();
        for (shape, layers_of_block) in &layers.blocks {
            let widen = match (&layers_of_block.expand, blocks.is_empty()) {
                (Some(expand), false) => Widen::Map(Weights::pack(cpu, precision, expand.as_dense(), &mut reserve)),
                (None, true) => {
                    Widen::Image(Stem::pack((cpu, precision), layers.stem.as_dense(), numbers, &mut reserve))
                }
                _ => return Err("the first block, and no other, takes its map as it is"),
            };
            let block = Block {
                widen,
                convolve: Depthwise::pack(cpu, shape.window, layers_of_block.depthwise.as_dense(), &mut reserve),
                narrow: Weights::pack(cpu, precision, layers_of_block.project.as_dense(), &mut reserve),
                adds: shape.adds,
                size,
                strip: strip(shape, size, precision),
            };
            size = block.output();
            blocks.push(block);
        }
        let head = Weights::pack(cpu, precision, layers.head.as_dense(), &mut reserve);
        let classifier = Weights::pack(cpu, precision, layers.classifier.as_dense(), &mut reserve);
        let room = Room::new(image, &blocks);
        Ok(Self {
            cpu,
            precision,
            image,
            blocks,
            head,
            classifier,
            room,
            bytes: bytes as u64,
            arenas: Mutex::default(),
        })
    }

    /// Bytes of an image: rows of pixels of three.
    pub(super) fn image_bytes(&self) -> usize {
        self.image.pixels() * 3
    }

    /// Memory that the weights take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pooled features of an image of [`Self::image_bytes`]; nothing if nobody wants them any more.
    pub(super) fn features(&self, image: &[u8], wanted: &dyn Fn() -> bool) -> Option<Vec<f32>> {
        self.with_arena(|arena| {
            for block in &self.blocks {
                if !wanted() {
                    return None;
                }
                block.forward((image, self.image), arena);
            }
            let pixels = arena.map.rows();
            arena.next.reshape(pixels, FEATURES);
            multiply(&arena.map, 0..pixels, &self.head, Epilogue::Relu6, (&mut arena.next, 0));
            let mut features = vec![0.0; FEATURES];
            average(self.cpu, &arena.next, 0..pixels, &mut features);
            Some(features)
        })
    }

    /// The logits of an image with these features.
    pub(super) fn logits(&self, features: &[f32]) -> Vec<f32> {
        self.with_arena(|arena| {
            arena.features.row_mut(0).copy_from_slice(features);
            let input = match &mut arena.rounded {
                Some(rounded) => {
                    round(self.cpu, &arena.features, 0..1, (rounded, 0));
                    rounded
                }
                None => &arena.features,
            };
            multiply(input, 0..1, &self.classifier, Epilogue::Store, (&mut arena.logits, 0));
            arena.logits.row(0).to_vec()
        })
    }

    /// Lends an arena, which is another image's afterwards.
    fn with_arena<T>(&self, compute: impl FnOnce(&mut Arena) -> T) -> T {
        let used = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut arena = used.unwrap_or_else(|| Arena::new(&self.room, self.precision));
        let computed = compute(&mut arena);
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
        computed
    }
}

impl fmt::Debug for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fused")
            .field("tier", &self.cpu.tier())
            .field("precision", &self.precision)
            .finish_non_exhaustive()
    }
}

// === impl Block ===

impl Block {
    /// Makes of the arena's map, or of the image, the next map.
    fn forward(&self, (image, image_size): (&[u8], Size), arena: &mut Arena) {
        let Arena { map, next, ring, convolved, patches, .. } = arena;
        let (size, out) = (self.size, self.output());
        ring.begin(&self.convolve, size, self.strip);
        convolved.reshape(self.strip * out.width, self.convolve.channels());
        if !self.adds {
            next.reshape(out.pixels(), self.narrow.outputs());
        }
        for first in (0..out.height).step_by(self.strip) {
            let lines = first..(first + self.strip).min(out.height);
            let come = ring.come();
            let more = ring.wanted(lines.end) - come;
            match &self.widen {
                Widen::Image(stem) => {
                    let rows = stem.gather(image, image_size, come..come + more, patches);
                    ring.widen((rows, 0), stem.weights(), more);
                }
                Widen::Map(weights) => ring.widen((map, come * size.width), weights, more),
            }
            self.convolve.convolve(ring, lines.clone(), convolved);
            // What is added to stands where the output goes: those lines have been widened, and are not read again.
            let (epilogue, to) = if self.adds { (Epilogue::Add, &mut *map) } else { (Epilogue::Store, &mut *next) };
            multiply(convolved, 0..lines.len() * out.width, &self.narrow, epilogue, (to, first * out.width));
        }
        if !self.adds {
            std::mem::swap(map, next);
        }
    }

    fn output(&self) -> Size {
        let window = self.convolve.window();
        Size { height: window.places(self.size.height), width: window.places(self.size.width) }
    }
}

/// Lines of output to compute at a time: as many as fit, in strips of the same height. A map that is smaller than its
/// weights is taken as a whole, so that they are read once.
fn strip(shape: &Shape, size: Size, precision: Precision) -> usize {
    let height = shape.window.places(size.height);
    // The ring is f32 in any precision.
    let (wide, value) = (size_of::<f32>(), size_of::<f32>() / precision.values_per_word());
    if size.pixels() * wide <= (shape.inputs + shape.outputs) * value {
        return height;
    }
    // What a line of output needs: the lines of the wide map by which the window moves on, and its own.
    let line = shape.wide * (shape.window.stride * size.width * wide + shape.window.places(size.width) * value);
    let most = (STRIP_BYTES / line).max(1);
    height.div_ceil(height.div_ceil(most))
}

/// What the weights take of a reserve.
fn bytes(layers: &Layers, cpu: Cpu, precision: Precision) -> usize {
    let product = |outputs, inputs| Weights::bytes(cpu, precision, outputs, inputs);
    let mut last = STEM_CHANNELS;
    let mut bytes = Stem::bytes(cpu, precision, STEM_CHANNELS);
    for (shape, _) in &layers.blocks {
        let &Shape { window, inputs, wide, outputs, .. } = shape;
        bytes += if shape.expands() { product(wide, inputs) } else { 0 };
        bytes += Depthwise::bytes(window, wide) + product(outputs, wide);
        last = outputs;
    }
    bytes + product(FEATURES, last) + product(CLASSES, FEATURES)
}
