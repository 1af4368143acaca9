"""The command of the networks that come with the package, and their page."""
