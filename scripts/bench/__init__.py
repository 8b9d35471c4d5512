"""What bench_step.py and bench_views.py share."""
