//! EfficientNet-Lite: labels and features of an image.
//!
//! Computed by the kernels, or through candle: see [`load`].

use std::fmt;

use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use kernels::{Cpu, Precision, Window};

use self::{
    folded::Layer,
    fused::{BlockLayers, Fused, Layers},
    stock::Stock,
};
use crate::compute::{ComputePath, Plan};

mod folded;
mod fused;
mod stock;

/// Components of the pooled features.
pub(crate) const FEATURES: usize = 1280;
/// Logits.
pub(crate) const CLASSES: usize = 1000;

const STEM_CHANNELS: usize = 32;
const BATCH_NORM_EPSILON: f32 = 1e-3;

/// The precisions that there are kernels for.
pub(crate) const KERNEL_PRECISIONS: &[Precision] = &[Precision::F32, Precision::Bf16];

/// What the bytes of red, green and blue stand for.
pub(crate) type Numbers = [[f32; 256]; 3];

/// The network of one image. Loaded once, shared by all workers.
pub(crate) trait Network: fmt::Debug + Send + Sync {
    /// The pooled features of an image: bytes by row, column, colour. Nothing once nobody wants them any more, which is
    /// asked between blocks.
    fn features(&self, image: &[u8], wanted: &dyn Fn() -> bool) -> Result<Option<Vec<f32>>>;

    /// The logits of an image with these features.
    fn logits(&self, features: &[f32]) -> Result<Vec<f32>>;

    /// Memory that the weights take.
    fn parameter_bytes(&self) -> u64;
}

/// How large a network of the family is. Its first and last layers are the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    /// Pixels of a side of the input; even.
    pub(crate) side: usize,
    /// Channels, as a percentage of the smallest network's, then rounded to a multiple of 8.
    width: usize,
    /// Blocks of a stage, as a percentage of the smallest network's, then rounded up.
    depth: usize,
}

/// The smallest.
pub(crate) const LITE0: Scale = Scale { side: 224, width: 100, depth: 100 };
/// The smallest with more layers, for larger images.
pub(crate) const LITE1: Scale = Scale { side: 240, width: 100, depth: 110 };
/// 2.3 points more of ImageNet right than the smallest, for about twice the work.
pub(crate) const LITE2: Scale = Scale { side: 260, width: 110, depth: 120 };

/// Blocks of one shape in a row: the first may shrink the map, the others add to it.
#[derive(Clone, Copy)]
struct Stage {
    blocks: usize,
    /// Of the depthwise convolution's window.
    side: usize,
    stride: usize,
    expansion: usize,
    channels: usize,
}

/// The stages of the smallest network.
const STAGES: [Stage; 7] = [
    Stage { blocks: 1, side: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { blocks: 2, side: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { blocks: 2, side: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { blocks: 3, side: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { blocks: 3, side: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { blocks: 4, side: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { blocks: 1, side: 3, stride: 1, expansion: 6, channels: 320 },
];

/// An inverted bottleneck: widen, convolve each channel, narrow.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Counted from 0.
    number: usize,
    window: Window,
    inputs: usize,
    /// Channels of the widened map.
    wide: usize,
    outputs: usize,
    /// Whether the output is added to the input: both have the same shape.
    adds: bool,
}

/// The network of a checkpoint, computed as the plan says.
pub(crate) fn load(vars: &VarBuilder<'_>, scale: Scale, numbers: &Numbers, plan: Plan) -> Result<Box<dyn Network>> {
    match plan.path {
        ComputePath::Candle => Ok(Box::new(Stock::load(vars, scale, numbers)?)),
        ComputePath::Kernels(tier) => {
            let Some(cpu) = Cpu::with(tier) else { bail!("this CPU has not the instructions of {tier}") };
            let layers = Layers::load(vars, scale)?;
            let network = Fused::new(&layers, scale.side, numbers, (cpu, plan.precision));
            Ok(Box::new(network.map_err(candle_core::Error::msg)?))
        }
    }
}

// === impl Scale ===

impl Scale {
    /// The stages of a network of this scale. The first and the last are not repeated, whatever the depth.
    fn stages(self) -> [Stage; 7] {
        let mut stages = STAGES;
        for stage in &mut stages {
            stage.channels = self.channels(stage.channels);
        }
        let [_, middle @ .., _] = &mut stages;
        for stage in middle {
            stage.blocks = (stage.blocks * self.depth).div_ceil(100);
        }
        stages
    }

    /// The blocks of a network of this scale, in their order.
    fn blocks(self) -> impl Iterator<Item = Shape> {
        let stages = self.stages().into_iter();
        let positions = stages.flat_map(|stage| (0..stage.blocks).map(move |position| (stage, position)));
        positions.scan((0, STEM_CHANNELS), |(number, inputs), (stage, position)| {
            let stride = if position == 0 { stage.stride } else { 1 };
            let shape = Shape {
                number: *number,
                window: Window { side: stage.side, stride },
                inputs: *inputs,
                wide: *inputs * stage.expansion,
                outputs: stage.channels,
                adds: stride == 1 && *inputs == stage.channels,
            };
            (*number, *inputs) = (*number + 1, stage.channels);
            Some(shape)
        })
    }

    /// Channels of the last block's output.
    fn last(self) -> usize {
        self.stages().last().map_or(STEM_CHANNELS, |stage| stage.channels)
    }

    /// The nearest multiple of 8, or the next one if that would take away more than a tenth.
    fn channels(self, channels: usize) -> usize {
        let scaled = channels * self.width; // hundredths
        let nearest = (scaled / 100 + 4) / 8 * 8;
        if nearest * 1000 < scaled * 9 { nearest + 8 } else { nearest }
    }
}

// === impl Shape ===

impl Shape {
    /// Whether the block widens its map, or takes it as it is.
    fn expands(&self) -> bool {
        self.wide != self.inputs
    }
}

// === impl Layers ===

impl Layers {
    /// Takes the weights as the checkpoint names them.
    fn load(vars: &VarBuilder<'_>, scale: Scale) -> Result<Self> {
        let blocks = scale.blocks().map(|shape| {
            let vars = vars.pp(format!("_blocks.{}", shape.number));
            let Shape { window, inputs, wide, outputs, .. } = shape;
            let expand = || Layer::convolution(&vars, ("_expand_conv", "_bn0"), (wide, inputs, 1, 1));
            let window = (wide, 1, window.side, window.side);
            let layers = BlockLayers {
                expand: shape.expands().then(expand).transpose()?,
                depthwise: Layer::convolution(&vars, ("_depthwise_conv", "_bn1"), window)?,
                project: Layer::convolution(&vars, ("_project_conv", "_bn2"), (outputs, wide, 1, 1))?,
            };
            Ok((shape, layers))
        });
        Ok(Self {
            stem: Layer::convolution(vars, ("_conv_stem", "_bn0"), (STEM_CHANNELS, 3, 3, 3))?,
            blocks: blocks.collect::<Result<_>>()?,
            head: Layer::convolution(vars, ("_conv_head", "_bn1"), (FEATURES, scale.last(), 1, 1))?,
            classifier: Layer::dense(&vars.pp("_fc"), (CLASSES, FEATURES))?,
        })
    }
}

// === impl Fused ===

impl Network for Fused {
    fn features(&self, image: &[u8], wanted: &dyn Fn() -> bool) -> Result<Option<Vec<f32>>> {
        if image.len() != self.image_bytes() {
            bail!("an image of {} bytes, not {}", image.len(), self.image_bytes());
        }
        Ok(Fused::features(self, image, wanted))
    }

    fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        if features.len() != FEATURES {
            bail!("{} features, not {FEATURES}", features.len());
        }
        Ok(Fused::logits(self, features))
    }

    fn parameter_bytes(&self) -> u64 {
        self.bytes()
    }
}

#[cfg(test)]
mod tests;
