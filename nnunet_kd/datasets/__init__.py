"""Public data sets as nnU-Net datasets, and the synthetic vessel domains. Imports neither torch nor nnunetv2."""

from nnunet_kd.datasets.chase_db1 import convert as convert_chase_db1
from nnunet_kd.datasets.drive import convert as convert_drive
from nnunet_kd.datasets.hippocampus import convert as convert_hippocampus
from nnunet_kd.datasets.nnunet_format import ConversionReport

# What `nnunet-kd convert NAME` offers. Common arguments: source, raw, preprocessed, dataset_id, overwrite, name; the fundus
# sets take channels, fov_width, observer and corruptions as well, chase_db1 also split. The command reads the signatures.
CONVERTERS = {"chase_db1": convert_chase_db1, "drive": convert_drive, "hippocampus": convert_hippocampus}

__all__ = ["CONVERTERS", "ConversionReport", "convert_chase_db1", "convert_drive", "convert_hippocampus"]
