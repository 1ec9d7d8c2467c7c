"""From weights in a running training to a proven version in the repository.

The only place that composes `export` and `repository`.
"""

from unitrain.publish.policy import HeldBack
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
