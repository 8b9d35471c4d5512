"""Working a comparison off: one run, the loop over all of them, jobs on a cluster."""
