"""ONNX graphs of the models that Tamis serves, from the very weights that it serves.

They are written as an exporter writes them, without fused operators: what a runtime can fuse is its own business, and
fusing ahead of it made onnxruntime slower, not faster.
"""

import json
import math
import os

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open

OPSET = 17
BATCH_NORM_EPSILON = 1e-3


class Graph:
    """Collects nodes and weights; every method that adds an operator returns the name of its result."""

    def __init__(self):
        self.nodes, self.weights, self.count = [], [], 0

    def weight(self, value, kind=numpy.float32):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(numpy.ascontiguousarray(value, dtype=kind), name))
        return name

    def integers(self, *values):
        return self.weight(numpy.array(values), numpy.int64)

    def add(self, operator, *inputs, **attributes):
        self.count += 1
        name = attributes.pop("output", f"t{self.count}")
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def save(self, path, inputs, outputs):
        graph = helper.make_graph(self.nodes, "model", inputs, outputs, self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.checker.check_model(model)
        onnx.save_model(model, path)


def read_weights(folder):
    tensors = {}
    with safe_open(os.path.join(folder, "model.safetensors"), "numpy") as file:
        for name in file.keys():
            tensors[name.removeprefix("bert.")] = file.get_tensor(name)
    return tensors


# Encoders of texts.


def save_encoder(folder, pooling, path):
    """An encoder of the BERT family: ids and mask of padded texts to one vector each."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"only encoders of the type bert with gelu are exported, not {config.get('model_type')}")
    encoder = Encoder(config, read_weights(folder))
    hidden = encoder.layers(encoder.embed())
    encoder.pool(hidden, pooling)
    width = config["hidden_size"]
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in ("ids", "mask")]
    vectors = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", width])]
    encoder.graph.save(path, ids, vectors)


class Encoder:
    def __init__(self, config, weights):
        self.config, self.weights, self.graph = config, weights, Graph()
        self.heads = config["num_attention_heads"]
        self.head_width = config["hidden_size"] // self.heads

    def dense(self, x, name):
        g = self.graph
        product = g.add("MatMul", x, g.weight(self.weights[f"{name}.weight"].T))
        return g.add("Add", product, g.weight(self.weights[f"{name}.bias"]))

    def norm(self, x, name):
        g, weights = self.graph, self.weights
        scale, bias = g.weight(weights[f"{name}.weight"]), g.weight(weights[f"{name}.bias"])
        return g.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.config["layer_norm_eps"])

    def embed(self):
        g, weights = self.graph, self.weights
        words = g.add("Gather", g.weight(weights["embeddings.word_embeddings.weight"]), "ids")
        # Every token is of the first type, whose vector an exporter's constant folding would add here too.
        positions = weights["embeddings.position_embeddings.weight"]
        positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
        length = g.add("Gather", g.add("Shape", "ids"), g.integers(1), axis=0)
        here = g.add("Slice", g.weight(positions), g.integers(0), length, g.integers(0))
        return self.norm(g.add("Add", words, here), "embeddings.LayerNorm")

    def layers(self, x):
        g = self.graph
        one = g.weight(1.0)
        mask = g.add("Cast", g.add("Unsqueeze", "mask", g.integers(1, 2)), to=TensorProto.FLOAT)
        hide = g.add("Mul", g.add("Sub", one, mask), g.weight(-1e4))
        for index in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{index}"
            seen = self.attention(x, hide, f"{name}.attention")
            x = self.norm(g.add("Add", seen, x), f"{name}.attention.output.LayerNorm")
            wide = self.gelu(self.dense(x, f"{name}.intermediate.dense"))
            x = self.norm(g.add("Add", self.dense(wide, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")
        return x

    def attention(self, x, hide, name):
        g = self.graph
        apart = g.integers(0, 0, self.heads, self.head_width)

        def part(which, order):
            return g.add("Transpose", g.add("Reshape", self.dense(x, f"{name}.self.{which}"), apart), perm=order)

        query, key, value = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1]), part("value", [0, 2, 1, 3])
        scores = g.add("Div", g.add("MatMul", query, key), g.weight(math.sqrt(self.head_width)))
        shares = g.add("Softmax", g.add("Add", scores, hide), axis=-1)
        seen = g.add("Transpose", g.add("MatMul", shares, value), perm=[0, 2, 1, 3])
        together = g.add("Reshape", seen, g.integers(0, 0, self.config["hidden_size"]))
        return self.dense(together, f"{name}.output.dense")

    def gelu(self, x):
        g = self.graph
        bell = g.add("Add", g.add("Erf", g.add("Div", x, g.weight(math.sqrt(2)))), g.weight(1.0))
        return g.add("Mul", g.add("Mul", x, bell), g.weight(0.5))

    def pool(self, x, pooling):
        g = self.graph
        if pooling == "cls":
            g.add("Gather", x, g.weight(0, numpy.int64), axis=1, output="vectors")
        elif pooling == "mean":
            mask = g.add("Cast", g.add("Unsqueeze", "mask", g.integers(2)), to=TensorProto.FLOAT)
            total = g.add("ReduceSum", g.add("Mul", x, mask), g.integers(1), keepdims=0)
            count = g.add("ReduceSum", mask, g.integers(1), keepdims=0)
            g.add("Div", total, count, output="vectors")
        else:
            raise ValueError(f"only the poolings mean and cls are exported, not {pooling}")


# EfficientNet-Lite.

# Blocks, kernel, stride, expansion and channels of the stages of Lite0.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def save_efficientnet(folder, path, side=224):
    """EfficientNet-Lite0 with its batch norms folded: one image, channels first, to logits."""
    network = Network(read_weights(folder), side)
    g = network.graph
    x = network.clip(network.conv("image", "_conv_stem", "_bn0", 3, 2))
    index = 0
    for blocks, kernel, first_stride, expansion, _ in STAGES:
        for position in range(blocks):
            name, before = f"_blocks.{index}", x
            stride = first_stride if position == 0 else 1
            if expansion > 1:
                x = network.clip(network.conv(x, f"{name}._expand_conv", f"{name}._bn0", 1, 1))
            x = network.clip(network.conv(x, f"{name}._depthwise_conv", f"{name}._bn1", kernel, stride))
            x = network.conv(x, f"{name}._project_conv", f"{name}._bn2", 1, 1)
            x = g.add("Add", x, before) if position > 0 else x
            index += 1
    x = network.clip(network.conv(x, "_conv_head", "_bn1", 1, 1))
    features = g.add("Flatten", g.add("GlobalAveragePool", x), axis=1)
    weight, bias = g.weight(network.weights["_fc.weight"]), g.weight(network.weights["_fc.bias"])
    g.add("Gemm", features, weight, bias, transB=1, output="logits")
    image = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])]
    logits = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])]
    g.save(path, image, logits)


class Network:
    def __init__(self, weights, side):
        self.weights, self.side, self.graph = weights, side, Graph()

    def conv(self, x, layer, norm, kernel, stride):
        """A convolution and the batch norm behind it; padded as TensorFlow's SAME, which may pad one side more."""
        g, weight = self.graph, self.weights[f"{layer}.weight"]
        get = lambda name: self.weights[f"{norm}.{name}"]
        scale = get("weight") / numpy.sqrt(get("running_var") + BATCH_NORM_EPSILON)
        bias = get("bias") - get("running_mean") * scale
        out = -(-self.side // stride)
        total = max((out - 1) * stride + kernel - self.side, 0)
        before, after = total // 2, total - total // 2
        self.side = out
        group = weight.shape[0] if weight.shape[1] == 1 and weight.shape[2] > 1 else 1
        folded = g.weight(weight * scale[:, None, None, None])
        shape = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": [before, before, after, after]}
        return g.add("Conv", x, folded, g.weight(bias), group=group, **shape)

    def clip(self, x):
        return self.graph.add("Clip", x, self.graph.weight(0.0), self.graph.weight(6.0))
