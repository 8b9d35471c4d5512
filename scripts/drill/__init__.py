"""Parts of scripts/fault_drill.py: the training to be killed, starting and killing it, comparing what it left."""
