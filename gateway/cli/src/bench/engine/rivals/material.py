"""What the rivals are measured with: texts, a photo, and models in int8."""

import html
import importlib.util
import io
import os
import subprocess
import sys
import tarfile

import numpy

PACKAGE = "vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
SNIPPETS = ["tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets"]
TEXTS = 1024
# Snippets that are joined to one text, in turn: as in most traffic, many texts are short and a few are long.
JOINED = [1, 1, 2, 1, 1, 3, 1, 1, 8, 1, 2, 1, 1, 5, 1, 2]
SOURCE = "snippets of VADER's data; of 16 texts, 10 are one, 3 are two, one each is 3, 5 and 8 joined"
# Inputs by which activations are scaled.
CALIBRATION = 300


def texts(folder):
    """Real texts: the snippets rated for VADER (Hutto and Gilbert, ICWSM 2014; MIT licence), neighbours joined."""
    archive = os.path.join(folder, "vaderSentiment-3.3.2.tar.gz")
    if not os.path.exists(archive):
        download(folder)
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz").read()
    made = []
    with tarfile.open(fileobj=io.BytesIO(inner)) as files:
        for turn, name in enumerate(SNIPPETS):
            lines = files.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read().decode("utf-8", "replace")
            snippets = iter([html.unescape(line.split("\t", 2)[2].strip()) for line in lines.splitlines() if line])
            # Where one source has a long text the others have short ones.
            lengths = [JOINED[(number + 4 * turn) % len(JOINED)] for number in range(TEXTS // len(SNIPPETS))]
            made.append([" ".join(next(snippets) for _ in range(length)) for length in lengths])
    return [text for group in zip(*made) for text in group]


def download(folder):
    wanted = os.path.join(folder, "texts.in")
    with open(wanted, "w", encoding="utf-8") as file:
        file.write(PACKAGE)
    arguments = ["--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes", "--requirement", wanted]
    command = [sys.executable, "-m", "pip", "download", "--dest", folder, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not download {PACKAGE.split()[0]}: {done.stderr.strip()[-300:]}")


def save_photo(to):
    """A real photo of 640 x 480 pixels as a JPEG of the usual quality: scikit-learn ships it."""
    from PIL import Image

    folder = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    with Image.open(os.path.join(folder, "datasets", "images", "china.jpg")) as image:
        image = image.convert("RGB").resize((640, 480), Image.Resampling.BICUBIC)
        image.save(to, "JPEG", quality=85, subsampling="4:2:0")


class Photo:
    """A photo on its way to labels, as one does it in Python."""

    def __init__(self, file, recipe):
        self.file, self.recipe = file, recipe
        self.prepared = self.prepare()

    def prepare(self):
        from PIL import Image

        recipe = self.recipe
        image = Image.open(io.BytesIO(self.file)).convert("RGB")
        scale = recipe["resize"] / min(image.size)
        filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        image = image.resize([round(side * scale) for side in image.size], filters[recipe["filter"]])
        crop = recipe["crop"]
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        pixels = numpy.asarray(image.crop((left, top, left + crop, top + crop)), numpy.float32)
        pixels = (pixels - numpy.float32(recipe["mean"])) / numpy.float32(recipe["std"])
        return numpy.ascontiguousarray(pixels.transpose(2, 0, 1)[None])

    def logits(self, model):
        return model.run({"image": self.prepared})

    def labels(self, model):
        logits = model.run({"image": self.prepare()})[0]
        powers = numpy.exp(logits - logits.max())
        scores = powers / powers.sum()
        return [(self.recipe["labels"][index], float(scores[index])) for index in numpy.argsort(-scores)[:5]]


def quantize_onnxruntime(source, to, _inputs):
    """The graph as it was exported. Preparing it makes it no faster on the whole (onnxruntime 1.32.0, Zen 4, one thread):
    quant_pre_process changes nothing, and with the attention fused by onnxruntime.transformers' optimizer a text of 16
    or 64 tokens takes 4 to 6 % less time, one of 256 1 % less, and batches of 8 take 1 to 3 % more."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, to, per_channel=True, reduce_range=False)


def quantize_openvino(source, to, inputs):
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    samples = nncf.Dataset(inputs[:CALIBRATION])
    model = nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION)
    openvino.save_model(model, to, compress_to_fp16=False)
