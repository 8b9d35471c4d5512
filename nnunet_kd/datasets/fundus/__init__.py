"""Eye photographs: one preprocessing, one file per public set."""
