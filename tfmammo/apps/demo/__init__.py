"""The demo: what the systems do with two small mammograms, by networks of the zoo."""
