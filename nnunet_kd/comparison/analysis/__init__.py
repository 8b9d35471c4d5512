"""What the rows of a comparison say: groups of runs, statistics, differences, costs."""
