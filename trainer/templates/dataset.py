"""DatasetFactory: (opt_params, params) -> dataset and the statistics of its numeric keys."""

from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
from torch.utils.data import Dataset


class DatasetBundle(TypedDict):
    dataset: Dataset
    norm_stats: NotRequired[dict[str, dict[str, np.ndarray]]]  # key -> mean, std, min, max, q01, q99 [D], count
    validation_dataset: NotRequired[Dataset]


class DatasetFactory(Protocol):
    """`params` are `data.datamodule.params` of the config.

    `opt_params` says where the run lives: `local_rank`, `dist_enabled`, `save_dir`, `project_root`, `config_dir`,
    and `validation` (with the `seed` that fixes the split) when `data.validation` is configured.
    """

    def build(self, opt_params: dict[str, Any], params: dict[str, Any]) -> DatasetBundle: ...
