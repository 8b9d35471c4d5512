"""Public data sets as nnU-Net datasets, and the synthetic vessel domains. Imports neither torch nor nnunetv2."""

from nnunet_kd.datasets.chase_db1 import convert as convert_chase_db1
from nnunet_kd.datasets.drive import convert as convert_drive
from nnunet_kd.datasets.nnunet_format import ConversionReport

# What `nnunet-kd convert NAME` offers. Common arguments: source, raw, preprocessed, dataset_id, channels, fov_width,
# observer, overwrite, name; chase_db1 takes `split` as well.
CONVERTERS = {"chase_db1": convert_chase_db1, "drive": convert_drive}

__all__ = ["CONVERTERS", "ConversionReport", "convert_chase_db1", "convert_drive"]
