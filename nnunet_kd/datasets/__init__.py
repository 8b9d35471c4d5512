"""Public data sets as nnU-Net datasets, and the synthetic domains. Imports neither torch nor nnunetv2."""

from nnunet_kd.datasets.endoscopy import convert_cvc_clinicdb, convert_etis, convert_kvasir_seg
from nnunet_kd.datasets.fundus.chase_db1 import convert as convert_chase_db1
from nnunet_kd.datasets.fundus.drive import convert as convert_drive
from nnunet_kd.datasets.fundus.hrf import convert as convert_hrf
from nnunet_kd.datasets.fundus.stare import convert as convert_stare
from nnunet_kd.datasets.nnunet_format import ConversionReport
from nnunet_kd.datasets.polypgen import convert_polypgen
from nnunet_kd.datasets.volumetric.chaos import convert_ct as convert_chaos_ct
from nnunet_kd.datasets.volumetric.chaos import convert_mr as convert_chaos_mr
from nnunet_kd.datasets.volumetric.hippocampus import convert as convert_hippocampus
from nnunet_kd.datasets.volumetric.liver_ct import convert_lits17, convert_msd_liver

# What `nnunet-kd convert NAME` offers. Common arguments: source, raw, preprocessed, dataset_id, allow_missing, overwrite,
# name. What a set takes beside them (channels, fov_width, fov_masks, size, observer, split, corruptions, labels, sequence,
# normalisation) the command reads from the signatures.
CONVERTERS = {
    "chase_db1": convert_chase_db1,
    "drive": convert_drive,
    "stare": convert_stare,
    "hrf": convert_hrf,
    "lits17": convert_lits17,
    "msd_liver": convert_msd_liver,
    "chaos_ct": convert_chaos_ct,
    "chaos_mr": convert_chaos_mr,
    "kvasir_seg": convert_kvasir_seg,
    "cvc_clinicdb": convert_cvc_clinicdb,
    "etis": convert_etis,
    "polypgen": convert_polypgen,
    "hippocampus": convert_hippocampus,
}

__all__ = ["CONVERTERS", "ConversionReport", *(f"convert_{name}" for name in CONVERTERS)]
