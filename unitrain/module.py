"""Base class of a model: a LightningModule with hooks that have useful defaults.

Any LightningModule works unchanged; the functions here find the inputs and targets of its
batches and name its outputs. `UnitrainModule` adds the hooks and writes the steps.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MetricCollection

from unitrain.errors import HookError

Tensors = dict[str, Tensor]


def __getattr__(name: str) -> Any:
    if name == "ServableModule":
        # Lightning has a class of that name in `pytorch_lightning.serve`.
        warnings.warn(
            "unitrain.ServableModule is now unitrain.UnitrainModule; the old name goes in 0.4",
            DeprecationWarning,
            stacklevel=3,
        )
        return UnitrainModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class UnitrainModule(LightningModule):
    """A LightningModule whose training, validation and served graph come from a few hooks.

    A subclass writes `__init__`, `forward` and `loss`; all else has a default. The steps are::

        inputs  = preprocess(the batch's inputs)     # also the first thing in the served graph
        outputs = forward(**inputs)                  # a dict of named tensors
        loss(inputs, outputs, batch)                 # training and validation
        postprocess(outputs)                         # the last thing in the served graph only

    Example:
        >>> import torch
        >>> class Line(UnitrainModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...
        ...     def forward(self, x):
        ...         return {"y": self.layer(x)}
        ...
        ...     def loss(self, inputs, outputs, batch):
        ...         return torch.nn.functional.mse_loss(outputs["y"], batch["target"])
        >>> list(Line().predict_step({"x": torch.ones(2, 1), "target": torch.ones(2, 1)}, 0))
        ['y']

    Attributes:
        dynamic_axes: further axes of any length beside the batch, by input and axis (0 is the batch):
            `{"signals": {2: "steps"}}`.
    """

    dynamic_axes: Mapping[str, Mapping[int, str]] = {}

    def preprocess(self, inputs: Tensors) -> Tensors:
        """The inputs as `forward` takes them: in training, in validation and inside the served graph."""
        return inputs

    def postprocess(self, outputs: Tensors) -> Tensors:
        """The outputs as they are served (argmax, uint8, renamed, heads dropped); served graph only."""
        return outputs

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensor | Tensors:
        """The loss of a batch: a scalar, or named scalar terms that are logged and summed.

        `inputs` is what `preprocess` returned.
        """
        raise HookError(
            f"{type(self).__name__}.loss: every UnitrainModule needs one; define loss(inputs, outputs, batch)"
        )

    def metrics(self) -> MetricCollection | None:
        """The metrics of validation and test, logged as `val_<Name>` and `test_<Name>`."""
        return None

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Any, ...]:
        """Return the arguments of `metrics()`; default: the first output and the first target."""
        targets = batch_targets(self, batch)
        if not targets:
            raise HookError(
                f"{type(self).__name__}.metric_args: the batch holds no target for the metrics; define it"
            )
        return next(iter(outputs.values())), next(iter(targets.values()))

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        """Images, figures and text for TensorBoard, from the first validation batch, by tag.

        A tensor of shape [channel, height, width] or [n, channel, height, width] is an image (float in
        [0, 1] or uint8), a matplotlib figure a figure, a string a text.
        """
        return {}

    def embeddings(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        """Return the tensors for the Embedding Projector by name; default: the inputs and every output.

        Tensors of shape [batch, ...], of any real dtype. A sample's values are one point: all of them, or what
        the settings' `embeddings.reduce` makes of them by name (`mean` over space or time, `centre` of a patch,
        `first` token). The run reports and skips those of more than `embeddings.max_width` values.
        """
        return {**inputs, **outputs}

    def labels(self, batch: Any) -> Mapping[str, Sequence[Any] | Tensor]:
        """The points' labels by column, one value a sample; default: the targets that are one value each.

        Texts or numbers. Where there are more samples than are shown, as many are taken of each value of the
        first column, unless it holds floats. The place in the validation set is added as the column `sample`.
        """
        return batch_targets(self, batch)

    def configure_optimizers(self) -> Any:
        """Adam at the hyper-parameter `lr`, or at 1e-3 where there is none."""
        return torch.optim.Adam(self.parameters(), lr=float(self.hparams.get("lr", 1e-3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "train")[0]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        loss, inputs, outputs = self._evaluate(batch, "val", dataloader_idx)
        return {"loss": loss, "inputs": inputs, "outputs": outputs}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        loss, inputs, outputs = self._evaluate(batch, "test", dataloader_idx)
        return {"loss": loss, "inputs": inputs, "outputs": outputs}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensors:
        return flatten_outputs(self.postprocess(self(**self.preprocess(batch_inputs(self, batch)))))

    def _evaluate(self, batch: Any, stage: str, loader: int = 0) -> tuple[Tensor, Tensors, Tensors]:
        inputs = self.preprocess(batch_inputs(self, batch))
        outputs = self(**inputs)
        if isinstance(outputs, Tensor):
            outputs = {"output": outputs}
        terms = self.loss(inputs, outputs, batch)
        if isinstance(terms, Tensor):
            total, named = terms, {}
        else:
            total, named = torch.stack([t.reshape(()) for t in terms.values()]).sum(), terms
        training = stage == "train"
        if training and not self._step_is_logged():
            return total, inputs, outputs
        rows = len(next(iter(inputs.values())))
        values = {f"{stage}_loss": total, **{f"{stage}_{name}": term for name, term in named.items()}}
        self.log_dict(
            {name: value.detach() for name, value in values.items()},
            on_step=training,
            on_epoch=not training,
            prog_bar=False,
            batch_size=rows,
            sync_dist=not training,
        )
        if not training and (metrics := self._metrics_of(stage, loader)) is not None:
            metrics.update(*self.metric_args(inputs, outputs, batch))
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=rows)
        return total, inputs, outputs

    def _step_is_logged(self) -> bool:
        """Return True if Lightning writes this step's logs: collecting them costs a small model a third of its time."""
        trainer = self.trainer
        stepped = trainer.fit_loop.epoch_loop._batches_that_stepped  # noqa: SLF001 - what Lightning itself looks at
        every = max(1, int(getattr(trainer, "log_every_n_steps", 1)))
        return (stepped + 1) % every == 0 or trainer.is_last_batch

    def _metrics_of(self, stage: str, loader: int) -> MetricCollection | None:
        """The stage's and loader's own collection, made when first needed: `metrics()` may read hyper-parameters."""
        name = f"_{stage}_metrics{f'_{loader}' if loader else ''}"
        if name not in self._modules:
            metrics = self.metrics()
            self._metric_attributes = None  # Lightning looks for a module's metrics but once
            self.add_module(
                name, None if metrics is None else metrics.clone(prefix=f"{stage}_").to(self.device)
            )
        collection = self._modules[name]
        return collection if isinstance(collection, MetricCollection) else None


def input_names(module: LightningModule, batch: Any = None) -> tuple[str, ...]:
    """The names of a module's inputs, in forward's order.

    They are those of `example_input_array` if the module has one; else the keys of a dict batch that are
    forward's arguments; else the arguments that forward requires.

    Raises:
        HookError: forward takes only `**inputs` and there is no `example_input_array`, or a dict batch
            lacks a required argument.
    """
    required, optional = _forward_arguments(module)
    example = module.example_input_array
    if isinstance(example, Mapping):
        return tuple(example)
    positional = required + optional
    if isinstance(example, Tensor | tuple | list):
        count = 1 if isinstance(example, Tensor) else len(example)
        if count > len(positional):
            raise HookError(
                f"{type(module).__name__}.forward: example_input_array has {count} inputs, but forward names only "
                f"{len(positional)} of its arguments; give each input a named argument in the place of *args"
            )
        return positional[:count]
    if isinstance(batch, Mapping):
        missing = [name for name in required if name not in batch]
        if missing:
            raise HookError(
                f"{type(module).__name__}.forward requires {', '.join(missing)}, which the batch lacks: it has "
                f"{', '.join(map(str, batch))}; rename the argument or the key, or set example_input_array"
            )
        names = tuple(name for name in positional if name in batch)
    else:
        names = required or positional[:1]
    if not names:
        what = "is not defined" if type(module).forward is LightningModule.forward else "names no inputs"
        raise HookError(
            f"{type(module).__name__}.forward {what}: give it named arguments or set example_input_array; a model that is "
            "not to be served takes `publish: null`"
        )
    return names


def passed_inputs(module: LightningModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tensors in a call of a module's forward, in its arguments' order."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return tuple(name for name, value in bound.items() if isinstance(value, Tensor))


def batch_inputs(module: LightningModule, batch: Any) -> Tensors:
    """A batch's inputs by name, as tensors of shape [batch, ...].

    Raises:
        HookError: the batch has fewer elements, or other keys, than the module's inputs.
    """
    names = input_names(module, batch)
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise HookError(
                f"the batch lacks {', '.join(missing)}, which {type(module).__name__} takes: it has {', '.join(map(str, batch))}"
            )
        found = {name: batch[name] for name in names}
    else:
        elements = (batch,) if isinstance(batch, Tensor) or not isinstance(batch, Iterable) else tuple(batch)
        if len(elements) < len(names):
            raise HookError(
                f"the batch has {len(elements)} elements, but {type(module).__name__}.forward takes "
                f"{len(names)}: {', '.join(names)}"
            )
        found = dict(zip(names, elements, strict=False))
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise HookError(
                f"the batch's {name} must be a tensor to be an input, got {_way_out(name, value)}"
            )
    if not isinstance(module, UnitrainModule):
        _check_against_example(module, found)
    return found


def _way_out(name: str, value: Any) -> str:
    """The kind of an input that is no tensor, and what to do about it."""
    if isinstance(value, Mapping):
        inner = next((str(key) for key, item in value.items() if isinstance(item, Tensor)), "key")
        return (
            f"a dict of {', '.join(map(str, value)) or 'nothing'}; let the batch and forward have its tensors as inputs of "
            f"their own, as `{name}_{inner}` or `{inner}`, or switch publishing and embeddings off with `publish: null`, "
            "`embeddings: null`"
        )
    if isinstance(value, Sequence) and value and all(isinstance(item, Tensor) for item in value):
        return (
            f"a {type(value).__name__} of {len(value)} tensors; stack them to one tensor in the collate function "
            "(torch.nn.utils.rnn.pad_sequence for different lengths), or let forward take each as an input of its own"
        )
    kind = type(value).__name__
    return (
        f"{kind}; convert it to a tensor in the data set or the collate function (such as texts to numbers)"
    )


def example_inputs(module: LightningModule, names: Sequence[str]) -> dict[str, Any]:
    """The module's `example_input_array` by name; nothing where it has none."""
    example = module.example_input_array
    if example is None:
        return {}
    if isinstance(example, Mapping):
        return {name: example[name] for name in names}
    return dict(zip(names, (example,) if isinstance(example, Tensor) else example, strict=True))


def _check_against_example(module: LightningModule, found: Tensors) -> None:
    """Refuse what is certainly no input: a generator's noise is in no batch, nor are rows that a step flattens."""
    for name, example in example_inputs(module, tuple(found)).items():
        value = found[name]
        if not isinstance(example, Tensor):
            continue
        if value.dim() != example.dim() or value.is_floating_point() != example.is_floating_point():
            raise HookError(
                f"{type(module).__name__}.forward takes {name} as example_input_array has it, {example.dtype} of "
                f"{example.dim()} axes, and what the batch has in its place is {value.dtype} of {value.dim()} axes"
            )


def batch_targets(module: LightningModule, batch: Any) -> dict[str, Any]:
    """Return a batch's targets by name: a dict's other keys, or `target`, `target_1`, ... of a tuple."""
    names = input_names(module, batch)
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items() if key not in names}
    if isinstance(batch, Tensor) or not isinstance(batch, Iterable):
        return {}
    rest = tuple(batch)[len(names) :]
    return {f"target_{i}" if i else "target": value for i, value in enumerate(rest)}


def flatten_outputs(value: Any, name: str = "") -> Tensors:
    """A forward's outputs as one dict of named tensors.

    One tensor is `output`; a tuple's are `output_0`, `output_1`, ...; a dict's and a dataclass's have
    their keys, nested ones joined by an underscore. None is skipped.

    Raises:
        HookError: something else than a tensor, or two of one name.
    """
    if isinstance(value, Tensor):
        return {name or "output": value}
    if value is None:
        return {}
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        items = [(str(i) if name else f"output_{i}", v) for i, v in enumerate(value)]
    else:
        raise HookError(
            f"forward returned a {type(value).__name__}{f' as {name}' if name else ''}, expected tensors or a dict of them"
            + (
                "; set use_cache=False in the transformer's configuration"
                if "Cache" in type(value).__name__
                else "; return the tensors that are to be served (such as a distribution's mean and stddev)"
            )
        )
    flat: Tensors = {}
    for key, item in items:
        for inner, tensor in flatten_outputs(item, f"{name}_{key}" if name else key).items():
            if inner in flat:
                raise HookError(f"forward returned two outputs named {inner}; rename one")
            flat[inner] = tensor
    return flat


def _forward_arguments(module: LightningModule) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    required = tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)
    return required, tuple(p.name for p in parameters if p.default is not inspect.Parameter.empty)
