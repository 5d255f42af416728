"""Code shared by tests: commands in a process, folders of finished runs, sweeps that fail on purpose, images."""
