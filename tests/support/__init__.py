"""What tests share: commands in a process, folders as runs leave them, sweeps with moods, pictures."""
