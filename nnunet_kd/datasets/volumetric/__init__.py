"""3-D sets: reading and writing volumes, one file per public set or family."""
