"""Publication: weights of a training become a verified version in the model repository.

`Publisher.capture` (live module) → `Request` → `Worker` (thread) → gates → `Repository.new_version` → `Outcome`

Only this package uses both `onnx_export` and `repository`.
"""

from unitrain.publish.hold_back import HeldBack
from unitrain.publish.publisher import Lineage, Publisher, Request
from unitrain.publish.worker import Outcome, Worker, figures_of, gate_of, outcome_text, published_text

__all__ = [
    "HeldBack",
    "Lineage",
    "Outcome",
    "Publisher",
    "Request",
    "Worker",
    "figures_of",
    "gate_of",
    "outcome_text",
    "published_text",
]
