"""The data family: `dataset=` options return `Raw`, `prepare` turns it into `Data`, `Batches` iterates over a split."""

from dlrun.data.batches import Batch, Batches
from dlrun.data.splits import Data, Raw, Split, prepare

__all__ = ["Batch", "Batches", "Data", "Raw", "Split", "prepare"]
