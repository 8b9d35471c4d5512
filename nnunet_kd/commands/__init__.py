"""The subcommands of `nnunet-kd`: each file adds its parsers and runs them; cli.py puts them together."""
