"""Promotion: publish the version that a run holds back, after verifying its files."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from unitrain.errors import RepositoryError
from unitrain.repository.commit import check_signature
from unitrain.repository.layout import GOLDEN_NAME, HELD_BACK_NAME, MANIFEST_NAME, MODEL_NAME
from unitrain.repository.manifest import Manifest, read_manifest
from unitrain.repository.ranking import compare_with_newest, measured, readable_manifest
from unitrain.repository.repository import Repository
from unitrain.repository.verify import verify_version


def promote(repository: Repository, model: str, run_dir: Path) -> Manifest:
    """Publish the version that a run holds back, and return its manifest.

    A copy in the staging folder is verified under the model's lock: hashes, onnx.checker and golden samples.

    Raises:
        RepositoryError: the run holds no version of this model back; the files are damaged or have other
            inputs or outputs; the version is already published; or the disk refused it.
    """
    source = run_dir / HELD_BACK_NAME
    held = read_manifest(source) if (source / MODEL_NAME).is_file() else None
    if held is None:
        raise RepositoryError(
            f"{run_dir} holds nothing back that could be promoted; `export --run` publishes a checkpoint"
        )
    if held.model != model:
        raise RepositoryError(f"{source} is a version of {held.model}, not of {model}")
    if not repository.config_path(model).is_file():
        raise RepositoryError(
            f"there is no model {model} in {repository.root} whose version could be replaced; `export --run` publishes "
            "a first one"
        )
    with repository.new_version(model, None) as staged:
        held = _copy(source, staged.path)
        _check_new(repository, held, source, staged.path)
        before = compare_with_newest(repository, model, measured(held))
        manifest = replace(
            held,
            version=staged.number,
            published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            previous={"version": before.version, "value": before.value}
            if before and before.outcome
            else None,
            comparison=before.to_json(held.run) if before else None,
            promoted=True,
        )
        manifest.write(staged.path)
    return manifest


def _copy(source: Path, target: Path) -> Manifest:
    """Copy the files that the manifest names, and return the copied manifest."""
    try:
        shutil.copyfile(source / MANIFEST_NAME, target / MANIFEST_NAME)
        held = read_manifest(target)
        if held is None:
            raise RepositoryError(f"{source} has no manifest, so it is not published")
        golden = [GOLDEN_NAME] if held.golden_sha256 else []
        for name in (MODEL_NAME, *golden, *held.files):
            if Path(name).name != name:
                raise RepositoryError(f"{source / MANIFEST_NAME} names {name!r}, which is no file beside it")
            shutil.copyfile(source / name, target / name)
    except FileNotFoundError as error:
        raise RepositoryError(
            f"{error.filename} is missing: the files are damaged, or were replaced just now; try again"
        ) from error
    return held


def _check_new(repository: Repository, held: Manifest, source: Path, copy_dir: Path) -> None:
    """Check that the copy is valid, fits the published model, and is not published yet."""
    for check in verify_version(copy_dir):
        if check.passed is False:
            raise RepositoryError(
                f"{source} is damaged, so it is not published: {check.name}: {check.detail}; `export --run` publishes "
                "a checkpoint"
            )
    check_signature(repository.config_path(held.model), held.signature)
    for version in repository.versions(held.model):
        other = readable_manifest(repository, held.model, version)
        if other is not None and (other.run, other.step, other.sha256) == (held.run, held.step, held.sha256):
            raise RepositoryError(
                f"{held.model}: step {held.step} of {held.run} is version {version} already; `models rollback` publishes "
                "a version again"
            )
