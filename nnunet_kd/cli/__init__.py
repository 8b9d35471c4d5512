"""The command line `nnunet-kd`: each file adds its parsers and runs them; main.py puts them together."""
