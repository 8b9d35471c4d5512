"""A lighter student's plans, and which student a budget allows."""
