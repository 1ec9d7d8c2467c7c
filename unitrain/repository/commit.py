"""A version appears whole, by one rename, or not at all."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unitrain.atomic_files import fsync_dir, fsync_tree, write_text
from unitrain.errors import RepositoryError
from unitrain.repository.layout import CONFIG_NAME, MODEL_NAME, entries
from unitrain.repository.model_config import (
    ModelConfig,
    config_differences,
    read_config,
    signature_of,
    write_config_text,
)
from unitrain.repository.staging import Staging
from unitrain.signature import Signature


@dataclass(frozen=True)
class ConfigChange:
    """What a publication does with config.pbtxt.

    Attributes:
        action: "write" (there is none), "same", "keep" (a person edited it), or "update" (only the
            settings changed).
        differences: (there, as the settings have it) by field.
    """

    action: Literal["write", "same", "keep", "update"]
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join(
            f"{name}: {_text(a)} there, {_text(b)} by the settings"
            for name, (a, b) in self.differences.items()
        )


def config_change(config_path: Path, written_path: Path, wanted: ModelConfig) -> ConfigChange:
    """What is to be done, by three files: what is there, what we wrote last, what the settings ask for.

    Args:
        config_path: the model's config.pbtxt.
        written_path: our own copy of what was written last; absent, what is there counts as a person's.

    Raises:
        RepositoryError: a person edited it and the settings changed too, or it can't be read.
    """
    if not config_path.is_file():
        return ConfigChange("write")
    there = read_config(config_path)
    differences = config_differences(there, wanted)
    if not differences:
        return ConfigChange("same")
    if not written_path.is_file():
        return ConfigChange("keep", differences)
    ours = read_config(written_path)
    if not config_differences(ours, there):
        return ConfigChange("update", differences)
    change = ConfigChange("keep", differences)
    if config_differences(ours, wanted):
        raise RepositoryError(
            f"{config_path} was edited by hand, and the settings that it came from have changed too ({change}); "
            "bring the two together: put the edits under publish.model_config.overrides, or undo one of them"
        )
    return change


def check_labels(model_dir: Path, labels: Mapping[str, str]) -> None:
    """Nothing, where no label file is there, or the same.

    Raises:
        RepositoryError: the classes have other names: those who ask the model would be told wrong ones.
    """
    for name, text in labels.items():
        path = model_dir / name
        if not path.is_file():
            continue
        there, wanted = path.read_text().splitlines(), text.splitlines()
        if there != wanted:
            differing = [(a, b) for a, b in zip(there, wanted, strict=False) if a != b][:3]
            shown = ", ".join(f"{a} there and {b} now" for a, b in differing)
            raise RepositoryError(
                f"{path} names {len(there)} classes otherwise than the model's {len(wanted)} class_names "
                f"({shown or 'their number differs'}); publish under another name (publish.model), or remove the file"
            )


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)


def commit_version(
    model_dir: Path,
    staging: Staging,
    config: ModelConfig | None,
    fill: Callable[[Path, int], None],
    labels: Mapping[str, str],
) -> int:
    """The number of the version that `fill` wrote, now in the repository; the model's lock must be held.

    Args:
        model_dir: where the model lies, or will after its first version.
        staging: the model's corner of the staging folder.
        config: for the first version; later it takes the place of what is there only where that is what
            was written last. None: what is there is kept.
        fill: writes the files of version `number` into the folder that it is given.
        labels: label files by name.

    Raises:
        RepositoryError: the signature is not the published one's, `fill` wrote no model, or something
            else lies under that name.
        OSError: the disk refused.
    """
    first = not (model_dir / CONFIG_NAME).is_file()
    change = _checked_change(model_dir, staging, config, labels)
    text = write_config_text(config) if config is not None else ""
    number = staging.next_number(model_dir)
    with staging.workspace() as work_dir:
        staged_model = work_dir / "model"
        staged_version = staged_model / str(number)
        staged_version.mkdir(parents=True)
        fill(staged_version, number)
        if not (staged_version / MODEL_NAME).is_file():
            raise RepositoryError(f"{model_dir.name}: version {number} was written without a {MODEL_NAME}")
        os.utime(staged_version)  # its age, as prune sees it, begins now
        if first:
            write_text(staged_model / CONFIG_NAME, text)
            for name, content in labels.items():
                write_text(staged_model / name, content)
        fsync_tree(staged_model)
        # Before the rename: a number that was seen once is never given twice.
        staging.count(number)
        if change.action in ("write", "same") and config is not None:
            write_text(staging.config_path, text)
        if first:
            staged_model.rename(model_dir)
            fsync_dir(model_dir.parent)
        else:
            staged_version.rename(model_dir / str(number))
            fsync_dir(model_dir)
    if not first:
        _replace_config(model_dir, staging, change, text, labels)
    return number


def _checked_change(
    model_dir: Path, staging: Staging, config: ModelConfig | None, labels: Mapping[str, str]
) -> ConfigChange:
    """What becomes of config.pbtxt, once nothing is in the way of a version."""
    config_path = model_dir / CONFIG_NAME
    if not config_path.is_file():
        _check_free(model_dir)
        if config is None:
            raise RepositoryError(f"there is no model {model_dir.name} in {model_dir.parent}")
    elif config is None:
        return ConfigChange("same")
    else:
        check_signature(config_path, signature_of(config))
        check_labels(model_dir, labels)
    return config_change(config_path, staging.config_path, config)


def _replace_config(
    model_dir: Path, staging: Staging, change: ConfigChange, text: str, labels: Mapping[str, str]
) -> None:
    """Write label files that are not there yet, then config.pbtxt, where the settings changed it."""
    for name, content in labels.items():
        if not (model_dir / name).is_file():
            write_text(staging.dir / name, content)
            (staging.dir / name).rename(model_dir / name)
    if change.action == "update":
        work_path = staging.dir / f"new-{CONFIG_NAME}"  # outside the model's folder, where names count
        write_text(work_path, text)
        work_path.rename(model_dir / CONFIG_NAME)
        fsync_dir(model_dir)
        write_text(staging.config_path, text)


def check_signature(config_path: Path, signature: Signature) -> None:
    """Nothing, where the published inputs and outputs are the same, in any order.

    Raises:
        RepositoryError: they differ; the message has both and the ways out.
    """
    published = signature_of(read_config(config_path))
    if _comparable(published) != _comparable(signature):
        raise RepositoryError(
            f"{config_path} was published for {published}, but the model now is {signature}; "
            "publish under another name (publish.model), or move the folder of the old model away"
        )


def _comparable(signature: Signature) -> tuple[object, ...]:
    return signature.batched, frozenset(signature.inputs), frozenset(signature.outputs)


def _check_free(model_dir: Path) -> None:
    if model_dir.is_symlink() or (model_dir.exists() and not model_dir.is_dir()):
        raise RepositoryError(f"{model_dir} is a link or a file, expected a folder or nothing; move it away")
    present = [entry.name for entry in entries(model_dir)]
    if present:
        raise RepositoryError(
            f"{model_dir} holds {', '.join(present[:5])} but no {CONFIG_NAME}, so it is not known what it "
            "serves; put the file back, or move the folder away"
        )
