"""The losses of other papers, one file each."""
