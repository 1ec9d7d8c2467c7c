"""What a training by some settings would meet, found without one."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unitrain.project import project_root
from unitrain.training.dry_run import Step, dry_run
from unitrain.training.faults import draft_of, faults_of
from unitrain.training.flags import absolute
from unitrain.training.settings_file import config_word, read_merged, with_class_flags
from unitrain.training.silence import quiet_lightning


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with the settings, and what came of trying them.

    Attributes:
        settings: the file.
        faults: of the settings themselves, a sentence each.
        steps: of the dry run; none where there are faults.
    """

    settings: Path
    faults: Sequence[str]
    steps: Sequence[Step]

    @property
    def good(self) -> bool:
        """Whether a training by these settings would begin, and come through its first batches."""
        return not self.faults and all(step.passed for step in self.steps)


def check(path: Path, flags: Sequence[str] = (), *, over: Sequence[Path] = ()) -> CheckReport:
    """Everything that is wrong with a settings file, and, if nothing is, what a dry run of it met.

    Args:
        path: the settings file.
        flags: settings that take the place of its own, as flags.
        over: further settings files, of which a later one overrides what an earlier one says.

    Raises:
        SettingsError: the file is missing, or no YAML.
    """
    root = project_root(path.absolute().parent)
    pairs = absolute(flags)
    raw = with_class_flags(read_merged([path, *over]), pairs)
    folder = path.absolute().parent.name
    with quiet_lightning(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = faults_of(draft_of(raw, pairs, root, path))
        if faults:
            return CheckReport(path, tuple(faults), ())
        words = ["--config", config_word(path, raw), *(word for pair in pairs for word in pair)]
        return CheckReport(path, (), tuple(dry_run(words, raw, root=root, experiment=folder)))
