"""`python -m dekag` is `dekag`; launchers of several processes start it so."""

from dekag.cli import main

if __name__ == "__main__":
    main()
