"""The groups of subcommands of `ponder`, a file each."""
