"""The command line, to be launched: `torchrun --nproc_per_node 2 launched_command_line.py WORDS...`."""

from dekag.cli import main

if __name__ == "__main__":
    main()
