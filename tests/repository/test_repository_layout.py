"""What counts as a model or a version, and what is somebody else's and left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_versions
from small_versions import SIGNATURE

from unitrain.errors import RepositoryError, UsageError
from unitrain.repository import Repository, check_model_name


@pytest.mark.parametrize("name", ["curve", "Curve_2-b", "_", "7", "a" * 128])
def test_a_servable_name_is_accepted(name: str) -> None:
    """Letters, digits, _ and - in any place but - at the beginning."""
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a/b", "..", "a.b", "a b", "ä", "a\n", "a" * 129, "../x"])
def test_an_unservable_name_is_refused(name: str) -> None:
    """Triton does not refuse `../x`, so it is refused here, in one line."""
    with pytest.raises(UsageError, match="a model's name") as caught:
        check_model_name(name)
    assert "\n" not in str(caught.value)


def test_an_absent_repository_is_empty(repository: Repository) -> None:
    """Nothing there is no error, and looking makes nothing."""
    assert repository.models() == []
    assert repository.versions("codes") == []
    assert repository.signature("codes") is None
    assert not repository.root.exists()


def test_a_file_in_the_repositorys_place_is_an_error(repository: Repository) -> None:
    """It can't be listed, and the message has its path."""
    repository.root.write_text("")
    with pytest.raises(RepositoryError, match="can't be read at"):
        repository.models()


def test_signature_is_that_of_the_configuration(repository: Repository, publish: Callable[[], int]) -> None:
    """A client's tool learns the inputs and outputs from the disk."""
    publish()
    assert repository.signature("codes") == SIGNATURE


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "model.onnx").write_bytes(b"foreign")


@pytest.mark.parametrize("name", ["007", "abc", "5x", "0", "-3", str(2**63), "5.tmp", "٣"])
def test_a_folder_that_is_no_number_is_foreign(
    repository: Repository, publish: Callable[[], int], name: str
) -> None:
    """It is no version, is reported, and is there unchanged after publishing and pruning."""
    publish()
    foreign = repository.root / "codes" / name
    _folder(foreign)
    publish()
    repository.prune("codes", 1, num_versions=1)
    assert name not in map(str, repository.versions("codes"))
    assert repository.foreign("codes") == [name]
    assert (foreign / "model.onnx").read_bytes() == b"foreign"


def test_files_links_and_empty_folders_are_no_versions(
    repository: Repository, publish: Callable[[], int], tmp_path: Path
) -> None:
    """A file named 5, a link out of the root and a folder without a model are left alone."""
    publish()
    model_dir = repository.root / "codes"
    _folder(tmp_path / "elsewhere")
    (model_dir / "5").write_text("a note")
    (model_dir / "6").symlink_to(tmp_path / "elsewhere")
    (model_dir / "7").mkdir()
    assert repository.versions("codes") == [1]
    assert repository.foreign("codes") == ["5", "6", "7"]


@pytest.mark.parametrize("name", ["41", "41x", "41.tmp"])
def test_a_new_version_is_larger_than_what_triton_takes_for_one(
    repository: Repository, publish: Callable[[], int], name: str
) -> None:
    """Triton reads `41x` as 41: a smaller number would never be served as the latest."""
    publish()
    (repository.root / "codes" / name).mkdir()
    assert publish() == 42


def test_the_largest_number_of_all_is_refused(repository: Repository, publish: Callable[[], int]) -> None:
    """There is no number after it, and the message says what to remove."""
    publish()
    blocking = repository.root / "codes" / str(2**63 - 1)
    blocking.mkdir()
    with pytest.raises(RepositoryError, match=blocking.name):
        publish()


def test_only_real_folders_with_a_configuration_are_models(repository: Repository, tmp_path: Path) -> None:
    """A link to a model elsewhere, a folder without config.pbtxt and a bad name are reported apart."""
    other = Repository(tmp_path / "other")
    small_versions.publish(other, small_versions.config_of())
    repository.check_writable()
    (repository.root / "linked").symlink_to(other.root / "codes")
    (repository.root / "bare").mkdir()
    (repository.root / "bad name").mkdir()
    (repository.root / "README.md").write_text("")
    assert repository.models() == []
    assert repository.foreign() == ["bad name", "bare", "linked"]
