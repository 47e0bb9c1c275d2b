"""Runs one rival of Tamis for `tamis bench engine`: reads a request of JSON a line, writes an answer a line.

Usage: rivals.py LIBRARY, of onnxruntime and openvino. It ends when its input ends.
"""

import json
import os
import sys
import time

import numpy

RUNS_MAX = 1000


class Rival:
    """What `tamis bench engine` has asked for so far: loaded models, and the task that they are given."""

    def __init__(self, library):
        self.library = library
        self.models, self.calls, self.photo = {}, [], None

    def versions(self):
        import importlib.metadata as metadata

        beside = {"onnxruntime": ["onnx", "pillow"], "openvino": ["nncf", "pillow"]}[self.library]
        beside = {name: metadata.version(name) for name in beside}
        return {"library": metadata.version(self.library), "python": sys.version.split()[0], "beside": beside}

    # Material.

    def corpus(self, folder):
        import material

        return {"texts": material.texts(folder), "source": material.SOURCE}

    def picture(self, to):
        import material

        material.save_photo(to)
        return {}

    def export(self, kind, folder, to, pooling=None):
        import graphs

        if kind == "texts":
            graphs.save_encoder(folder, pooling, to)
        else:
            graphs.save_efficientnet(folder, to)
        return {}

    def quantize(self, source, to, calls):
        import material

        quantize = {"onnxruntime": material.quantize_onnxruntime, "openvino": material.quantize_openvino}
        quantize[self.library](source, to, [padded(call) for call in calls])
        return {}

    # Measurement.

    def load(self, engine, path, precision, threads, shapes):
        import runtimes

        runtime = {"onnxruntime": runtimes.Onnxruntime, "openvino": runtimes.Openvino}[self.library]
        self.models[engine] = runtime(path, precision, threads, shapes)
        return {}

    def texts(self, calls):
        self.calls, self.photo = [padded(call) for call in calls], None
        return {}

    def image(self, path, recipe):
        import material

        with open(path, "rb") as file:
            self.photo = material.Photo(file.read(), recipe)
        self.calls = []
        return {}

    def answers(self, engine):
        model = self.models[engine]
        if self.photo:
            return {"vectors": self.photo.logits(model).tolist()}
        vectors = []
        for call in self.calls:
            # What is measured is the network that is compiled for a shape, where it is.
            model.prepare([call])
            vectors.extend(model.run(call).tolist())
        return {"vectors": vectors}

    def turn(self, engine, seconds, what):
        model = self.models[engine]
        run = {"texts": self.run_texts, "network": self.run_network, "photo": self.run_photo}[what]
        if what == "texts":
            model.prepare(self.calls)
        began, cpu = time.perf_counter(), time.process_time()
        # The first run warms what the others' turns have cooled; where it takes a whole turn that makes no difference.
        times = [timed(run, model)]
        if times[0] < seconds * 1e3:
            times = []
        spent = sum(times)
        while not times or (spent < seconds * 1e3 and len(times) < RUNS_MAX):
            times.append(timed(run, model))
            spent += times[-1]
        cores = (time.process_time() - cpu) / (time.perf_counter() - began)
        return {"times_ms": times, "cores": cores}

    def run_texts(self, model):
        for call in self.calls:
            model.run(call)

    def run_network(self, model):
        model.run({"image": self.photo.prepared})

    def run_photo(self, model):
        self.photo.labels(model)


def padded(call):
    """Ids and mask of the texts of a call, as long as the longest of them."""
    width = max(len(ids) for ids in call)
    ids, mask = numpy.zeros((2, len(call), width), numpy.int64)
    for row, text in enumerate(call):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"ids": numpy.ascontiguousarray(ids), "mask": numpy.ascontiguousarray(mask)}


def timed(run, model):
    began = time.perf_counter()
    run(model)
    return (time.perf_counter() - began) * 1e3


def main():
    # What libraries print is not for the one who reads the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    rival = Rival(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(rival, request.pop("do"))(**request)
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
