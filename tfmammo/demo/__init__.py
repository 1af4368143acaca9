"""The demo: every system at work on two small mammograms, with networks of the zoo."""
