"""The stages of a managed run, in order. A tick reads the stage, does one thing, and says what comes next.

    staging ─▶ training ─▶ registering ─▶ transforming ─▶ collecting ─▶ (stored; then cleaning, by the janitor)

`training` and `transforming` wait on AWS: they are polled. Any stage may end in failure; what then is left on AWS is
the janitor's to stop and remove.
"""

from enum import StrEnum


class Stage(StrEnum):
    STAGING = "staging"
    """the prepared panel goes to S3 as CSV"""
    TRAINING = "training"
    """the AutoML job is created, then polled to its end, priced at each poll"""
    REGISTERING = "registering"
    """the best candidate's containers become a model"""
    TRANSFORMING = "transforming"
    """one batch transform per scored window and one for the forecast, created one a tick, then polled"""
    COLLECTING = "collecting"
    """the outputs are found by listing, read, checked and imported, all or nothing"""
    GONE = "gone"
    """stopped, settled and removed; AutoML's own artifacts stay for a while, so that its model can be used again"""
    FORGOTTEN = "forgotten"
    """nor those"""

    @property
    def progress(self) -> float:
        """Share of the run that lies behind when the stage begins."""
        return _PROGRESS[self]


_PROGRESS = {
    Stage.STAGING: 0.0,
    Stage.TRAINING: 0.1,
    Stage.REGISTERING: 0.65,
    Stage.TRANSFORMING: 0.7,
    Stage.COLLECTING: 0.95,
    Stage.GONE: 1.0,
    Stage.FORGOTTEN: 1.0,
}
