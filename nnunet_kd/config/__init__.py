"""The plans section "nnunet_kd" as checked dataclasses. Imports no torch at load time."""
