"""The evaluation's HTML page, its pictures and its finding in words."""
