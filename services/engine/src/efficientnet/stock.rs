//! The network in candle's own operations, layer by layer and without folding: slow, and the reference of the kernels.

use candle_core::{Device, Module, ModuleT, Result, Tensor};
use candle_nn::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Linear, VarBuilder, batch_norm, conv2d_no_bias};

use super::{BATCH_NORM_EPSILON, CLASSES, FEATURES, Network, Numbers, STEM_CHANNELS, Scale, Shape};

/// The network of one image.
#[derive(Debug)]
pub(super) struct Stock {
    device: Device,
    side: usize,
    numbers: Box<Numbers>,
    stem: Layer,
    blocks: Vec<Block>,
    head: Layer,
    classifier: Linear,
    parameters: usize,
}

/// A convolution and its norm.
#[derive(Debug)]
struct Layer {
    convolution: Conv2d,
    norm: BatchNorm,
}

#[derive(Debug)]
struct Block {
    expand: Option<Layer>,
    depthwise: Layer,
    project: Layer,
    adds: bool,
}

// === impl Stock ===

impl Stock {
    /// Takes the weights as the checkpoint names them, and computes where they are.
    pub(super) fn load(vars: &VarBuilder<'_>, scale: Scale, numbers: &Numbers) -> Result<Self> {
        let stem = Layer::load(vars, ("_conv_stem", "_bn0"), [STEM_CHANNELS, 3, 3], 2)?;
        let blocks = scale.blocks().map(|shape| Block::load(&vars.pp(format!("_blocks.{}", shape.number)), &shape));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let head = Layer::load(vars, ("_conv_head", "_bn1"), [FEATURES, scale.last(), 1], 1)?;
        let (weight, bias) = (vars.get((CLASSES, FEATURES), "_fc.weight")?, vars.get(CLASSES, "_fc.bias")?);
        let layers = blocks.iter().flat_map(|block| block.expand.iter().chain([&block.depthwise, &block.project]));
        let layers = layers.chain([&stem, &head]).map(Layer::parameters).sum::<usize>();
        let parameters = layers + weight.elem_count() + bias.elem_count();
        let classifier = Linear::new(weight, Some(bias));
        let (device, numbers) = (vars.device().clone(), Box::new(*numbers));
        Ok(Self { device, side: scale.side, numbers, stem, blocks, head, classifier, parameters })
    }
}

impl Network for Stock {
    fn features(&self, image: &[u8], wanted: &dyn Fn() -> bool) -> Result<Option<Vec<f32>>> {
        let pixels = image.as_chunks().0.iter();
        let numbers = pixels.flat_map(|pixel: &[u8; 3]| {
            std::array::from_fn::<_, 3, _>(|colour| self.numbers[colour][usize::from(pixel[colour])])
        });
        let x = Tensor::from_vec(numbers.collect(), (1, self.side, self.side, 3), &self.device)?;
        let mut x = relu6(&self.stem.forward(&x.permute((0, 3, 1, 2))?.contiguous()?)?)?;
        for block in &self.blocks {
            if !wanted() {
                return Ok(None);
            }
            x = block.forward(&x)?;
        }
        relu6(&self.head.forward(&x)?)?.mean((2, 3))?.flatten_all()?.to_vec1().map(Some)
    }

    fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        self.classifier.forward(&Tensor::from_slice(features, (1, FEATURES), &self.device)?)?.flatten_all()?.to_vec1()
    }

    fn parameter_bytes(&self) -> u64 {
        (self.parameters * size_of::<f32>()) as u64
    }
}

// === impl Block ===

impl Block {
    fn load(vars: &VarBuilder<'_>, shape: &Shape) -> Result<Self> {
        let &Shape { window, inputs, wide, outputs, .. } = shape;
        let expand = || Layer::load(vars, ("_expand_conv", "_bn0"), [wide, inputs, 1], 1);
        Ok(Self {
            expand: shape.expands().then(expand).transpose()?,
            depthwise: Layer::load(vars, ("_depthwise_conv", "_bn1"), [wide, 1, window.side], window.stride)?,
            project: Layer::load(vars, ("_project_conv", "_bn2"), [outputs, wide, 1], 1)?,
            adds: shape.adds,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = match &self.expand {
            Some(expand) => relu6(&expand.forward(x)?)?,
            None => x.clone(),
        };
        let narrow = self.project.forward(&relu6(&self.depthwise.forward(&wide)?)?)?;
        if self.adds { narrow + x } else { Ok(narrow) }
    }
}

// === impl Layer ===

impl Layer {
    /// Of one input per output, every channel has a window of its own.
    fn load(
        vars: &VarBuilder<'_>,
        (layer, norm): (&str, &str),
        [outputs, inputs, side]: [usize; 3],
        stride: usize,
    ) -> Result<Self> {
        let groups = if inputs == 1 { outputs } else { 1 };
        let config = Conv2dConfig { stride, groups, ..Default::default() };
        let convolution = conv2d_no_bias(inputs * groups, outputs, side, config, vars.pp(layer))?;
        let config = BatchNormConfig { eps: f64::from(BATCH_NORM_EPSILON), ..Default::default() };
        Ok(Self { convolution, norm: batch_norm(outputs, config, vars.pp(norm))? })
    }

    /// With zeros around the map as TensorFlow's "SAME" wants them: the odd one goes to the end.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, side) = (self.convolution.config().stride, self.convolution.weight().dim(2)?);
        let mut x = x.clone();
        for axis in [2, 3] {
            let length = x.dim(axis)?;
            let total = (length.div_ceil(stride) * stride - stride + side).saturating_sub(length);
            x = x.pad_with_zeros(axis, total / 2, total - total / 2)?;
        }
        self.norm.forward_t(&self.convolution.forward(&x)?, false)
    }

    fn parameters(&self) -> usize {
        // A norm has a mean, a variance, a scale and a shift per channel.
        self.convolution.weight().elem_count() + 4 * self.norm.running_mean().elem_count()
    }
}

fn relu6(x: &Tensor) -> Result<Tensor> {
    x.clamp(0.0_f32, 6.0_f32)
}
