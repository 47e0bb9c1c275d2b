use std::collections::HashMap;

use super::{
    graph::{Graph, Model, Node, Tensor as Wire},
    tensor::{FLOAT, INT8, UINT8},
    *,
};

fn floats(name: &str, dims: &[i64], values: &[f32]) -> Wire {
    let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Wire { name: name.to_owned(), dims: dims.to_vec(), data_type: FLOAT, raw_data, ..Wire::default() }
}

/// A quantised tensor with its scales and zero points, the latter in lists as onnxruntime writes them.
fn quantised(name: &str, dims: &[i64], data_type: i32, values: &[i32], scales: &[(f32, i32)]) -> [Wire; 3] {
    let raw_data = values.iter().map(|value| *value as u8).collect();
    let sides = if scales.len() == 1 { vec![] } else { vec![scales.len() as i64] };
    let float_data = scales.iter().map(|(scale, _)| *scale).collect();
    let int32_data = scales.iter().map(|(_, zero)| *zero).collect();
    [
        Wire { name: format!("{name}_quantized"), dims: dims.to_vec(), data_type, raw_data, ..Wire::default() },
        Wire { name: format!("{name}_scale"), dims: sides.clone(), data_type: FLOAT, float_data, ..Wire::default() },
        Wire { name: format!("{name}_zero_point"), dims: sides, data_type, int32_data, ..Wire::default() },
    ]
}

fn node(op_type: &str, inputs: &[&str], output: &str) -> Node {
    let input = inputs.iter().map(|input| (*input).to_owned()).collect();
    Node { input, output: vec![output.to_owned()], name: format!("/{output}"), op_type: op_type.to_owned() }
}

/// A dense layer as the quantiser leaves it: product, cast, scaling, bias.
fn dense(weight: &str, bias: &str) -> [Node; 4] {
    let step = |name: &str| format!("{bias}/{name}");
    let quantised = format!("{weight}_quantized");
    [
        node("MatMulInteger", &["x", &quantised, "x_zero", "w_zero"], &step("product")),
        node("Cast", &[&step("product")], &step("cast")),
        node("Mul", &[&step("cast"), "scales"], &step("scaled")),
        node("Add", &[bias, &step("scaled")], &step("added")),
    ]
}

fn tiny() -> Model {
    let words = quantised(
        "net.embeddings.word_embeddings.weight",
        &[3, 2],
        UINT8,
        &[0, 128, 255, 100, 128, 129],
        &[(0.5, 128)],
    );
    let query = quantised("onnx::MatMul_7", &[2, 3], INT8, &[1, -2, 3, 4, 5, -128], &[(1.0, 0), (0.5, -1), (2.0, 1)]);
    let main = quantised("main.weight", &[2, 1], INT8, &[10, -10], &[(0.1, 0)]);
    let aux = quantised("aux.weight", &[2, 1], INT8, &[1, 2], &[(1.0, 1)]);
    let plain = [
        floats("net.embeddings.LayerNorm.weight", &[2], &[1.0, 2.0]),
        floats("net.encoder.layer.0.attention.self.query.bias", &[3], &[0.1, 0.2, 0.3]),
        floats("main.bias", &[1], &[7.0]),
        floats("aux.bias", &[1], &[8.0]),
        floats("constant_of_the_graph", &[1], &[0.0]),
    ];
    let gather = node("Gather", &["net.embeddings.word_embeddings.weight_quantized", "input_ids"], "rows");
    let nodes = std::iter::once(gather)
        .chain(dense("onnx::MatMul_7", "net.encoder.layer.0.attention.self.query.bias"))
        .chain(dense("main.weight", "main.bias"))
        .chain(dense("aux.weight", "aux.bias"));
    let tensors = words.into_iter().chain(query).chain(main).chain(aux).chain(plain);
    Model { graph: Some(Graph { node: nodes.collect(), initializer: tensors.collect() }) }
}

#[test]
fn weights_come_back_under_the_names_of_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("m.onnx"), folder.path().join("m.safetensors"));
    fs::write(&input, tiny().encode_to_vec()).unwrap();
    convert(&input, &output).unwrap();
    let tensors = candle_core::safetensors::load(&output, &candle_core::Device::Cpu).unwrap();
    let tensors: HashMap<_, _> = tensors
        .iter()
        .map(|(name, tensor)| {
            (name.as_str(), (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
        })
        .collect();
    let expected = HashMap::from([
        // (q - 128) x 0.5, and transposed nowhere: a table.
        ("embeddings.word_embeddings.weight", (vec![3, 2], vec![-64.0, 0.0, 63.5, -14.0, 0.0, 0.5])),
        ("embeddings.LayerNorm.weight", (vec![2], vec![1.0, 2.0])),
        // Columns become rows: (1, 4) x 1, ((-2, 5) + 1) x 0.5, ((3, -128) - 1) x 2.
        ("encoder.layer.0.attention.self.query.weight", (vec![3, 2], vec![1.0, 4.0, -0.5, 3.0, 4.0, -258.0])),
        ("encoder.layer.0.attention.self.query.bias", (vec![3], vec![0.1, 0.2, 0.3])),
        ("classifier.weight", (vec![2, 2], vec![1.0, -1.0, 0.0, 1.0])),
        ("classifier.bias", (vec![2], vec![7.0, 8.0])),
    ]);
    assert_eq!(tensors, expected);
}

/// Spoils the model and expects a refusal that says so.
#[track_caller]
fn refuses(spoil: impl FnOnce(&mut Graph), complaint: &str) {
    let mut graph = tiny().graph.unwrap();
    spoil(&mut graph);
    let error = dequantise(&graph).expect_err("must be refused");
    assert!(error.contains(complaint), "{error:?} does not say {complaint:?}");
}

#[test]
fn a_damaged_graph_is_refused_and_never_a_panic() {
    refuses(|graph| graph.initializer.clear(), "no quantised word embeddings");
    refuses(|graph| graph.initializer[0].dims = vec![3, 3], "values for the shape");
    refuses(|graph| graph.initializer[0].dims = vec![-3, 2], "has a side of -3");
    refuses(|graph| graph.initializer[0].dims = vec![i64::MAX, 2], "values for the shape");
    refuses(|graph| graph.initializer[0].data_type = FLOAT, "not int8 or uint8");
    refuses(|graph| graph.initializer.retain(|tensor| tensor.name != "onnx::MatMul_7_scale"), "no tensor");
    refuses(|graph| graph.node.retain(|node| node.op_type != "Add"), "no bias follows");
    refuses(|graph| graph.node[1].input.truncate(1), "no quantised weight");
    refuses(|graph| graph.initializer[4].float_data = vec![1.0], "values for the shape");
}

#[test]
fn bytes_that_are_no_protobuf_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.onnx");
    for bytes in [&b"not an onnx file"[..], b"", &tiny().encode_to_vec()[..200]] {
        fs::write(&input, bytes).unwrap();
        assert!(convert(&input, &folder.path().join("out")).is_err());
    }
}
