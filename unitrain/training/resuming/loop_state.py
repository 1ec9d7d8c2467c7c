"""State of a training that Lightning's checkpoints lack, as plain data: partial metrics and logged values."""

# ruff: noqa: SLF001 - much of Lightning's loops has no public name

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

_META = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx", "dataloader_idx",
    "metric_attribute",
)  # fmt: skip
_REDUCTIONS: dict[str, Any] = {"mean": torch.mean, "sum": torch.sum, "max": torch.max, "min": torch.min}


def capture_state(trainer: Trainer, pl_module: LightningModule, *, mid_epoch: bool) -> dict[str, Any]:
    """Return the state that a resumed run needs in addition to Lightning's checkpoint.

    Args:
        trainer: trainer of the run.
        pl_module: module of the run.
        mid_epoch: include the sums of the epoch's logged means.
    """
    logged = trainer._logger_connector
    state: dict[str, Any] = {
        "callback_metrics": _detached(trainer.callback_metrics),
        "logged_metrics": _detached(logged._logged_metrics),
        "should_stop": bool(trainer.should_stop),
        "metrics": metric_states(pl_module),
        "train_dataloader_epoch": trainer.fit_loop._last_train_dl_reload_epoch,
        "val_dataloader_epoch": trainer.fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
    }
    if mid_epoch:
        state["results"] = [
            _result_state(key, each)
            for key, each in trainer.fit_loop.epoch_loop._results.items()
            if each.meta.sync._group is None
        ]
    if not pl_module.automatic_optimization or trainer.fit_loop._should_accumulate():
        state["gradients"] = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
    return state


def restore_state(trainer: Trainer, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
    """Restore the state of the run; `restore_results` restores the epoch's logged means."""
    logged = trainer._logger_connector
    logged._callback_metrics.update(_moved(state["callback_metrics"], pl_module.device))
    logged._logged_metrics.update(_moved(state["logged_metrics"], pl_module.device))
    load_metric_states(pl_module, state["metrics"])
    parameters = dict(pl_module.named_parameters())
    for name, gradient in state.get("gradients", {}).items():
        if name in parameters:
            parameters[name].grad = gradient.to(parameters[name].device)


def restore_results(trainer: Trainer, pl_module: LightningModule, results: list[dict[str, Any]]) -> None:
    """Restore the sums of an epoch's logged means."""
    collection = trainer.fit_loop.epoch_loop._results
    collection.clear()
    for each in results:
        meta = _Metadata(**{name: each[name] for name in _META}, reduce_fx=_REDUCTIONS[each["reduce"]])
        meta.sync = _Sync(
            _should=each["sync"],
            fn=trainer.strategy.reduce,
            _op=each["op"],
            rank_zero_only=each["rank_zero_only"],
        )
        metric = _ResultMetric(meta, each["is_tensor"])
        for name, value in each["values"].items():
            setattr(metric, name, value.to(pl_module.device) if isinstance(value, Tensor) else value)
        if not each["is_tensor"]:
            owner: Any = pl_module
            for part in (each["metric_attribute"] or "").split("."):
                owner = getattr(owner, part)
            metric.value = owner
        collection[each["key"]] = metric


def metric_states(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the accumulated state of each torchmetrics metric of a module by name, without weights of metrics."""
    states = {}
    for name, metric, leader in _metrics_of(module):
        if leader.update_called or metric.update_called:
            kept = {
                key: _copied(value) for key, value in leader.metric_state.items() if key in metric._defaults
            }
            states[name] = {"updates": leader._update_count, "state": kept}
    return states


def load_metric_states(module: nn.Module, states: Mapping[str, dict[str, Any]]) -> None:
    """Restore the states that `metric_states` has returned."""
    for name, metric, _ in _metrics_of(module):
        if name not in states:
            continue
        metric._update_count = states[name]["updates"]
        metric._computed = None
        for key, value in states[name]["state"].items():
            if key in metric._defaults:
                setattr(metric, key, _moved(_copied(value), metric.device))


def _metrics_of(module: nn.Module) -> Iterator[tuple[str, Metric, Metric]]:
    """Yield each metric's name, the metric, and the first metric of its compute group, whose state it shares."""
    leaders: dict[int, Metric] = {}
    for part in module.modules():
        if isinstance(part, MetricCollection) and part._groups_checked:
            for group in part._groups.values():
                first: Any = part._modules[group[0]]
                leaders |= {id(part._modules[name]): first for name in group}
    for name, part in module.named_modules():
        if isinstance(part, Metric):
            yield name, part, leaders.get(id(part), part)


def _result_state(key: str, result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    names = ["_update_count", "has_reset"]
    if result.is_tensor:
        names += ["value", "_forward_cache", "_computed"]
        names += ["cumulated_batch_size"] if meta.is_mean_reduction else []
    values = {name: getattr(result, name) for name in names}
    return {name: getattr(meta, name) for name in _META} | {
        "key": key,
        "reduce": meta.reduce_fx.__name__,
        "sync": meta.sync.should,
        "op": meta.sync.op,
        "rank_zero_only": meta.sync.rank_zero_only,
        "is_tensor": result.is_tensor,
        "values": {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in values.items()},
    }


def _detached(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in metrics.items() if isinstance(value, Tensor)}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    return [_moved(each, device) for each in value] if isinstance(value, list) else value
