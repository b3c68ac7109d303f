"""A run's embeddings as an ONNX graph, which onnxruntime runs without this package and without JAX.

The graph is written node by node: the encoder with every token of the grid in a slot of its own, as in
`EmbeddingFunction`, with the number and the length of windows left free. Every file is run and compared with the run
before anyone gets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lsm_jax.errors import UserError
from lsm_jax.export.check import CheckWindows, check_embeddings
from lsm_jax.export.function import OBSERVED, TOKENS, EmbeddingFunction, check_fits
from lsm_jax.nn.positions import rotation
from lsm_jax.objectives.pooling import HOUR
from lsm_jax.objectives.sensor_language import TEXT_SPACE
from lsm_jax.sharding import named_parameters
from lsm_jax.train.run import Run

FILE = "model.onnx"
_OPSET, _IR_VERSION = 18, 10  # read by onnxruntime 1.18 and later
_MASKED = -1e30
Tensor = str | np.ndarray  # the name of a node's output, or a constant


def write_onnx(run: Run, folder: Path, windows: CheckWindows) -> list[str]:
    """Writes `model.onnx` into the folder and compares what onnxruntime gives with the run; returns what was checked.

    Raises:
      UserError: onnx or onnxruntime is not installed, or the parameters are too many for one file.
      RunError: the file does not give the run's embeddings.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise UserError("--format onnx needs two packages more: pip install onnx onnxruntime") from None
    check_fits(run, "An ONNX")
    function = EmbeddingFunction(run)
    onnx.save(_model(run, function), folder / FILE)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    each = [session.run([*function.outputs], {"values": window[None]}) for window in windows.values]
    outputs = {
        name: np.concatenate(parts) for name, parts in zip(function.outputs, zip(*each, strict=True), strict=True)
    }
    return check_embeddings(run, windows, function, outputs)


class _Graph:
    """Nodes and constants, in order; a call adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operation: str, *inputs: Tensor, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = name or f"{operation}_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        self.nodes.append(helper.make_node(operation, names, [name], name, **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def reshape(self, tensor: str, *shape: int) -> str:
        """0 keeps a dimension, -1 is the rest."""
        return self("Reshape", tensor, np.array(shape, np.int64))

    def linear(self, tensor: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
        """Over the last axis; `kernel` is [in, out]."""
        product = self("MatMul", tensor, kernel)
        return product if bias is None else self("Add", product, bias)


def _model(run: Run, function: EmbeddingFunction) -> Any:
    """The ONNX model."""
    from onnx import TensorProto, checker, helper

    graph = _Graph()
    minutes = run.spec.window_minutes if function.fixed_length else "time"
    outputs = _Encoder(graph, run, function).outputs()
    for name in function.outputs:
        graph("Identity", outputs[name], name=name)
    kinds = {TOKENS: (TensorProto.FLOAT, ["batch", "token", "width"]), OBSERVED: (TensorProto.BOOL, ["batch", "token"])}
    shapes = {name: kinds.get(name, (TensorProto.FLOAT, ["batch", f"{name}_width"])) for name in function.outputs}
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "embedding",
            [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", minutes, len(function.channels)])],
            [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="lsm_jax",
    )
    model.ir_version = _IR_VERSION
    helper.set_model_props(model, {"channels": ",".join(function.channels), "step": str(int(run.step))})
    checker.check_model(model)
    return model


class _Encoder:
    """Adds the nodes of a run's encoder and poolings to a graph."""

    def __init__(self, graph: _Graph, run: Run, function: EmbeddingFunction) -> None:
        self.graph, self.spec, self.model, self.function = graph, run.spec, run.config.model, function
        self.grid = function.grid
        self.params = {name: np.asarray(leaf, np.float32) for name, leaf in named_parameters(run.params)}
        self.width = self.params["encoder/centering/center"].shape[0]
        self.turns: dict[str, str] = {}  # of rotary embeddings

    def outputs(self) -> dict[str, str]:
        """The outputs by name, see `EmbeddingFunction.__call__`."""
        graph = self.graph
        values, recorded = self._cells()
        needed = self.grid.cells_needed().astype(np.float32)
        counts = graph("ReduceSum", recorded, np.array([-1]), keepdims=0)
        observed = graph.reshape(graph("GreaterOrEqual", counts, needed), 0, -1)
        here = graph("Unsqueeze", observed, np.array([2]))
        encoded = graph("Where", here, self._encoded(values, recorded, observed), np.zeros(1, np.float32))
        outputs = self._pooled(encoded, here) | {TOKENS: encoded, OBSERVED: observed}
        if TEXT_SPACE in self.function.outputs:
            outputs[TEXT_SPACE] = self._text_space(encoded, observed)
        return outputs

    def _cells(self) -> tuple[str, str]:
        """z-scored values and 1 where recorded, [batch, patch, group, cell]."""
        graph = self.graph
        recorded = graph("Not", graph("Or", graph("IsNaN", "values"), graph("IsInf", "values")))
        z_scores = graph("Div", graph("Sub", "values", self.spec.mean), self.spec.sd)
        values = graph("Where", recorded, z_scores, np.zeros(1, np.float32))
        if self.function.fixed_length:  # LSM-1: gaps are filled
            values, recorded = self._filled(values, recorded)
        return self._by_token(values), self._by_token(graph("Cast", recorded, to=1))

    def _by_token(self, cells: str) -> str:
        grid, graph = self.grid, self.graph
        padding = grid.groups * grid.patch_channels - len(grid.channels)
        if padding:
            cells = graph("Pad", cells, np.array([0, 0, 0, 0, 0, padding]))
        patches = graph.reshape(cells, 0, -1, grid.patch_minutes, grid.groups, grid.patch_channels)
        return graph.reshape(graph("Transpose", patches, perm=[0, 1, 3, 2, 4]), 0, 0, grid.groups, grid.cells_per_token)

    def _filled(self, values: str, recorded: str) -> tuple[str, str]:
        """See `tokens.imputation`. A running maximum is a pooling over all earlier steps."""
        graph, steps = self.graph, self.spec.window_minutes
        step = np.arange(steps, dtype=np.float32)[:, None]
        first, last = np.zeros(1, np.float32), np.full(1, steps - 1, np.float32)

        def running_max(cells: str, pads: list[int]) -> str:
            by_channel = graph("Transpose", cells, perm=[0, 2, 1])
            pooled = graph("MaxPool", by_channel, kernel_shape=[steps], pads=pads)
            return graph("Transpose", pooled, perm=[0, 2, 1])

        before = running_max(graph("Where", recorded, step, first - 1), [steps - 1, 0])
        after = graph("Neg", running_max(graph("Where", recorded, -step, -last - 1), [0, steps - 1]))
        has_before, has_after = graph("GreaterOrEqual", before, first), graph("LessOrEqual", after, last)

        def at(places: str) -> str:
            inside = graph("Cast", graph("Min", graph("Max", places, first), last), to=7)
            return graph("GatherElements", values, inside, axis=1)

        left, right, one = at(before), at(after), np.ones(1, np.float32)
        share = graph("Div", graph("Sub", step, before), graph("Max", graph("Sub", after, before), one))
        line = graph("Add", left, graph("Mul", share, graph("Sub", right, left)))
        inside = graph("Where", graph("And", has_before, has_after), line, graph("Where", has_before, left, right))
        anything = graph("ReduceMax", graph("Cast", recorded, to=1), np.array([1, 2]), keepdims=1)
        everywhere = graph("Expand", graph("Cast", anything, to=9), graph("Shape", recorded))
        return inside, everywhere

    def _encoded(self, values: str, recorded: str, observed: str) -> str:
        """The encoder's output, also where no token is observed."""
        graph, params = self.graph, self.params
        if self.model.asinh_inputs:
            values = graph("Asinh", values)
        if self.model.patch_input == "values_and_mask":
            values = graph("Concat", values, recorded, axis=-1)
        tokens = graph.linear(
            values, params["encoder/patches/projection/kernel"], params["encoder/patches/projection/bias"]
        )
        patches = graph("Shape", values, start=1, end=2)
        positions = self.function.positions().reshape(-1, self.grid.groups, self.width)
        positions_here = graph("Slice", positions, np.array([0]), patches, np.array([0]))
        tokens = graph.reshape(graph("Add", tokens, positions_here), 0, -1, self.width)
        if self.model.rotary:
            self._make_turns(patches)
        tokens = self._stack("encoder/stack", tokens, None, self._hidden(observed))
        return graph("Sub", tokens, params["encoder/centering/center"])

    def _make_turns(self, patches: str) -> None:
        """Cosines and sines of the angles of all tokens, [token, feature] (`nn.positions.rotation`)."""
        graph, size = self.graph, self.width // self.params["encoder/stack/blocks/attention/output/kernel"].shape[1]
        patch = np.repeat(np.arange(self.grid.patches), self.grid.groups).reshape(-1, self.grid.groups)
        cosine, sine = (np.asarray(part) for part in rotation(jnp.asarray(patch), size))
        rest = np.zeros((*patch.shape, size - 2 * cosine.shape[-1]), np.float32)  # an odd last feature stays
        parts = {"cosine": (cosine, cosine, rest + 1), "sine": (-sine, sine, rest)}
        for name, part in parts.items():
            here = graph("Slice", np.concatenate(part, axis=-1), np.array([0]), patches, np.array([0]))
            self.turns[name] = graph.reshape(here, -1, size)

    def _turned(self, heads: str, size: int) -> str:
        """Queries or keys [batch, head, token, feature], rotated (`nn.positions.rotated`)."""
        graph, half = self.graph, size // 2
        swapped = np.concatenate([np.arange(half) + half, np.arange(half), np.arange(2 * half, size)])
        other = graph("Gather", heads, swapped, axis=3)
        return graph("Add", graph("Mul", heads, self.turns["cosine"]), graph("Mul", other, self.turns["sine"]))

    def _hidden(self, observed: str) -> str:
        """What is added to the scores of keys, [batch, 1, 1, token]."""
        bias = self.graph("Where", observed, np.zeros(1, np.float32), np.full(1, _MASKED, np.float32))
        return self.graph("Unsqueeze", bias, np.array([1, 2]))

    def _stack(self, prefix: str, tokens: str, memory: str | None, bias: str, has_keys: str = "") -> str:
        """See `nn.layers.Stack`; `has_keys` is 0 for windows without a key, whose queries get zeros."""
        graph, params = self.graph, self.params
        depth = len(params[f"{prefix}/blocks/attention_norm/scale"])
        for layer in range(depth):
            block = {
                name.removeprefix(f"{prefix}/blocks/"): array[layer]
                for name, array in params.items()
                if name.startswith(f"{prefix}/blocks/")
            }
            attended = self._attention(block, self._norm(block, "attention_norm", tokens), memory, bias, has_keys)
            tokens = graph("Add", tokens, attended)
            hidden = self._linear(block, "feed_forward/expand", self._norm(block, "feed_forward_norm", tokens))
            tokens = graph("Add", tokens, self._linear(block, "feed_forward/contract", self._gelu(hidden)))
        return self._norm(params, f"{prefix}/norm", tokens)

    def _attention(
        self, block: Mapping[str, np.ndarray], tokens: str, memory: str | None, bias: str, has_keys: str
    ) -> str:
        """See `nn.layers.Attention`; the bias of the keys is not used."""
        graph = self.graph
        if memory is None:
            kernel, biases = block["attention/query_key_value/kernel"], block["attention/query_key_value/bias"]
            kernels = [kernel[:, part] for part in range(3)]
        else:
            both = block["attention/key_value/kernel"]
            kernels = [block["attention/query/kernel"], both[:, 0], both[:, 1]]
            biases = np.stack([block["attention/query/bias"], *block["attention/key_value/bias"]])
        width, heads, size = kernels[0].shape
        factors = np.float32(size**-0.5), np.float32(1), np.float32(1)

        def project(source: str, part: int) -> str:
            own = None if part == 1 else biases[part].reshape(-1) * factors[part]
            projected = graph.linear(source, kernels[part].reshape(width, -1) * factors[part], own)
            return graph("Transpose", graph.reshape(projected, 0, -1, heads, size), perm=[0, 2, 1, 3])

        source = memory or tokens
        query, key, value = project(tokens, 0), project(source, 1), project(source, 2)
        if memory is None and self.turns:
            query, key = self._turned(query, size), self._turned(key, size)
        key = graph("Transpose", key, perm=[0, 1, 3, 2])
        weights = graph("Softmax", graph("Add", graph("MatMul", query, key), bias), axis=-1)
        joined = graph("Transpose", graph("MatMul", weights, value), perm=[0, 2, 1, 3])
        out = block["attention/output/kernel"].reshape(heads * size, width)
        joined = graph.reshape(joined, 0, -1, heads * size)
        joined = graph("Mul", joined, has_keys) if has_keys else joined
        return graph.linear(joined, out, block["attention/output/bias"])

    def _norm(self, params: Mapping[str, np.ndarray], name: str, tokens: str) -> str:
        return self.graph(
            "LayerNormalization", tokens, params[f"{name}/scale"], params[f"{name}/bias"], axis=-1, epsilon=1e-6
        )

    def _linear(self, params: Mapping[str, np.ndarray], name: str, tokens: str) -> str:
        return self.graph.linear(tokens, params[f"{name}/kernel"], params[f"{name}/bias"])

    def _gelu(self, tokens: str) -> str:
        """The approximation by tanh, as `flax.nnx.gelu`."""
        graph, number = self.graph, lambda value: np.full(1, value, np.float32)
        cube = graph("Mul", graph("Mul", tokens, tokens), tokens)
        inner = graph("Mul", graph("Add", tokens, graph("Mul", cube, number(0.044715))), number(np.sqrt(2 / np.pi)))
        return graph("Mul", graph("Mul", tokens, number(0.5)), graph("Add", graph("Tanh", inner), number(1)))

    def _pooled(self, encoded: str, here: str) -> dict[str, str]:
        """See `objectives.pooling`."""
        graph, groups, width = self.graph, self.grid.groups, self.width
        is_token = graph("Cast", here, to=1)
        total = lambda tensor: graph("ReduceSum", tensor, np.array([1]), keepdims=1)  # noqa: E731

        def mean(sums: str, counts: str) -> str:
            return graph("Div", sums, graph("Max", counts, np.ones(1, np.float32)))

        def mean_and_sd(vectors: str, is_token: str) -> tuple[str, str]:
            count = total(is_token)
            centre = mean(total(vectors), count)
            deviations = graph("Mul", graph("Sub", vectors, centre), is_token)
            sd = graph("Sqrt", mean(total(graph("Mul", deviations, deviations)), count))
            return centre, graph("Concat", centre, sd, axis=-1)

        by_place = graph.reshape(encoded, 0, -1, groups, width), graph.reshape(is_token, 0, -1, groups, 1)
        pooled = dict(zip(("mean", "mean_sd"), mean_and_sd(encoded, is_token), strict=True))
        pooled |= zip(("channel", "channel_mean_sd"), mean_and_sd(*by_place), strict=True)
        pooled["hour"] = mean(
            *(self._by_hour(graph("ReduceSum", each, np.array([2]), keepdims=0)) for each in by_place)
        )
        return {name: graph("Flatten", each, axis=1) for name, each in pooled.items()}

    def _by_hour(self, by_patch: str) -> str:
        """Sums over the patches of each hour, [batch, hour, width]."""
        graph, number = self.graph, lambda value: np.array(value, np.int64)
        patches = graph("Squeeze", graph("Shape", by_patch, start=1, end=2))
        minutes = graph("Mul", patches, number(self.grid.patch_minutes))
        hours = graph("Div", graph("Add", minutes, number(HOUR - 1)), number(HOUR))
        begins = graph("Range", number(0), minutes, number(self.grid.patch_minutes))
        hour_of_patch = graph("Div", begins, number(HOUR))
        rows = graph("Unsqueeze", graph("Range", number(0), hours, number(1)), number([1]))
        member = graph("Cast", graph("Equal", rows, graph("Unsqueeze", hour_of_patch, number([0]))), to=1)
        return graph("MatMul", member, by_patch)

    def _text_space(self, encoded: str, observed: str) -> str:
        """See `nn.sensor_language.Pool` and `Contrast`: one learned query reads the tokens of each window."""
        graph, params = self.graph, self.params
        anything = graph("ReduceMax", graph("Cast", observed, to=1), np.array([1]), keepdims=1)
        count = graph("Shape", encoded, start=0, end=1)
        shape = graph("Concat", count, np.array([1, self.width]), axis=0)
        query = graph("Expand", params["pool/queries"][None], shape)
        pooled = self._stack(
            "pool/stack", query, encoded, self._hidden(observed), graph("Unsqueeze", anything, np.array([2]))
        )
        vectors = graph("MatMul", graph("Flatten", pooled, axis=1), params["contrast/sensor_proj/kernel"])
        square = graph("ReduceSum", graph("Mul", vectors, vectors), np.array([1]), keepdims=1)
        return graph("Div", vectors, graph("Sqrt", graph("Max", square, np.full(1, 1e-12, np.float32))))
