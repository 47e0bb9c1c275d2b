//! int8 weights of an ONNX export, back to f32 safetensors under the names of the original checkpoint.
//!
//! Dynamic quantisation (onnxruntime's `quantize_dynamic`) leaves the graph as it was, but for its products: a weight
//! `W` [in, out] became `W_quantized` with one scale and zero point per column, and the embedding tables became u8 with
//! one scale and zero point each. The exporter dropped the names of the dense layers' weights, but not those of their
//! biases: the product's result is cast, scaled, and then added to a bias, and that names the layer. Activations were
//! quantised only while running, so that nothing of them is in the file.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use prost::Message;
use safetensors::{Dtype, tensor::TensorView};

use self::{
    graph::{Graph, Model, Node},
    tensor::Matrix,
};
use crate::Error;

mod graph;
mod tensor;

/// Between a product and its bias stand a cast and a scaling.
const STEPS_TO_BIAS: usize = 3;

/// What the quantiser appends to the name of a weight.
const QUANTIZED: &str = "_quantized";
const SCALE: &str = "_scale";
const ZERO: &str = "_zero_point";

/// Under this name a checkpoint has the layer behind the encoder.
const CLASSIFIER: &str = "classifier";

/// An f32 tensor.
#[derive(Debug, PartialEq)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Reads the ONNX file `input` and writes its weights to `output`.
pub(super) fn convert(input: &Path, output: &Path) -> Result<(), Error> {
    let bytes = fs::read(input).map_err(Error::io(input))?;
    let refuse = |why: String| Error::load(input.display(), why);
    let model = Model::decode(bytes.as_slice()).map_err(|error| refuse(error.to_string()))?;
    let graph = model.graph.ok_or_else(|| refuse("there is no graph in it".to_owned()))?;
    let tensors = dequantise(&graph).map_err(refuse)?;
    let bytes: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name, little_endian(&tensor.values))).collect();
    let views = tensors.iter().zip(bytes.values()).map(|((name, tensor), bytes)| {
        TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map(|view| (name, view))
    });
    views
        .collect::<Result<Vec<_>, _>>()
        .and_then(|views| safetensors::serialize_to_file(views, None, output))
        .map_err(|error| Error::load(output.display(), error))
}

/// All weights of the graph, by their names in a checkpoint.
fn dequantise(graph: &Graph) -> Result<BTreeMap<String, Tensor>, String> {
    let source = Source::new(graph);
    let prefix = source.prefix()?;
    let mut tensors = BTreeMap::new();
    let mut heads = Vec::new();
    for tensor in &graph.initializer {
        // What is quantised comes below; what is no weight (shapes, axes) is not f32, or belongs to no module.
        if let Some(name) = tensor.name.strip_prefix(&prefix)
            && tensor.is_f32()
            && is_encoders(name)
            && ![QUANTIZED, SCALE, ZERO].iter().any(|suffix| name.ends_with(suffix))
        {
            tensors.insert(name.to_owned(), Tensor { shape: tensor.shape()?, values: tensor.floats()? });
        }
    }
    for table in source.tables() {
        let values = source.quantised(table)?;
        let name = table.strip_prefix(&prefix).unwrap_or(table).to_owned();
        tensors.insert(name, Tensor { shape: vec![values.rows, values.columns], values: values.dequantised()? });
    }
    for node in graph.node.iter().filter(|node| node.op_type == "MatMulInteger") {
        let weight = node.input.get(1).and_then(|name| name.strip_suffix(QUANTIZED));
        let weight = weight.ok_or_else(|| format!("the product {:?} has no quantised weight", node.name))?;
        let bias = source.bias(node)?;
        let values = source.quantised(weight)?;
        // ONNX multiplies by [in, out], checkpoints hold [out, in].
        let tensor = Tensor { shape: vec![values.columns, values.rows], values: values.transposed()? };
        let layer = bias.strip_suffix(".bias").ok_or_else(|| format!("{bias:?} is not the name of a bias"))?;
        let layer = layer.strip_prefix(&prefix).unwrap_or(layer);
        if is_encoders(layer) {
            tensors.insert(format!("{layer}.weight"), tensor);
        } else {
            heads.push((tensor, source.floats(bias)?));
        }
    }
    join_heads(heads, &mut tensors)?;
    Ok(tensors)
}

/// Whether a name, without its prefix, is one of BERT's.
fn is_encoders(name: &str) -> bool {
    ["embeddings.", "encoder.", "pooler."].iter().any(|module| name.starts_with(module))
}

/// Heads of one output each, or one head of several, become the rows of one layer in the order of the graph, which is
/// the order of the logits.
fn join_heads(heads: Vec<(Tensor, Vec<f32>)>, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), String> {
    let Some((first, _)) = heads.first() else { return Ok(()) };
    let width = first.shape[1];
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for (head, head_bias) in heads {
        if head.shape[1] != width || head.shape[0] != head_bias.len() {
            return Err(format!("a head of shape {:?} does not stand beside one of width {width}", head.shape));
        }
        weight.extend(head.values);
        bias.extend(head_bias);
    }
    let rows = bias.len();
    tensors.insert(format!("{CLASSIFIER}.weight"), Tensor { shape: vec![rows, width], values: weight });
    tensors.insert(format!("{CLASSIFIER}.bias"), Tensor { shape: vec![rows], values: bias });
    Ok(())
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The graph, with its tensors and nodes by name.
struct Source<'a> {
    tensors: HashMap<&'a str, &'a graph::Tensor>,
    consumers: HashMap<&'a str, &'a Node>,
    nodes: &'a [Node],
}

impl<'a> Source<'a> {
    fn new(graph: &'a Graph) -> Self {
        let tensors = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let inputs = |node: &'a Node| node.input.iter().map(move |input| (input.as_str(), node));
        Self { tensors, consumers: graph.node.iter().flat_map(inputs).collect(), nodes: &graph.node }
    }

    /// What stands before `embeddings.` in all names: the attribute under which the exported module held its encoder.
    fn prefix(&self) -> Result<String, String> {
        let names =
            self.tensors.keys().find_map(|name| name.strip_suffix("embeddings.word_embeddings.weight_quantized"));
        names.map(str::to_owned).ok_or_else(|| "it has no quantised word embeddings: not such a BERT".to_owned())
    }

    /// Names of the tables that are looked up and then dequantised.
    fn tables(&self) -> impl Iterator<Item = &'a str> {
        let nodes = self.nodes.iter().filter(|node| node.op_type == "Gather");
        nodes.filter_map(|node| node.input.first()?.strip_suffix(QUANTIZED))
    }

    fn quantised(&self, name: &str) -> Result<Matrix<'a>, String> {
        Matrix::new(
            self.tensor(&format!("{name}{QUANTIZED}"))?,
            self.tensor(&format!("{name}{SCALE}"))?,
            self.tensor(&format!("{name}{ZERO}"))?,
        )
    }

    /// Name of the bias that is added to a product.
    fn bias(&self, product: &Node) -> Result<&'a str, String> {
        let lost = || format!("no bias follows the product {:?}", product.name);
        let mut output = product.output.first().ok_or_else(lost)?.as_str();
        for _ in 0..STEPS_TO_BIAS {
            let next = self.consumers.get(output).ok_or_else(lost)?;
            if next.op_type == "Add" {
                let bias = next.input.iter().find(|input| self.tensors.contains_key(input.as_str()));
                return bias.map(String::as_str).ok_or_else(lost);
            }
            output = next.output.first().ok_or_else(lost)?;
        }
        Err(lost())
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, String> {
        self.tensor(name)?.floats()
    }

    fn tensor(&self, name: &str) -> Result<&'a graph::Tensor, String> {
        self.tensors.get(name).copied().ok_or_else(|| format!("there is no tensor {name:?}"))
    }
}

#[cfg(test)]
mod tests;
