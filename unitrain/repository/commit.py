"""A version appears whole, by one rename, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from unitrain.durable import fsync_dir, fsync_tree, write_text
from unitrain.errors import RepositoryError
from unitrain.repository.layout import CONFIG_NAME, MODEL_NAME, entries
from unitrain.repository.model_config import ModelConfig, read_config, signature_of, write_config_text
from unitrain.repository.staging import Staging
from unitrain.tensors import Signature


def commit_version(
    model_dir: Path, staging: Staging, config: ModelConfig, fill: Callable[[Path, int], None]
) -> int:
    """The number of the version that `fill` wrote, now in the repository; the model's lock must be held.

    Args:
        model_dir: where the model lies, or will after its first version.
        staging: the model's corner of the staging folder.
        config: for the first version; later only compared with what is there, which is kept.
        fill: writes the files of version `number` into the folder that it is given.

    Raises:
        RepositoryError: the signature is not the published one's, `fill` wrote no model, or something
            else lies under that name.
        OSError: the disk refused.
    """
    first = not (model_dir / CONFIG_NAME).is_file()
    if first:
        _check_free(model_dir)
    else:
        check_signature(model_dir / CONFIG_NAME, signature_of(config))
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
            write_text(staged_model / CONFIG_NAME, write_config_text(config))
        fsync_tree(staged_model)
        # Before the rename: a number that was seen once is never given twice.
        staging.count(number)
        if first:
            staged_model.rename(model_dir)
            fsync_dir(model_dir.parent)
        else:
            staged_version.rename(model_dir / str(number))
            fsync_dir(model_dir)
    return number


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
