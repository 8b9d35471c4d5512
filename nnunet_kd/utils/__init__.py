"""What every room needs: errors, files, the environment, ranks, random numbers, tables."""
