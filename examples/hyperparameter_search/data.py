"""Cars and their fuel consumption, for training."""

from pytorch_lightning import LightningDataModule

from examples.hyperparameter_search.cars import FEATURES, Part, load_cars
from unitrain.loaders import ArrayLoader


class AutoMpg(LightningDataModule):
    """392 cars: nine features, and the miles that they go with a gallon.

    Batches are mappings of `features`, float32 [batch, 9], and `target`, float32 [batch, 1], in miles a gallon.

    Args:
        batch_size: cars a training batch.

    Attributes:
        feature_names: of the features in order.
        feature_means: mean of each feature over the training cars.
        feature_stds: standard deviation of each feature.
        target_means: mean of the target.
        target_stds: standard deviation of the target.
    """

    feature_names = FEATURES

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        train = load_cars("train")
        self.feature_means: list[float] = train.features.mean(0).tolist()
        self.feature_stds: list[float] = train.features.std(0).tolist()
        self.target_means: list[float] = train.miles_per_gallon.mean(0).tolist()
        self.target_stds: list[float] = train.miles_per_gallon.std(0).tolist()

    def train_dataloader(self) -> ArrayLoader:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> ArrayLoader:
        return self._loader("validation", 1024)

    def test_dataloader(self) -> ArrayLoader:
        return self._loader("held_out", 1024)

    @staticmethod
    def _loader(part: Part, batch_size: int, *, shuffle: bool = False) -> ArrayLoader:
        cars = load_cars(part)
        batch = {"features": cars.features, "target": cars.miles_per_gallon}
        return ArrayLoader(batch, batch_size=batch_size, shuffle=shuffle)
