"""The data family: `dataset=` options return `Raw`, `prepare` carves and measures it, `Batches` feeds it."""

from dlrun.data.batches import Batches
from dlrun.data.splits import Data, Raw, Split, prepare

__all__ = ["Batches", "Data", "Raw", "Split", "prepare"]
