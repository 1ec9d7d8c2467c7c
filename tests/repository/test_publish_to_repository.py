"""A version appears whole, under a number that was never used, or not at all."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_versions
from small_versions import SIGNATURE, config_of, fill
from time_limits import LIMIT_S

from unitrain.errors import PublishRefused, RepositoryError, UsageError
from unitrain.file_lock import FileLock
from unitrain.repository import Repository, changed_config, read_config
from unitrain.repository.staging import Staging
from unitrain.signature import Signature, TensorSpec


def _left_in_staging(repository: Repository) -> list[str]:
    return sorted(
        p.name
        for p in repository.staging_dir.rglob("*")
        if p.name not in ("codes", "lock", "counter", "config.pbtxt")
    )


def test_versions_are_numbered_from_one(repository: Repository, publish: Callable[[], int]) -> None:
    """The first publication makes the model, later ones add to it, and nothing is left beside it."""
    assert [publish() for _ in range(3)] == [1, 2, 3]
    assert repository.models() == ["codes"]
    assert repository.versions("codes") == [1, 2, 3]
    assert repository.version_dir("codes", 2).joinpath("model.onnx").read_bytes() == b"graph of 2"
    assert repository.foreign("codes") == []
    assert _left_in_staging(repository) == []
    assert {p.name for p in repository.root.iterdir()} == {"codes"}


def test_numbers_grow_after_versions_were_removed(repository: Repository, publish: Callable[[], int]) -> None:
    """Clients may have pinned version 2: it never comes back as something else, whatever was deleted."""
    publish(), publish()
    shutil.rmtree(repository.root / "codes")
    assert publish() == 3


def test_numbers_grow_without_the_counter(repository: Repository, publish: Callable[[], int]) -> None:
    """Where the staging folder was cleared, the versions on the disk still count."""
    publish(), publish()
    shutil.rmtree(repository.staging_dir)
    assert publish() == 3


def test_two_processes_never_share_a_number(repository: Repository) -> None:
    """Four processes publish at once: each version is there once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        numbers = pool.starmap(_publish_often, [(repository.root, 5)] * 4)
    assert sorted(n for part in numbers for n in part) == list(range(1, 21))
    assert all(part == sorted(part) for part in numbers)
    assert repository.versions("codes") == list(range(1, 21))


def _publish_often(root: Path, times: int) -> list[int]:
    return [small_versions.publish(Repository(root), config_of()) for _ in range(times)]


def test_a_failed_fill_leaves_nothing(repository: Repository, publish: Callable[[], int]) -> None:
    """A gate's refusal passes through as it is; neither model nor staging is there, and its number is free."""

    def publish_refused() -> None:
        with repository.new_version("codes", config_of()) as staged:
            fill(staged.path, staged.number)
            raise PublishRefused("parity", "too far")

    with pytest.raises(PublishRefused, match="too far"):
        publish_refused()
    assert repository.models() == []
    assert _left_in_staging(repository) == []
    assert publish() == 1


def test_a_version_without_a_model_is_refused(repository: Repository) -> None:
    """Triton would fail to load it, and it would block newer ones."""
    with (
        pytest.raises(RepositoryError, match=r"without a model\.onnx"),
        repository.new_version("codes", config_of()),
    ):
        pass
    assert repository.models() == []


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process can't grow past 64 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_old_versions(repository: Repository, publish: Callable[[], int]) -> None:
    """The error has the system's reason and the path; what was published stays, nothing half is left."""
    publish()
    with (
        pytest.raises(RepositoryError, match="took no new version of codes: File too large"),
        repository.new_version("codes", config_of()) as staged,
        (staged.path / "model.onnx").open("wb") as file,
    ):
        file.write(bytes(1 << 20))
    assert repository.versions("codes") == [1]
    assert _left_in_staging(repository) == []


def test_the_configuration_that_is_there_is_kept(repository: Repository, publish: Callable[[], int]) -> None:
    """A person's edits survive while inputs and outputs are the same, and nothing reloads."""
    publish()
    path = repository.config_path("codes")
    path.write_text("# mine\n" + path.read_text().replace("max_batch_size: 64", "max_batch_size: 8"))
    edited = path.read_bytes(), path.stat().st_mtime_ns
    assert publish() == 2
    assert (path.read_bytes(), path.stat().st_mtime_ns) == edited


def test_what_the_kept_configuration_says_otherwise_can_be_told(
    repository: Repository, publish: Callable[[], int]
) -> None:
    """So that a person learns why a changed setting has no effect: field, value there, value wanted."""
    assert repository.config_change("codes", config_of()).action == "write"
    publish()
    assert repository.config_change("codes", config_of()).action == "same"
    path = repository.config_path("codes")
    path.write_text(path.read_text().replace("max_batch_size: 64", "max_batch_size: 8") + "optimization {}\n")
    told = repository.config_change("codes", config_of())
    assert (told.action, told.differences) == (
        "keep",
        {"max_batch_size": (8, 64), "optimization": ({}, None)},
    )
    assert "max_batch_size: 8 there, 64 by the settings" in str(told)


def test_a_changed_setting_reaches_the_configuration_that_nobody_edited(
    repository: Repository, publish: Callable[[], int]
) -> None:
    """With the next version, by one rename."""
    publish()
    changed = changed_config(config_of(), {"max_batch_size": 8})
    assert repository.config_change("codes", changed).action == "update"
    assert small_versions.publish(repository, changed) == 2
    assert read_config(repository.config_path("codes")).max_batch_size == 8
    assert small_versions.publish(repository, config_of()) == 3
    assert read_config(repository.config_path("codes")).max_batch_size == 64


def test_edits_by_hand_and_changed_settings_are_refused_with_the_difference(
    repository: Repository, publish: Callable[[], int]
) -> None:
    """Neither is lost silently, and the way out is told."""
    publish()
    path = repository.config_path("codes")
    path.write_text(path.read_text().replace("max_batch_size: 64", "max_batch_size: 8"))
    before = path.read_bytes()
    changed = changed_config(config_of(), {"max_batch_size": 32})
    with pytest.raises(
        RepositoryError,
        match=r"edited by hand.*8 there, 32 by the settings.*publish\.model_config\.overrides",
    ):
        small_versions.publish(repository, changed)
    assert path.read_bytes() == before
    assert repository.versions("codes") == [1]


def test_a_published_version_may_repeat_without_a_configuration(
    repository: Repository, publish: Callable[[], int]
) -> None:
    """As a rollback does: what is there is kept; without a model there is nothing to keep."""
    with pytest.raises(RepositoryError, match="there is no model codes"):
        small_versions.publish(repository, None)
    publish()
    path = repository.config_path("codes")
    path.write_text("# mine\n" + path.read_text())
    before = path.read_bytes()
    assert small_versions.publish(repository, None) == 2
    assert path.read_bytes() == before


def test_a_changed_signature_is_refused_with_both(repository: Repository, publish: Callable[[], int]) -> None:
    """Clients of the published model would break: both signatures and the ways out are told."""
    publish()
    changed = Signature(SIGNATURE.inputs, (TensorSpec("code", "FP32", (32,)),), batched=True)
    with pytest.raises(RepositoryError, match=r"code: FP32\[24\].*code: FP32\[32\].*publish\.model"):
        small_versions.publish(repository, config_of(changed))
    assert repository.versions("codes") == [1]


def test_the_order_of_tensors_is_no_change(repository: Repository, publish: Callable[[], int]) -> None:
    """Tensors go by name in every request."""
    publish()
    turned = Signature(SIGNATURE.inputs[::-1], SIGNATURE.outputs[::-1], batched=True)
    assert small_versions.publish(repository, config_of(turned)) == 2


def test_a_folder_without_a_configuration_is_not_taken_over(repository: Repository) -> None:
    """It may be anything: it is named, left alone, and what to do is said."""
    notes = repository.root / "codes" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(RepositoryError, match=r"holds notes\.txt but no config\.pbtxt"):
        small_versions.publish(repository, config_of())
    assert notes.read_text() == "mine"


def test_a_linked_model_folder_is_not_written_through(repository: Repository, tmp_path: Path) -> None:
    """A link may lead out of the repository, where nothing of ours belongs."""
    repository.check_writable()
    (tmp_path / "elsewhere").mkdir()
    (repository.root / "codes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RepositoryError, match="is a link or a file"):
        small_versions.publish(repository, config_of())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_bad_name_makes_nothing(repository: Repository) -> None:
    """It is refused before anything is made outside the root."""
    with pytest.raises(UsageError), repository.new_version("../codes", config_of()):
        pytest.fail("the block must not run")
    assert not repository.staging_dir.exists()


def test_a_repository_behind_a_link_is_staged_beside_its_target(tmp_path: Path) -> None:
    """A rename can't cross filesystems, and both names share one lock."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "repo").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "repo")
    linked, real = Repository(tmp_path / "link"), Repository(tmp_path / "disk" / "repo")
    assert linked.staging_dir == real.staging_dir == tmp_path / "disk" / ".repo.staging"
    assert small_versions.publish(linked, config_of()) == 1
    assert real.versions("codes") == [1]


def test_a_writable_repository_is_made(repository: Repository) -> None:
    """Root and staging are there afterwards, and the probe is gone."""
    repository.check_writable()
    assert list(repository.root.iterdir()) == []
    assert list(repository.staging_dir.iterdir()) == []


@pytest.mark.parametrize("parent", ["/proc", "file"])
def test_an_unwritable_place_is_refused_with_the_cause(tmp_path: Path, parent: str) -> None:
    """Known before the first epoch, in one sentence with the path."""
    (tmp_path / "file").write_text("")
    root = tmp_path / parent / "repo"  # an absolute parent replaces tmp_path
    with pytest.raises(RepositoryError, match=f"{root} is not writable: "):
        Repository(root).check_writable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_with_the_cause(
    repository: Repository, publish: Callable[[], int]
) -> None:
    """Before the first epoch, or at the publication, which leaves the served versions as they are."""
    publish()
    repository.version_dir("codes", 1).parent.chmod(0o555)
    try:
        with pytest.raises(RepositoryError, match=r"Permission denied.*grant this user the right"):
            publish()
    finally:
        repository.version_dir("codes", 1).parent.chmod(0o755)
    repository.root.chmod(0o555)
    try:
        with pytest.raises(RepositoryError, match="is not writable: Permission denied"):
            repository.check_writable()
    finally:
        repository.root.chmod(0o755)
    assert repository.versions("codes") == [1]


def test_staging_on_another_filesystem_is_refused(repository: Repository) -> None:
    """A rename can't lead from there: said beforehand, with the way out."""
    shared = Path("/dev/shm")  # noqa: S108 - the one other filesystem that every Linux has
    if not shared.is_dir() or shared.stat().st_dev == repository.root.parent.stat().st_dev:
        pytest.skip("there is no second filesystem here")
    with tempfile.TemporaryDirectory(dir=shared) as elsewhere:
        repository.staging_dir.symlink_to(elsewhere)
        with pytest.raises(RepositoryError, match="another filesystem"):
            repository.check_writable()
    assert list(repository.root.iterdir()) == []


def test_root_that_is_a_mount_point_is_staged_within(tmp_path: Path) -> None:
    """Its sibling is on another disk, from which no rename leads; a reader sees models only."""
    mounts = [Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [path for path in mounts if path == Path("/dev/shm") and os.access(path, os.W_OK)]  # noqa: S108
    if not roots:
        pytest.skip("there is no mount point to write to here")
    repository, name = Repository(roots[0]), f"mounted-{os.getpid()}"
    assert repository.staging_dir.parent == roots[0]
    try:
        repository.check_writable()
        for number in (1, 2):
            with repository.new_version(name, config_of()) as staged:
                fill(staged.path, staged.number)
            assert staged.number == number
        assert name in repository.models()
        assert repository.staging_dir.name not in repository.models() + repository.foreign()
    finally:
        shutil.rmtree(roots[0] / name, ignore_errors=True)
        shutil.rmtree(repository.staging_dir / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            repository.staging_dir.rmdir()


def test_root_beside_which_nothing_can_be_made_is_staged_within() -> None:
    """A volume that belongs to this user in a folder that does not; who may write there agrees with who may not."""
    code = (
        "import os, sys; from pathlib import Path; from unitrain.repository import Repository\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # root may write everywhere
        "r = Repository(Path(sys.argv[1])); r.check_writable(); print(r.staging_dir)"
    )
    with tempfile.TemporaryDirectory() as disk:  # pytest's own folders are closed to other users
        root = Path(disk, "repo")
        root.mkdir()
        if os.geteuid() == 0:
            os.chown(root, 65534, 65534)
        Path(disk).chmod(0o555)
        try:
            command = [sys.executable, "-c", code, str(root)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        finally:
            Path(disk).chmod(0o755)
        assert done.stdout.strip() == str(root / ".unitrain-staging"), done.stderr
        assert Repository(root).staging_dir == root / ".unitrain-staging"


def test_what_a_dead_process_left_is_swept(repository: Repository, publish: Callable[[], int]) -> None:
    """By the next start and by the next publication; the counter stays."""
    for start in (repository.check_writable, publish):
        publish()
        stale = repository.staging_dir / "codes" / "work-dead" / "model" / "9"
        stale.mkdir(parents=True)
        (stale / "model.onnx").write_bytes(b"half")
        start()
        assert _left_in_staging(repository) == []
    assert publish() == 4


def test_a_living_publication_is_not_swept(repository: Repository) -> None:
    """Another start while a version is being written leaves it alone."""
    with repository.new_version("codes", config_of()) as staged:
        Repository(repository.root).check_writable()
        fill(staged.path, staged.number)
    assert repository.versions("codes") == [1]


def test_waiting_for_a_publication_names_its_holder(repository: Repository) -> None:
    """A process that hangs in a publication is told by pid and host, after a bounded wait."""
    staging = Staging(repository.staging_dir, "codes")
    staging.dir.mkdir(parents=True)
    lock = FileLock(staging.dir / "lock")
    assert lock.acquire()
    with pytest.raises(TimeoutError, match=r"held by \d+@"), staging.exclusive(timeout_s=0.1):
        pass
    lock.release()


def test_a_reader_sees_whole_versions_only(repository: Repository) -> None:
    """A reader that looks all along finds every version with all its files from its first moment."""
    ended, halves = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            for number in repository.versions("codes"):
                folder = repository.version_dir("codes", number)
                sizes = [(folder / name).stat().st_size for name in ("model.onnx", "manifest.json")]
                if sizes != [100_000, 2] or not repository.config_path("codes").read_text().endswith("\n"):
                    halves.append(number)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            with repository.new_version("codes", config_of()) as staged:
                (staged.path / "model.onnx").write_bytes(bytes(100_000))
                (staged.path / "manifest.json").write_text("{}")
    finally:
        ended.set()
        reader.join()
    assert halves == []
