"""The rivals, set up for what is measured: one call at a time, as fast as it can be on so many threads."""


class Onnxruntime:
    def __init__(self, path, precision, threads, shapes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Its threads may spin while it computes, which makes it faster, but not while another contestant does.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def prepare(self, calls):
        pass

    def run(self, inputs):
        return self.session.run(None, inputs)[0]


class Openvino:
    def __init__(self, path, precision, threads, shapes):
        import openvino

        self.core, self.path, self.shapes = openvino.Core(), path, shapes
        self.settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        if precision != "int8":
            # What int8 leaves in floating point is in the type that the library chooses for this CPU.
            self.settings["INFERENCE_PRECISION_HINT"] = precision
        self.request = self.compile(None)
        self.fixed, self.fixed_to = None, None

    def compile(self, shapes):
        model = self.core.read_model(self.path)
        if shapes:
            model.reshape(shapes)
        return self.core.compile_model(model, "CPU", self.settings).create_infer_request()

    def prepare(self, calls):
        """Compiles the network for the one shape that comes; where several come, the one for all shapes is used."""
        shapes = {name: list(value.shape) for name, value in calls[0].items()}
        if self.shapes != "fixed" or len(calls) > 1:
            self.fixed, self.fixed_to = None, None
        elif shapes != self.fixed_to:
            self.fixed, self.fixed_to = self.compile(shapes), shapes

    def run(self, inputs):
        return (self.fixed or self.request).infer(inputs, share_inputs=True)[0]
