"""Windows of recordings in a folder of CSV files: a column of times and any number of channels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule

from unitrain.datamodules.csv_files import find_files
from unitrain.datamodules.csv_series import Columns, Recording, Windows, open_recording
from unitrain.errors import DataError
from unitrain.loaders import DatasetLoader
from unitrain.serving.triton.wheel import cache_dir

Stretch = tuple[Recording, int, int]


class CsvWindows(LightningDataModule):
    """Windows of `n_steps` rows from every file of a folder; none goes across a gap or a missing value.

    Batches are mappings of `signals`, float32 [batch, channel, step] in the files' units, `start` and `stop`,
    each window's first and last time as text, and a text for each label column. The files may be larger than
    memory: each is read once and kept as numbers in a cache.

    Each file's rows are split by time, its first for training; with `validation_files`, whole files are.

    Args:
        folder: folder of the files; `package:path` is a folder in an installed package.
        pattern: the files' names; `**/*.csv` looks into the folders below too.
        timestamp: the column of times, which must increase.
        channels: the columns that are the signal; empty: all with a name that are neither times nor labels.
        labels: columns whose most frequent text in a window is its label.
        n_steps: rows a window.
        hop: rows from one training window's begin to the next one's.
        validation_hop: the same for validation and test; None: `n_steps`, so that windows don't overlap.
        max_gap: the longest time between two rows that is no gap, in multiples of the file's usual one.
        validation_share: share of each file's rows, before those of the test.
        test_share: share of each file's rows, the last ones.
        validation_files: pattern of files that are for validation alone; then nothing is split by time.
        test_files: the same for the test.
        batch_size: windows a batch.
        num_workers: processes that read; 0: this one.
        delimiter: between cells.
        timestamp_format: format of `datetime.strptime`, or `ms`, `us` or `ns`, since 1970; None: ISO 8601, or
            seconds since 1970.
        cache: folder of what was read; None: `csv_windows` in the user's cache.

    Raises:
        DataError: a file can't be read, with the file, line and column; files differ in their channels; a part has
            no window; or a channel never changes.
    """

    def __init__(
        self,
        folder: str,
        *,
        pattern: str = "*.csv",
        timestamp: str = "timestamp",
        channels: Sequence[str] = (),
        labels: Sequence[str] = (),
        n_steps: int = 240,
        hop: int = 24,
        validation_hop: int | None = None,
        max_gap: float = 2.5,
        validation_share: float = 0.2,
        test_share: float = 0.0,
        validation_files: str | None = None,
        test_files: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        delimiter: str = ",",
        timestamp_format: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        if n_steps < 1 or hop < 1 or (validation_hop is not None and validation_hop < 1):
            raise DataError(
                f"CsvWindows: expected n_steps, hop and validation_hop of at least 1, got {n_steps}, {hop} and "
                f"{validation_hop}"
            )
        if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
            raise DataError(
                f"CsvWindows: expected validation_share and test_share to leave rows for training, got "
                f"{validation_share} and {test_share}"
            )
        self.batch_size, self.num_workers = batch_size, num_workers
        columns = Columns(timestamp, tuple(channels), tuple(labels), delimiter, timestamp_format)
        cache_folder = Path(cache) if cache else cache_dir() / "csv_windows"
        if test_files and not validation_files:
            raise DataError(
                "CsvWindows: expected validation_files beside test_files: then no file is split by time"
            )
        held = (_matching(folder, validation_files), _matching(folder, test_files))
        paths = sorted({*find_files(folder, pattern), *held[0], *held[1]})
        recordings = _of_same_channels([open_recording(path, columns, cache_folder) for path in paths])
        self.channel_names = list(recordings[0].channels)
        shares = (validation_share, test_share)
        if validation_files:
            parts = _by_file(recordings, held, max_gap)
        else:
            parts = _by_time(recordings, shares, max_gap)
        hops = (hop, validation_hop or n_steps, validation_hop or n_steps)
        self.train, self.validation, self.test = (
            Windows(part, n_steps, of_part) for part, of_part in zip(parts, hops, strict=True)
        )
        for name, windows in (("training", self.train), ("validation", self.validation)):
            if not len(windows):
                raise DataError(
                    f"{folder}: expected a window of {n_steps} rows without a gap for {name}, got none; "
                    "take a smaller n_steps, other shares, a larger max_gap, or by `channels` those that are complete"
                )
        means, stds = self.train.moments()
        for name, std in zip(self.channel_names, stds, strict=True):
            if std == 0:
                raise DataError(
                    f"{folder}: expected every channel to change, but {name} never does in the training rows; "
                    "name the others by `channels`"
                )
        self.channel_means, self.channel_stds = means.tolist(), stds.tolist()

    @property
    def n_channels(self) -> int:
        """Channels of a window."""
        return len(self.channel_names)

    @property
    def n_steps(self) -> int:
        """Rows of a window."""
        return self.train.n_steps

    def train_dataloader(self) -> DatasetLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DatasetLoader:
        return self._loader(self.validation, shuffle=False)

    def test_dataloader(self) -> DatasetLoader:
        return self._loader(self.test, shuffle=False)

    def _loader(self, windows: Windows, *, shuffle: bool) -> DatasetLoader:
        return DatasetLoader(
            windows,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=_collate,
        )


def _of_same_channels(recordings: list[Recording]) -> list[Recording]:
    first = recordings[0]
    for other in recordings:
        if other.channels != first.channels:
            raise DataError(
                f"{other.path}, line 1: expected the channels of {first.path.name}, {', '.join(first.channels)}, got "
                f"{', '.join(other.channels)}; name the common ones by `channels`"
            )
    return recordings


def _by_time(
    recordings: Sequence[Recording], shares: tuple[float, float], max_gap: float
) -> tuple[list[Stretch], list[Stretch], list[Stretch]]:
    parts: tuple[list[Stretch], list[Stretch], list[Stretch]] = ([], [], [])
    for recording in recordings:
        n_rows = len(recording.times_us)
        test = n_rows - round(n_rows * shares[1])
        bounds = (0, test - round(n_rows * shares[0]), test, n_rows)
        for begin, stop in recording.runs(max_gap):
            for i, part in enumerate(parts):
                inside = max(begin, bounds[i]), min(stop, bounds[i + 1])
                if inside[0] < inside[1]:
                    part.append((recording, *inside))
    return parts


def _by_file(
    recordings: Sequence[Recording], held: tuple[set[Path], set[Path]], max_gap: float
) -> tuple[list[Stretch], list[Stretch], list[Stretch]]:
    parts: tuple[list[Stretch], list[Stretch], list[Stretch]] = ([], [], [])
    for recording in recordings:
        place = next((i for i, files in enumerate(held, 1) if recording.path in files), 0)
        parts[place].extend((recording, begin, stop) for begin, stop in recording.runs(max_gap))
    return parts


def _matching(folder: str, pattern: str | None) -> set[Path]:
    return set(find_files(folder, pattern)) if pattern else set()


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in samples[0]}
    return batch | {"signals": torch.stack([torch.from_numpy(signal) for signal in batch["signals"]])}
