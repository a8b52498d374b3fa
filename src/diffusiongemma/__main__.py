"""``python -m diffusiongemma``."""

from diffusiongemma.cli.main import main

if __name__ == "__main__":
    main()
