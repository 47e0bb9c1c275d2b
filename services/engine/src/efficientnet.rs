//! EfficientNet-Lite: labels and features of an image.
//!
//! Feature maps are row-major with channels last, so that a pointwise convolution, which is nine tenths of the work, is
//! one matrix product. The depthwise convolutions are ours. Batch norms are folded into the weights of the layers
//! before them when the model is loaded. ReLU6 is applied where a layer's output is next read, not in a pass of its own.

use candle_core::{Device, Result, Storage, Tensor, bail};
use candle_nn::VarBuilder;

use self::depthwise::{Depthwise, Kernel, Padded, Size, Stride, relu6};
use crate::product::dense;

mod depthwise;
#[cfg(test)]
pub(crate) mod seeded;

/// Components of the pooled features.
pub(crate) const FEATURES: usize = 1280;
/// Logits.
pub(crate) const CLASSES: usize = 1000;

const STEM_CHANNELS: usize = 32;
const BATCH_NORM_EPSILON: f32 = 1e-3;

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
/// 2.3 points more of ImageNet right than the smallest, for about twice the work.
pub(crate) const LITE2: Scale = Scale { side: 260, width: 110, depth: 120 };

/// The network of one image. Loaded once, shared by all workers.
#[derive(Debug)]
pub(crate) struct EfficientNet {
    side: usize,
    stem: Stem,
    blocks: Vec<Block>,
    head: Pointwise,
    classifier: Pointwise,
}

/// Blocks of one shape in a row: the first may shrink the map, the others add to it.
struct Stage {
    blocks: usize,
    kernel: Kernel,
    stride: Stride,
    expansion: usize,
    channels: usize,
}

/// The stages of the smallest network.
const STAGES: [Stage; 7] = [
    Stage { blocks: 1, kernel: Kernel::Three, stride: Stride::One, expansion: 1, channels: 16 },
    Stage { blocks: 2, kernel: Kernel::Three, stride: Stride::Two, expansion: 6, channels: 24 },
    Stage { blocks: 2, kernel: Kernel::Five, stride: Stride::Two, expansion: 6, channels: 40 },
    Stage { blocks: 3, kernel: Kernel::Three, stride: Stride::Two, expansion: 6, channels: 80 },
    Stage { blocks: 3, kernel: Kernel::Five, stride: Stride::One, expansion: 6, channels: 112 },
    Stage { blocks: 4, kernel: Kernel::Five, stride: Stride::Two, expansion: 6, channels: 192 },
    Stage { blocks: 1, kernel: Kernel::Three, stride: Stride::One, expansion: 6, channels: 320 },
];

/// The first layer: a full 3 x 3 convolution, as a matrix product over copied patches.
#[derive(Debug)]
struct Stem(Pointwise);

/// An inverted bottleneck: widen, convolve each channel, narrow.
#[derive(Debug)]
struct Block {
    expand: Option<Pointwise>,
    depthwise: Depthwise,
    project: Pointwise,
    shortcut: Shortcut,
}

/// What is added to the output of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortcut {
    /// Its input: both have the same shape.
    Input,
    /// Nothing.
    None,
}

/// A convolution of 1 x 1: a matrix product of pixels by channels.
#[derive(Debug)]
struct Pointwise {
    /// (inputs, outputs)
    weight: Tensor,
    bias: Tensor,
}

/// A feature map: one row of `values` per pixel.
struct Map {
    size: Size,
    values: Tensor,
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

    /// The nearest multiple of 8, or the next one if that would take away more than a tenth.
    fn channels(self, channels: usize) -> usize {
        let scaled = channels * self.width; // hundredths
        let nearest = (scaled / 100 + 4) / 8 * 8;
        if nearest * 1000 < scaled * 9 { nearest + 8 } else { nearest }
    }
}

// === impl EfficientNet ===

impl EfficientNet {
    /// Takes the weights as the checkpoint names them.
    pub(crate) fn load(vars: &VarBuilder<'_>, scale: Scale) -> Result<Self> {
        let stem = Stem::load(vars)?;
        let mut blocks = Vec::new();
        let mut channels = STEM_CHANNELS;
        for stage in scale.stages() {
            for position in 0..stage.blocks {
                let stride = if position == 0 { stage.stride } else { Stride::One };
                let vars = vars.pp(format!("_blocks.{}", blocks.len()));
                blocks.push(Block::load(&vars, &stage, stride, channels)?);
                channels = stage.channels;
            }
        }
        let head = Pointwise::load(vars, "_conv_head", "_bn1", (channels, FEATURES))?;
        let classifier = Pointwise {
            weight: vars.get((CLASSES, FEATURES), "_fc.weight")?.t()?.contiguous()?,
            bias: vars.get(CLASSES, "_fc.bias")?,
        };
        Ok(Self { side: scale.side, stem, blocks, head, classifier })
    }

    /// The pooled features of an image: as many rows as pixels in one, normalised as the recipe says.
    pub(crate) fn features(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let mut scratch = Padded::default();
        let mut map = self.stem.forward(pixels, self.side)?;
        for block in &self.blocks {
            map = block.forward(&map, &mut scratch)?;
        }
        read(&self.head.forward(&map.values)?, mean_activated)
    }

    /// The logits of an image with these features.
    pub(crate) fn logits(&self, features: Vec<f32>) -> Result<Vec<f32>> {
        let features = Tensor::from_vec(features, (1, FEATURES), &Device::Cpu)?;
        self.classifier.forward(&features)?.flatten_all()?.to_vec1()
    }

    /// Memory that the weights take.
    pub(crate) fn parameter_bytes(&self) -> u64 {
        let blocks: usize = self.blocks.iter().map(Block::parameters).sum();
        let all = self.stem.0.parameters() + blocks + self.head.parameters() + self.classifier.parameters();
        (all * size_of::<f32>()) as u64
    }
}

// === impl Stem ===

impl Stem {
    const PATCH: usize = 3 * 3 * 3;

    fn load(vars: &VarBuilder<'_>) -> Result<Self> {
        let weight = vars.get((STEM_CHANNELS, 3, 3, 3), "_conv_stem.weight")?;
        // Rows of the matrix in the order in which a patch lies in memory: row, column, colour.
        let weight = weight.permute((2, 3, 1, 0))?.reshape((Self::PATCH, STEM_CHANNELS))?;
        Pointwise::fold(&weight, &vars.pp("_bn0")).map(Self)
    }

    /// Halves the image; "SAME" padding of an even side puts its one row and column of zeros at the end.
    fn forward(&self, pixels: &[f32], side: usize) -> Result<Map> {
        if pixels.len() != side * side * 3 {
            bail!("an image of {} values, not {side} x {side} x 3", pixels.len());
        }
        let size = Size { height: side / 2, width: side / 2 };
        let mut patches = vec![0.0; size.height * size.width * Self::PATCH];
        for (index, patch) in patches.chunks_exact_mut(Self::PATCH).enumerate() {
            let (y, x) = (index / size.width * 2, index % size.width * 2);
            for (row, line) in patch.chunks_exact_mut(9).enumerate().take(side - y) {
                let start = ((y + row) * side + x) * 3;
                let inside = (side - x).min(3) * 3;
                line[..inside].copy_from_slice(&pixels[start..start + inside]);
            }
        }
        let patches = Tensor::from_vec(patches, ((), Self::PATCH), &Device::Cpu)?;
        Ok(Map { size, values: self.0.forward(&patches)? })
    }
}

// === impl Block ===

impl Block {
    fn load(vars: &VarBuilder<'_>, stage: &Stage, stride: Stride, inputs: usize) -> Result<Self> {
        let wide = inputs * stage.expansion;
        let expand = match stage.expansion {
            1 => None,
            _ => Some(Pointwise::load(vars, "_expand_conv", "_bn0", (inputs, wide))?),
        };
        let norm = Norm::load(&vars.pp("_bn1"), wide)?;
        let side = stage.kernel.side();
        let weights = vars.get((wide, 1, side, side), "_depthwise_conv.weight")?;
        let weights = weights.permute((2, 3, 1, 0))?.reshape((side * side, wide))?.broadcast_mul(&norm.scale)?;
        let (weights, bias) = (weights.flatten_all()?.to_vec1::<f32>()?, norm.bias.to_vec1::<f32>()?);
        let Ok(depthwise) = Depthwise::new(stage.kernel, stride, &weights, &bias) else {
            bail!("a depthwise convolution of {wide} channels");
        };
        let project = Pointwise::load(vars, "_project_conv", "_bn2", (wide, stage.channels))?;
        let same = stride == Stride::One && inputs == stage.channels;
        let shortcut = if same { Shortcut::Input } else { Shortcut::None };
        Ok(Self { expand, depthwise, project, shortcut })
    }

    fn forward(&self, input: &Map, scratch: &mut Padded) -> Result<Map> {
        let size = self.depthwise.output_size(input.size);
        let convolve = |values: &[f32]| self.depthwise.forward(values, input.size, scratch);
        let wide = match &self.expand {
            Some(expand) => read(&expand.forward(&input.values)?, convolve)?,
            None => read(&input.values, convolve)?,
        };
        let wide = Tensor::from_vec(wide, (size.height * size.width, ()), &Device::Cpu)?;
        let values = self.project.forward(&wide)?;
        let values = match self.shortcut {
            Shortcut::Input => (values + &input.values)?,
            Shortcut::None => values,
        };
        Ok(Map { size, values })
    }

    fn parameters(&self) -> usize {
        self.expand.as_ref().map_or(0, Pointwise::parameters) + self.depthwise.parameters() + self.project.parameters()
    }
}

// === impl Pointwise ===

impl Pointwise {
    fn load(vars: &VarBuilder<'_>, layer: &str, norm: &str, (inputs, outputs): (usize, usize)) -> Result<Self> {
        let weight = vars.pp(layer).get((outputs, inputs, 1, 1), "weight")?;
        Self::fold(&weight.reshape((outputs, inputs))?.t()?, &vars.pp(norm))
    }

    /// A layer of `weight` (inputs, outputs) and the batch norm that follows it.
    fn fold(weight: &Tensor, norm: &VarBuilder<'_>) -> Result<Self> {
        let Norm { scale, bias } = Norm::load(norm, weight.dim(1)?)?;
        Ok(Self { weight: weight.broadcast_mul(&scale)?.contiguous()?, bias })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        dense(input, &self.weight, &self.bias)
    }

    fn parameters(&self) -> usize {
        self.weight.elem_count() + self.bias.elem_count()
    }
}

/// A batch norm at inference: a scale and a bias per channel.
struct Norm {
    scale: Tensor,
    bias: Tensor,
}

// === impl Norm ===

impl Norm {
    fn load(vars: &VarBuilder<'_>, channels: usize) -> Result<Self> {
        let get = |name| vars.get(channels, name);
        let deviation = (get("running_var")? + f64::from(BATCH_NORM_EPSILON))?.sqrt()?;
        let scale = (get("weight")? / deviation)?;
        let bias = (get("bias")? - (get("running_mean")? * &scale)?)?;
        Ok(Self { scale, bias })
    }
}

/// Lends the values of a contiguous tensor.
fn read<T>(tensor: &Tensor, reader: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("a tensor is not a contiguous one in the CPU's memory");
    };
    Ok(reader(&storage.as_slice::<f32>()?[start..end]))
}

/// ReLU6 of every pixel of the last feature map, and their mean.
fn mean_activated(map: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0; FEATURES];
    for pixel in map.chunks_exact(FEATURES) {
        sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += relu6(*value));
    }
    let pixels = (map.len() / FEATURES) as f32;
    sums.iter_mut().for_each(|sum| *sum /= pixels);
    sums
}

#[cfg(test)]
mod tests {
    use super::{seeded::Seeded, *};

    /// The convolution of a layer and its batch norm, as candle computes them.
    fn conv(
        x: &Tensor,
        vars: &VarBuilder<'_>,
        (layer, norm): (&str, &str),
        shape: [usize; 4],
        stride: usize,
    ) -> Tensor {
        let weight = vars.pp(layer).get(shape.to_vec(), "weight").unwrap();
        let groups = if shape[1] == 1 { shape[0] } else { 1 };
        let mut x = x.clone();
        for axis in [2, 3] {
            let length = x.dim(axis).unwrap();
            let total = (length.div_ceil(stride) * stride - stride + shape[2]).saturating_sub(length);
            x = x.pad_with_zeros(axis, total / 2, total - total / 2).unwrap();
        }
        let x = x.conv2d(&weight, 0, stride, 1, groups).unwrap();
        let get = |name| vars.pp(norm).get(shape[0], name).unwrap().reshape((1, shape[0], 1, 1)).unwrap();
        let deviation = (get("running_var") + f64::from(BATCH_NORM_EPSILON)).unwrap().sqrt().unwrap();
        let x = x.broadcast_sub(&get("running_mean")).unwrap().broadcast_div(&deviation).unwrap();
        x.broadcast_mul(&get("weight")).unwrap().broadcast_add(&get("bias")).unwrap()
    }

    fn relu6(x: &Tensor) -> Tensor {
        x.clamp(0.0_f32, 6.0_f32).unwrap()
    }

    /// The network layer by layer through candle: slow, and independent of everything above but the table.
    fn reference(vars: &VarBuilder<'_>, pixels: &[f32], scale: Scale) -> (Vec<f32>, Vec<f32>) {
        let side = scale.side;
        let x = Tensor::from_slice(pixels, (1, side, side, 3), &Device::Cpu).unwrap().permute((0, 3, 1, 2)).unwrap();
        let mut x = relu6(&conv(&x.contiguous().unwrap(), vars, ("_conv_stem", "_bn0"), [STEM_CHANNELS, 3, 3, 3], 2));
        let table = scale.stages();
        let stages = table.iter().flat_map(|stage| (0..stage.blocks).map(move |position| (stage, position)));
        for (block, (stage, position)) in stages.enumerate() {
            let vars = vars.pp(format!("_blocks.{block}"));
            let (inputs, outputs, side) = (x.dim(1).unwrap(), stage.channels, stage.kernel.side());
            let wide = inputs * stage.expansion;
            let stride = if position == 0 && stage.stride == Stride::Two { 2 } else { 1 };
            let mut y = x.clone();
            if stage.expansion > 1 {
                y = relu6(&conv(&y, &vars, ("_expand_conv", "_bn0"), [wide, inputs, 1, 1], 1));
            }
            y = relu6(&conv(&y, &vars, ("_depthwise_conv", "_bn1"), [wide, 1, side, side], stride));
            y = conv(&y, &vars, ("_project_conv", "_bn2"), [outputs, wide, 1, 1], 1);
            x = if position > 0 { (x + y).unwrap() } else { y };
        }
        let x = relu6(&conv(&x, vars, ("_conv_head", "_bn1"), [FEATURES, x.dim(1).unwrap(), 1, 1], 1));
        let features = x.mean((2, 3)).unwrap();
        let weight = vars.get((CLASSES, FEATURES), "_fc.weight").unwrap();
        let logits = features.matmul(&weight.t().unwrap()).unwrap();
        let logits = logits.broadcast_add(&vars.get(CLASSES, "_fc.bias").unwrap()).unwrap();
        (features.flatten_all().unwrap().to_vec1().unwrap(), logits.flatten_all().unwrap().to_vec1().unwrap())
    }

    fn assert_close(is: &[f32], must: &[f32]) {
        assert_eq!(is.len(), must.len());
        let scale = must.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let error = is.iter().zip(must).fold(0.0_f32, |most, (is, must)| most.max((is - must).abs()));
        assert!(scale > 0.1 && error < scale * 1e-5, "off by {error}, of {scale}");
    }

    fn equals_candles_convolutions(scale: Scale) {
        let vars = Seeded::builder();
        let network = EfficientNet::load(&vars, scale).unwrap();
        let pixels: Vec<f32> =
            (0..scale.side * scale.side * 3).map(|index| ((index * 7919 % 255) as f32 - 127.0) / 128.0).collect();
        let features = network.features(&pixels).unwrap();
        let logits = network.logits(features.clone()).unwrap();
        let (expected_features, expected_logits) = reference(&vars, &pixels, scale);
        assert_close(&features, &expected_features);
        assert_close(&logits, &expected_logits);
    }

    #[test]
    fn the_smallest_network_equals_candles_convolutions() {
        equals_candles_convolutions(LITE0);
    }

    /// Its maps have odd sides, where the padding of a stride of two has two sides.
    #[test]
    fn a_larger_network_equals_candles_convolutions() {
        equals_candles_convolutions(LITE2);
    }

    #[test]
    fn the_scales_are_those_of_the_publishers() {
        let shapes = |scale: Scale| scale.stages().map(|stage| (stage.blocks, stage.channels));
        assert_eq!(shapes(LITE0), [(1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)]);
        assert_eq!(shapes(LITE2), [(1, 16), (3, 24), (3, 48), (4, 88), (4, 120), (5, 208), (1, 352)]);
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let network = EfficientNet::load(&Seeded::builder(), LITE0).unwrap();
        assert!(network.features(&[0.0; 12]).is_err());
    }
}
