"""An earlier version again, under a new number: Triton takes only a newer version for a change."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from unitrain.errors import RepositoryError
from unitrain.manifest import FILE_NAME as MANIFEST_NAME
from unitrain.manifest import read_manifest
from unitrain.repository.repository import Repository
from unitrain.repository.verify import verify_version


def roll_back(repository: Repository, model: str, version: int) -> int:
    """The number of a new version with an earlier one's files; its manifest says from which.

    Raises:
        RepositoryError: there is no such version, it is damaged, or the disk refused.
    """
    source = repository.version_dir(model, version)
    newest = repository.versions(model)[-1:]
    for check in verify_version(source):
        if check.passed is False:
            raise RepositoryError(
                f"{model}: version {version} is damaged, so it is not published again: {check.name}: {check.detail}"
            )
    manifest = read_manifest(source)

    def fill(version_dir: Path, number: int) -> None:
        try:
            for path in sorted(source.iterdir()):
                if path.name != MANIFEST_NAME and path.is_file():
                    shutil.copyfile(path, version_dir / path.name)
        except FileNotFoundError as error:
            raise RepositoryError(f"{model}: version {version} has just been removed") from error
        if manifest is not None:
            replace(
                manifest,
                version=number,
                published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                rolled_back_from={"version": version, "newest": newest[0]},
            ).write(version_dir)

    return repository.publish(model, None, fill)
